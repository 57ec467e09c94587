"""The table of instances that the laws run for: every transform and what it claims.

A new method adds one row to `INSTANCES`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

import lowrank as lrk
from tests.network import BIASES, KERNELS, LAYERS, STACKED, WIDTH, floating, numbers


@dataclasses.dataclass(frozen=True)
class Instance:
    """A transform and what it claims.

    Attributes:
        name: Name in test reports.
        build: Makes the transform.
        has_dense: Whether `materialize` forms the weights.
        exact_grad: Whether gradients are those of the dense form.
        stochastic: Whether `apply` needs a key.
        identity_at_init: Whether nothing changes before training.
        rank: The largest rank of the change of each weight, if that is claimed.
        random: Names of the state leaves that `init` draws.
        alive: Names of the trainable leaves whose gradients are not zero once trained.
        flops: Largest ratio of compiled FLOPs of the gradient to those of the gradient
            of the plain model with respect to the same weights.
        tasks: Makers of transforms whose states are stacked (tasks that differ in what
            they closed over, such as masks); by default `build`, three times.
    """

    name: str
    build: Callable[[], lrk.Transform]
    _: dataclasses.KW_ONLY
    has_dense: bool = True
    exact_grad: bool = True
    stochastic: bool = False
    identity_at_init: bool = True
    rank: int | None = None
    random: tuple[str, ...] = ()
    alive: tuple[str, ...] = ()
    flops: float = 0.9
    tasks: tuple[Callable[[], lrk.Transform], ...] = ()


def _lora_twice() -> lrk.Transform:
    return lrk.chain(lrk.lora(1), lrk.lora(1, alpha=3, select=KERNELS, axes=STACKED))


def _sparse_lori(task: int) -> lrk.Transform:
    """LoRI-S with another mask for each task; they differ in the number of ones."""
    shapes = dict.fromkeys(("first/kernel", "second/kernel", "half/kernel"), (2, WIDTH))
    shapes |= {"layers/kernel": (LAYERS, 2, WIDTH)}
    mask = {
        path: numbers(20 + 9 * task + i, *shape) > 0.2 * task
        for i, (path, shape) in enumerate(shapes.items())
    }
    select = lrk.matching(rf"^({'|'.join(shapes)})$")
    return lrk.lori(2, alpha=3, mask=mask, select=select, axes=STACKED)


_MOVING = lrk.matching(r"^(first|second|layers)/|^norm/")


def _moved_by(name: str) -> lrk.Transform:
    """A subspace of some leaves: a projection does change with what it moves."""
    return _moved(getattr(lrk.subspace, name)())


def _moved(projection: lrk.subspace.Projection) -> lrk.Transform:
    return lrk.subspace.random(5, projection, select=_MOVING)


def _structured() -> lrk.Transform:
    """SAID with fewer groups than leaves."""
    return lrk.subspace.structured(
        8,
        lrk.subspace.dense(),
        select=_MOVING,
        groups=lambda path: path.split("/")[0],
    )


def _over_chain() -> lrk.Transform:
    inner = lrk.chain(
        lrk.lori(2, select=lrk.matching("^(first|second)/kernel")),
        lrk.full(select=lrk.matching("^first/bias")),
    )
    return lrk.subspace.over(inner, 5, lrk.subspace.fastfood())


_LORA: dict[str, Any] = {"random": ("a",), "alive": ("a", "b")}
_LORI: dict[str, Any] = {"random": ("a",), "alive": ("b",), "rank": 2}
_FULL: dict[str, Any] = {"alive": ("d",), "flops": 1.05}
_CHIP = lrk.rram.Device(p_lrs=0.05, p_hrs=0.1, write=lrk.rram.Lognormal(0.2))
_ANALOG = _CHIP.replace(
    read=0.01,
    # So fine that a product rounded otherwise (under vmap) falls on the same step, to
    # the tolerance: coarse ones are tested beside the operator.
    dac=lrk.rram.Converter(20),
    adc=lrk.rram.Converter(20, limit=12.0, noise=0.01),
)
_ROWS = {
    "first/kernel": np.roll(np.arange(WIDTH), 5),
    "layers/kernel": np.stack([np.roll(np.arange(WIDTH), i) for i in range(LAYERS)]),
}
_SIGNS = {"second/kernel": np.where(np.arange(WIDTH) % 3, 1.0, -1.0)}
_DORA: dict[str, Any] = {"random": ("a",), "alive": ("a", "b", "m")}
_SUBSPACE: dict[str, Any] = {"alive": ("z",), "flops": 1.2}

INSTANCES = (
    Instance("identity", lrk.identity),
    Instance("lora", lambda: lrk.lora(2), rank=2, **_LORA),
    Instance("lora-alpha", lambda: lrk.lora(2, alpha=6.0), rank=2, **_LORA),
    Instance("lora-scale", lambda: lrk.lora(2, scale=0.3), rank=2, **_LORA),
    Instance(
        "lora-stacked",
        lambda: lrk.lora(2, alpha=4, select=KERNELS, axes=STACKED),
        rank=2,
        **_LORA,
    ),
    Instance(
        "lora-dropout",
        lambda: lrk.lora(2, select=KERNELS, axes=STACKED, dropout=0.4),
        has_dense=False,
        stochastic=True,
        flops=1.2,
        **_LORA,
    ),
    Instance("full-bias", lambda: lrk.full(select=BIASES), **_FULL),
    Instance("full", lambda: lrk.full(select=floating), **_FULL),
    Instance(
        "lora+full",
        lambda: lrk.chain(lrk.lora(2), lrk.full(select=BIASES)),
        random=("a",),
        alive=("a", "b", "d"),
    ),
    Instance("lora+lora", _lora_twice, rank=2, **_LORA),
    Instance("lori", lambda: lrk.lori(2, alpha=6.0), **_LORI),
    Instance(
        "lori-seed",
        lambda: lrk.lori(2, store_a=False),
        rank=2,
        random=("seed",),
        alive=("b",),
    ),
    Instance(
        "lori-stacked",
        lambda: lrk.lori(2, select=KERNELS, axes=STACKED),
        **_LORI,
    ),
    Instance(
        "lori-sparse",
        lambda: _sparse_lori(0),
        tasks=tuple(functools.partial(_sparse_lori, task) for task in range(3)),
        **_LORI,
    ),
    Instance(
        "lori+full",
        lambda: lrk.chain(lrk.lori(2), lrk.full(select=BIASES)),
        random=("a",),
        alive=("b", "d"),
    ),
    Instance("dora", lambda: lrk.dora(2, alpha=3.0), **_DORA),
    Instance(
        "dora-stacked-exact",
        lambda: lrk.dora(2, select=KERNELS, axes=STACKED, detach=False),
        flops=1.0,
        **_DORA,
    ),
    Instance(
        "lori+magnitude",
        lambda: lrk.chain(lrk.lori(2), lrk.magnitude()),
        random=("a",),
        alive=("b", "m"),
    ),
    Instance(
        "hydra",
        lambda: lrk.hydra(2, 3, alpha=3.0, select=KERNELS, axes=STACKED),
        has_dense=False,
        random=("a", "router"),
        alive=("a", "b", "router"),
        flops=1.2,
    ),
    Instance(
        "mtl-lora",
        lambda: lrk.mtl_lora(2, 3, temperature=0.5, select=KERNELS, axes=STACKED),
        rank=2,
        random=("a", "mix"),
        alive=("a", "b", "task", "mix"),
    ),
    Instance("subspace-dense", lambda: _moved_by("dense"), random=("p",), **_SUBSPACE),
    Instance(
        "subspace-gather",
        lambda: _moved_by("gather"),
        random=("column", "sign"),
        **_SUBSPACE,
    ),
    Instance(
        "subspace-sparse",
        lambda: _moved_by("sparse"),
        random=("row", "sign"),
        **_SUBSPACE,
    ),
    Instance(
        "subspace-fastfood",
        lambda: _moved_by("fastfood"),
        random=("gain", "order"),
        alive=("z",),
        flops=3.6,  # so narrow that transforms cost more than products
    ),
    Instance(
        "subspace-stacked",
        lambda: _moved_by("fastfood_stacked"),
        random=("gain", "order"),
        alive=("z",),
        flops=1.3,
    ),
    Instance(
        "subspace-per-leaf",
        lambda: _moved(lrk.subspace.per_leaf(lrk.subspace.fastfood())),
        random=("gain", "order"),
        alive=("z",),
        flops=2.4,
    ),
    Instance(
        "subspace-kronecker",
        lambda: _moved_by("kronecker"),
        random=("q1", "q2", "order"),
        **_SUBSPACE,
    ),
    Instance(
        "subspace-regenerated",
        lambda: _moved(lrk.subspace.regenerated(lrk.subspace.gather())),
        random=("seed",),
        alive=("z",),
        flops=2.4,  # a draw costs more than a product
    ),
    Instance(
        "structured",
        _structured,
        random=("p",),
        alive=("z", "lambda"),
        flops=1.2,
    ),
    Instance(
        "over-lora",
        lambda: lrk.subspace.over(
            lrk.lora(2, select=lrk.matching("^(first|layers)/kernel"), axes=STACKED),
            5,
            lrk.subspace.gather(),
        ),
        random=("a", "column", "sign"),
        alive=("z",),
        rank=2,
    ),
    Instance(
        "over-chain",
        _over_chain,
        random=("a", "gain", "order"),
        alive=("z",),
        flops=1.0,
    ),
    Instance(
        "crossbar",
        lambda: lrk.rram.crossbar(
            _CHIP.replace(levels=32), select=KERNELS, axes=STACKED
        ),
        identity_at_init=False,
        random=("code", "gain"),
    ),
    Instance(
        "crossbar+lora",
        lambda: lrk.chain(lrk.rram.crossbar(_CHIP, tile=10), lrk.lora(2)),
        identity_at_init=False,
        random=("code", "gain", "a"),
        alive=("a", "b"),
    ),
    Instance(
        "lora+crossbar",
        lambda: lrk.chain(lrk.lora(2), lrk.rram.crossbar(_CHIP)),
        identity_at_init=False,
        random=("code", "gain", "a"),
        alive=("a", "b"),
        flops=1.3,
    ),
    Instance(
        "analog+lora",
        lambda: lrk.chain(
            lrk.rram.crossbar(_ANALOG, tile=16, select=KERNELS, axes=STACKED),
            lrk.lora(2, select=KERNELS, axes=STACKED),
        ),
        has_dense=False,
        exact_grad=False,
        stochastic=True,
        identity_at_init=False,
        random=("code", "gain", "a"),
        alive=("a", "b"),
        flops=2.9,  # so narrow that draws and conversions cost more than products
    ),
    Instance(
        "permute+unpermute",
        lambda: lrk.chain(
            lrk.rram.permute(_ROWS, spare=3, axes=STACKED),
            lrk.rram.unpermute(_ROWS, spare=3, axes=STACKED),
        ),
    ),
    Instance("flip", lambda: lrk.rram.flip(_SIGNS, _SIGNS), identity_at_init=False),
    Instance(
        "lora+factors",
        lambda: lrk.chain(lrk.lora(2), lrk.rram.factors(_CHIP, select=lrk.is_matrix)),
        identity_at_init=False,
        random=("a/code", "b/gain", "a"),
        alive=("a", "b"),
        rank=2,
    ),
)
