"""Adapters: low-rank, dense, and those that share factors between tasks."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

import lowrank as lrk
from tests.instances.instance import Instance
from tests.network import (
    BIASES,
    KERNELS,
    LAYERS,
    STACKED,
    TOKENS,
    WIDTH,
    floating,
    numbers,
    with_images,
)


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


def _tokens(*index: int) -> lrk.Transform:
    return lrk.trainable_tokens(index, select=lrk.matching("^(first|half)/kernel"))


def _groups(path: str) -> tuple[str | None, str]:
    """A layer by name, and a stack of layers of another type."""
    return ("bottom", "up") if path.startswith("first") else (None, "on")


def _fact() -> lrk.Transform:
    """Both forms of FacT, each with what its leaves share."""
    train = lrk.fact_tt(2, scale=2.0, **_FEW)
    return lrk.chain(train, lrk.fact_tk(2, scale=2.0, select=lrk.matching("^second/k")))


# What shares factors draws for all its leaves together: a further one changes shapes.
_FEW: dict[str, Any] = {
    "select": lrk.matching("^(first|layers)/kernel"),
    "axes": STACKED,
}


def _two_networks() -> lrk.Transform:
    """A serial adapter for two leaves, a parallel one for the other two."""
    serial, parallel = lrk.matching("second|layers"), lrk.matching("first/kernel|half")
    smooth = {"activation": jnp.tanh}
    return lrk.chain(
        lrk.bottleneck(2, scale=2.0, select=serial, axes=STACKED, **smooth),
        lrk.parallel(2, scale=4.0, select=parallel, **smooth),
    )


def _prefix_and_prompt() -> lrk.Transform:
    first, second = lrk.matching("first/kernel"), lrk.matching("second/kernel")
    return lrk.chain(
        lrk.prefix_mlp(3, 2, 4, select=first),
        lrk.prompt(3, scale=2.0, select=second, name="prefix"),
    )


_ON_ALL: dict[str, Any] = {"select": KERNELS, "axes": STACKED}


def _alone(method: str, /, *args: Any, **options: Any) -> Instance:
    """A member of a composed row by itself, on all kernels that it can act on."""
    name = method.replace("-", "_")
    return Instance(method, lambda: getattr(lrk, name)(*args, **options))


def _eva() -> lrk.Transform:
    """LoRA with the ranks and the start that some inputs ask for."""
    tx = lrk.lora(2, select=lrk.matching("^(first|second|half|layers)/k"), axes=STACKED)

    def init(key: Any, params: Any) -> lrk.State:
        state = tx.init(key, params)
        grams = {}
        for seed, path in enumerate(state.trainable):
            stack = (LAYERS,) if path.startswith("layers") else ()
            x = numbers(60 + seed, *stack, TOKENS, WIDTH) * (WIDTH + np.arange(WIDTH))
            grams[path] = np.swapaxes(x, -1, -2) @ x
        return lrk.eva(state, grams)

    return lrk.Transform(init, tx.apply)


_IMAGES = lrk.matching("^image/")
_SOME = lrk.matching("^(second|layers)/kernel")
_LORA: dict[str, Any] = {"random": ("a",), "alive": ("a", "b")}
_LORI: dict[str, Any] = {"random": ("a",), "alive": ("b",), "rank": 2}
_FULL: dict[str, Any] = {"alive": ("d",), "flops": 1.05}
_DORA: dict[str, Any] = {"random": ("a",), "alive": ("a", "b", "m")}

INSTANCES = (
    Instance("identity", lrk.identity),
    Instance("lora", lambda: lrk.lora(2), rank=2, **_LORA),
    Instance(
        "lora-alpha-gaussian",
        lambda: lrk.lora(2, alpha=6.0, init=lrk.adapters.gaussian),
        rank=2,
        **_LORA,
    ),
    Instance("eva", _eva, rank=4, alive=("a", "b")),
    Instance(
        "lora-scale-orthogonal",
        lambda: lrk.lora(
            2,
            scale=0.3,
            init=lrk.adapters.orthogonal_a,
            init_b=lrk.adapters.orthogonal_b,
        ),
        rank=2,
        random=("a", "b"),
        alive=("a", "b"),
    ),
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
        members=(_alone("magnitude", **_ON_ALL),),
    ),
    Instance(
        "pissa|olora",
        lambda: lrk.chain(
            lrk.pissa(2, alpha=3.0, select=lrk.matching("^(first|half)/kernel")),
            lrk.olora(2, alpha=3.0, select=_SOME, axes=STACKED),
        ),
        rank=4,
        alive=("a", "b"),
        flops=1.1,
        members=(
            _alone("pissa", 2, alpha=3.0, **_ON_ALL),
            _alone("olora", 2, alpha=3.0, **_ON_ALL),
        ),
    ),
    Instance(
        "ia3",
        lambda: lrk.ia3(outputs=KERNELS, inputs=lrk.is_matrix, axes=STACKED),
        alive=("l",),
        members=(
            _alone("rescale-inputs", **_ON_ALL),
            _alone("rescale-outputs", **_ON_ALL),
        ),
    ),
    Instance(
        "vera",
        lambda: lrk.vera(3, select=KERNELS, axes=STACKED),
        rank=3,
        alive=("lambda_d", "lambda_b"),
    ),
    Instance(
        "lora-xs",
        lambda: lrk.lora_xs(2, alpha=3.0, select=KERNELS, axes=STACKED),
        rank=2,
        alive=("r",),
    ),
    Instance(
        "adalora",
        lambda: lrk.adalora(2, alpha=3.0, select=KERNELS, axes=STACKED),
        rank=2,
        random=("a", "b"),
        alive=("a", "b", "lambda"),
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
    Instance(
        "trainable-tokens",
        lambda: _tokens(5, 2),
        tasks=tuple(functools.partial(_tokens, *own) for own in ([5], [0, 9], [7])),
        alive=("d",),
    ),
    Instance(
        "lorta",
        lambda: lrk.lorta(2, _groups, heads=4, alpha=3.0, **_FEW),
        rank=2,
        random=("a", "layer", "type", "head"),
        alive=("a", "b", "layer", "type", "head"),
    ),
    Instance(
        "metatt",
        lambda: lrk.metatt(2, _groups, alpha=3.0, **_FEW),
        rank=2,
        alive=("a", "b", "layer", "type"),
    ),
    Instance(
        "fact-tt|fact-tk",
        _fact,
        rank=2,
        random=("a", "core", "p"),
        alive=("a", "b", "core", "p"),
        members=(_alone("fact-tt", 2, **_FEW), _alone("fact-tk", 2, **_FEW)),
    ),
    Instance(
        "bottleneck+parallel",
        _two_networks,
        has_dense=False,
        random=("down",),
        alive=("down", "up", "down_bias", "up_bias"),
        flops=1.2,
        members=(
            _alone("bottleneck", 2, **_ON_ALL),
            _alone("parallel", 2, scale=4.0, **_ON_ALL),
        ),
    ),
    Instance(
        "prefix",
        lambda: lrk.prefix(3, select=lrk.matching("^(first|second)/kernel")),
        adds=True,
        identity_at_init=False,
        random=("rows",),
        alive=("rows",),
    ),
    Instance(
        "prefix-mlp+prompt",  # they add leaves, and are read from the start
        _prefix_and_prompt,
        adds=True,
        identity_at_init=False,
        random=("rows", "embedding", "w_in", "w_out"),
        alive=("rows", "embedding", "w_in", "b_in", "w_out", "b_out"),
        members=(
            _alone("prefix-mlp", 3, 2, 4, select=lrk.matching("^first/kernel")),
            _alone("prompt", 3, select=lrk.matching("^second/kernel"), name="prefix"),
        ),
    ),
    Instance(
        "learn-scale-gated",
        lambda: lrk.learn_scale(
            lrk.gated(lrk.lora(2, select=KERNELS, axes=STACKED), axes=STACKED)
        ),
        has_dense=False,
        random=("a",),
        alive=("a", "b", "scale", "gate", "gate_bias"),
        flops=1.2,
        members=(_alone("gated", lrk.lora(2, **_ON_ALL), axes=STACKED),),
    ),
    Instance(
        "shira",
        lambda: lrk.shira(0.1),
        random=("index",),
        alive=("b",),
        flops=1.05,
    ),
    Instance(
        "loha|lokr",
        lambda: lrk.chain(
            lrk.loha(2, select=lrk.matching("^half/kernel")),
            lrk.lokr(2, select=lrk.matching("^layers/kernel"), axes=STACKED),
        ),
        random=("a1", "b1", "b2", "a", "b"),
        alive=("a1", "b1", "a2", "b2", "a", "b", "c"),
        flops=1.0,  # the base alone is 0.9 of so few kernels
        members=(_alone("loha", 2, **_ON_ALL), _alone("lokr", 2, **_ON_ALL)),
    ),
    Instance(
        "hira|randlora|fourierft",
        lambda: lrk.chain(
            lrk.hira(2, select=lrk.matching("^half/kernel")),
            lrk.randlora(8, select=lrk.matching("^second/kernel"), store_bases=False),
            lrk.fourierft(9, select=lrk.matching("^layers/kernel"), axes=STACKED),
        ),
        random=("a", "seed", "index"),
        alive=("a", "b", "lambda", "gamma", "c"),
        flops=3.0,  # so narrow that draws and the transform cost more than products
        members=(
            _alone("hira", 2, **_ON_ALL),
            _alone("randlora", 8, store_bases=False, **_ON_ALL),
            _alone("fourierft", 9, **_ON_ALL),
        ),
    ),
    Instance(
        "loretta",
        lambda: lrk.loretta(2, 3, divide=2, alpha=3.0, **_FEW),
        rank=2,
        random=("a0", "a1", "a2", "b0", "b1"),
        alive=("a0", "a1", "a2", "b0", "b1", "b2"),
    ),
    Instance(
        "loralib-conv|locon-tucker",
        lambda: lrk.chain(
            lrk.loralib_conv(2, alpha=3.0, select=lrk.matching("^image/up")),
            lrk.locon_tucker(2, alpha=3.0, select=lrk.matching("^image/down")),
        ),
        tree=with_images,
        random=("a", "core"),
        alive=("a", "core", "b"),
        flops=1.5,
        members=(
            _alone("loralib-conv", 2, alpha=3.0, select=_IMAGES),
            _alone("locon-tucker", 2, alpha=3.0, select=_IMAGES),
        ),
    ),
)
