"""The ways that the table of convolutional transfer compares."""

from collections.abc import Callable
from typing import Any, NamedTuple

import lowrank as lrk
from benchmarks.study.convnet import Cut

SCALE = 2.0  # of every low-rank change


class Sizes(NamedTuple):
    """Inner sizes of the adapters.

    Attributes:
        rank: LoRA's on 1 x 1 kernels.
        large: That of the row which is as large as the reshaped matrix.
        hadamard: LoHa's.
        kronecker: LoKr's.
        sparse: Share of the entries that SHiRA trains.
    """

    rank: int
    large: int
    hadamard: int
    kronecker: int
    sparse: float


class Way(NamedTuple):
    """A way to learn.

    Attributes:
        title: What tables call it.
        where: Which parameters it changes.
        make: Gives its transform; None for a head alone.
        grid: Which learning rates it tries: `factors`, `direct` or `full`.
    """

    title: str
    where: str
    make: Callable[[Cut, Sizes], lrk.Transform] | None
    grid: str = "factors"


def _pointwise(cut: Cut) -> Any:
    return lrk.both(_above(cut), lrk.matching(r"(expand|project|head)_conv/kernel$"))


def _depthwise(cut: Cut) -> Any:
    return lrk.both(_above(cut), lrk.matching(r"depthwise_conv/kernel$"))


def _above(cut: Cut) -> Any:
    return lrk.matching(cut.adapted)


def _lora(rank: Callable[[Sizes], int], deep: int) -> Callable[..., lrk.Transform]:
    """PEFT's form: two convolutions, of another rank on depthwise kernels."""

    def make(cut: Cut, sizes: Sizes) -> lrk.Transform:
        how = {"scale": SCALE, "axes": cut.axes}
        return lrk.chain(
            lrk.lora(rank(sizes), select=_pointwise(cut), **how),
            lrk.lora(deep, select=_depthwise(cut), **how),
        )

    return make


def _form(form: Callable[..., lrk.Transform]) -> Callable[..., lrk.Transform]:
    """One of the other two forms, of rank 1 on depthwise kernels: they have no more."""

    def make(cut: Cut, sizes: Sizes) -> lrk.Transform:
        return lrk.chain(
            form(sizes.rank, scale=SCALE, select=_pointwise(cut)),
            form(1, scale=SCALE, select=_depthwise(cut)),
        )

    return make


def _loha(cut: Cut, sizes: Sizes) -> lrk.Transform:
    narrow = lrk.both(_above(cut), lrk.matching(r"(project|head)_conv/kernel$"))
    return lrk.loha(sizes.hadamard, scale=SCALE, select=narrow, axes=cut.axes)


WAYS = {
    "probe": Way("head on the frozen network", "–", None),
    "full": Way(
        "full fine-tuning",
        "all above the cut",
        lambda cut, _: lrk.full(select=_above(cut)),
        "full",
    ),
    "lora": Way(
        "LoRA",
        "1 x 1",
        lambda cut, sizes: lrk.lora(
            sizes.rank, scale=SCALE, select=_pointwise(cut), axes=cut.axes
        ),
    ),
    "lora-all": Way(
        "LoRA, two convolutions", "1 x 1, depthwise", _lora(lambda s: s.rank, 1)
    ),
    "tucker": Way("LoRA, Tucker", "1 x 1, depthwise", _form(lrk.locon_tucker)),
    "loralib": Way(
        "LoRA, reshaped matrix", "1 x 1, depthwise", _form(lrk.loralib_conv)
    ),
    "lora-large": Way(
        "LoRA, two convolutions, larger",
        "1 x 1, depthwise",
        _lora(lambda s: s.large, 3),
    ),
    "dora": Way(
        "DoRA",
        "1 x 1",
        lambda cut, sizes: lrk.dora(
            sizes.rank, scale=SCALE, select=_pointwise(cut), axes=cut.axes
        ),
    ),
    "loha": Way("LoHa", "narrowing and last 1 x 1", _loha),
    "lokr": Way(
        "LoKr",
        "1 x 1",
        lambda cut, sizes: lrk.lokr(
            sizes.kronecker,
            factor=4,
            scale=SCALE,
            select=_pointwise(cut),
            axes=cut.axes,
        ),
    ),
    "shira": Way(
        "SHiRA, random places",
        "1 x 1",
        lambda cut, sizes: lrk.shira(sizes.sparse, select=_pointwise(cut)),
        "direct",
    ),
    "ia3": Way(
        "(IA)³: a factor for each feature",
        "1 x 1, depthwise",
        lambda cut, _: lrk.adapters.rescale_outputs(
            select=lrk.both(_above(cut), lrk.matching("conv/kernel$")), axes=cut.axes
        ),
        "direct",
    ),
    "bitfit": Way(
        "BitFit",
        "biases of norms",
        lambda cut, _: lrk.full(select=lrk.both(_above(cut), lrk.is_bias)),
        "direct",
    ),
    "norms": Way(
        "norm tuning",
        "scales and biases of norms",
        lambda cut, _: lrk.full(select=lrk.both(_above(cut), lrk.is_norm)),
        "direct",
    ),
}
