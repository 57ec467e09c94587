"""Random subspaces, of the weights and of an adapter's factors."""

from typing import Any

import lowrank as lrk
from tests.instances.instance import Instance
from tests.network import STACKED

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


_SUBSPACE: dict[str, Any] = {"alive": ("z",), "flops": 1.2}


INSTANCES = (
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
)
