"""Every adapter family at one budget: its transform, its size, and how it trains."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import lowrank as lrk
from benchmarks.study import recipes
from benchmarks.study.encoder import Cut, kernels
from benchmarks.study.methods import SCALE
from benchmarks.study.train import PLAIN, Recipe

DENSITY = 0.1  # share of `B` that LoRI-S trains
LAYER = r"^layer/(?P<layer>\d+)/(?P<type>.+)/kernel$"
READ = lrk.matching(r"^layer/\d+/attention/self/(key|value)/kernel$")
WRITE = lrk.matching(r"^layer/\d+/(attention/)?output/dense/kernel$")
BEHIND = lrk.matching(r"^layer/\d+/output/dense/kernel$")
QUERY_VALUE = lrk.matching(r"^layer/\d+/attention/self/(query|value)/kernel$")
Maker = Callable[[Cut, int], lrk.Transform]
Wrap = Callable[[lrk.Transform], lrk.Transform]


class Family(NamedTuple):
    """A family of adapters.

    Attributes:
        title: What tables call it.
        make: Its transform, of one size: a rank, a length, a number of entries.
        group: What the table puts it under.
        kind: Names its program; families of one kind differ in how they start.
        speed: Its learning rates, over those of LoRA.
        most: The largest size, where a larger one costs too much; 0 for none.
        own: Whether its number of trained numbers cannot be chosen.
        frozen: Names of leaves that are not trained.
        share: Share of the numbers of its state that end up trained.
        mask: Whether `B` has LoRI's mask.
        grams: Whether it starts from the inputs that weights meet.
        dense: Whether its weights can be formed.
        recipe: How it trains.
    """

    title: str
    make: Maker
    group: str
    kind: str = ""
    speed: float = 1.0
    most: int = 0
    own: bool = False
    frozen: tuple[str, ...] = ()
    share: float = 1.0
    mask: bool = False
    grams: bool = False
    dense: bool = True
    recipe: Recipe = PLAIN


def _scaled(make: Callable[..., lrk.Transform], *given: Any, **more: Any) -> Maker:
    """A factory of a rank whose scale is that of the studies."""
    return lambda cut, size: make(
        size, *given, scale=SCALE, select=kernels(cut), **more
    )


def _own_bias(path: str) -> str:
    return path.replace("kernel", "bias")


def _serial(select: Any) -> Maker:
    return lambda _, size: lrk.bottleneck(
        size, activation=jax.nn.gelu, bias=_own_bias, select=select
    )


def _parallel(select: Any) -> Maker:
    return lambda _, size: lrk.parallel(
        size, activation=jax.nn.gelu, scale=SCALE, select=select
    )


def _rs_lora(cut: Cut, size: int) -> lrk.Transform:
    """`alpha / sqrt(r)` for the alpha that gives LoRA its scale."""
    return lrk.lora(size, scale=SCALE * size**0.5, select=kernels(cut))


def _randlora(cut: Cut, size: int) -> lrk.Transform:
    """The size is the number of bases, of the smallest full rank."""
    rank = -(-cut.width // size)
    return lrk.randlora(rank, bases=size, scale=SCALE, select=kernels(cut))


def _loretta(cut: Cut, size: int) -> lrk.Transform:
    """The size is that of the bonds."""
    rank = min(8, cut.width)
    return lrk.loretta(rank, size, scale=SCALE, select=kernels(cut))


def _lokr(cut: Cut, size: int) -> lrk.Transform:
    return lrk.lokr(size, factor=8, scale=SCALE, select=kernels(cut))


def _shira(cut: Cut, size: int) -> lrk.Transform:
    """The size is the number of entries in a thousand."""
    return lrk.shira(size / 1024, select=kernels(cut))


def _fourier(cut: Cut, size: int) -> lrk.Transform:
    """The size is the number of coefficients; one moves an entry by a thousandth."""
    return lrk.fourierft(size, scale=1e-3 * cut.width**2, select=kernels(cut))


def _subspace(cut: Cut, size: int) -> lrk.Transform:
    return lrk.subspace.random(size, lrk.subspace.gather(), select=kernels(cut))


def _ia3(cut: Cut, size: int) -> lrk.Transform:
    del cut, size
    return lrk.ia3(outputs=READ, inputs=BEHIND)


def _same(tx: lrk.Transform) -> lrk.Transform:
    return tx


def _mam(cut: Cut, size: int, gate: Wrap = _same) -> lrk.Transform:
    """Half of the numbers in a prefix, half beside the feed-forward part."""
    prefix = lrk.prefix(max(1, round(2.5 * size)), select=READ)
    return lrk.chain(prefix, gate(_parallel(BEHIND)(cut, size)))


def _mam_learned(cut: Cut, size: int) -> lrk.Transform:
    return lrk.learn_scale(_mam(cut, size))


def _mam_gated(cut: Cut, size: int) -> lrk.Transform:
    return _mam(cut, size, lrk.gated)


def _unipelt(
    cut: Cut, size: int, gate: Wrap = lrk.gated, scaled: Wrap = lrk.learn_scale
) -> lrk.Transform:
    """About a third of the numbers each: LoRA, a prefix, a serial adapter."""
    rank, length = max(1, round(0.75 * size)), max(1, round(1.5 * size))
    return lrk.chain(
        gate(lrk.lora(rank, scale=SCALE, select=QUERY_VALUE)),
        gate(_serial(BEHIND)(cut, size)),
        scaled(lrk.prefix(length, select=READ)),
    )


def _unipelt_fixed(cut: Cut, size: int) -> lrk.Transform:
    return _unipelt(cut, size, _same, _same)


def _orthogonal(cut: Cut, size: int) -> lrk.Transform:
    """The size is half of the rank, which is even."""
    a, b = lrk.adapters.orthogonal_a, lrk.adapters.orthogonal_b
    return lrk.lora(2 * size, scale=SCALE, select=kernels(cut), init=a, init_b=b)


def _trained(select: Any) -> Maker:
    return lambda *_: lrk.full(select=select)


_LORA = _scaled(lrk.lora)
_A = ("a",)
BASIC, STARTS, SHARED = "LoRA and its training", "other starts", "shared or fixed"
FORMS, PARTS, NETS = "other forms of a change", "parts of the model", "added networks"
MIXED, ENDS = "mixtures", "bounds"
FAMILIES = {
    "lora": Family("LoRA", _LORA, BASIC, "lora"),
    "rslora": Family("rsLoRA", _rs_lora, BASIC, "lora"),
    "lora-plus": Family(
        "LoRA+", _LORA, BASIC, "lora-plus", speed=1 / 8, recipe=recipes.LORA_PLUS
    ),
    "lora-fa": Family(
        "LoRA-FA", _LORA, BASIC, "lora-fa", frozen=_A, recipe=recipes.LORA_FA
    ),
    "dora": Family("DoRA", _scaled(lrk.dora), BASIC),
    "adalora": Family(
        "AdaLoRA", _scaled(lrk.adalora), BASIC, share=recipes.KEPT,
        recipe=recipes.ADALORA,
    ),
    "hydra": Family(
        "HydraLoRA, 2 heads", _scaled(lrk.hydra, 2), BASIC, dense=False
    ),
    "mtl-lora": Family("MTL-LoRA, 3 heads, one task", _scaled(lrk.mtl_lora, 3), BASIC),
    "pissa": Family("PiSSA", _scaled(lrk.pissa), STARTS, speed=1 / 2),
    "olora": Family("OLoRA", _scaled(lrk.olora), STARTS, speed=1 / 2),
    "orthogonal": Family("orthogonal", _orthogonal, STARTS, "lora"),
    "eva": Family("EVA, equal ranks", _LORA, STARTS, "lora", grams=True),
    "lori-d": Family("LoRI-D", _LORA, SHARED, "lora", frozen=_A),
    "lori-s": Family(
        "LoRI-S, density 0.1", _LORA, SHARED, "lora", frozen=_A, share=DENSITY,
        mask=True,
    ),
    "vera": Family(
        "VeRA", lambda cut, size: lrk.vera(size, select=kernels(cut)), SHARED,
        speed=16, most=256,
    ),
    "lora-xs": Family("LoRA-XS", _scaled(lrk.lora_xs), SHARED),
    "fact-tt": Family("FacT-TT", _scaled(lrk.fact_tt), SHARED),
    "fact-tk": Family("FacT-TK", _scaled(lrk.fact_tk), SHARED),
    "lorta": Family("LoRTA", _scaled(lrk.lorta, LAYER), SHARED),
    "metatt": Family("MetaTT", _scaled(lrk.metatt, LAYER), SHARED),
    "loretta": Family("LoRETTA, rank 8", _loretta, SHARED),
    "loha": Family("LoHa", _scaled(lrk.loha), FORMS),
    "lokr": Family("LoKr, factor 8", _lokr, FORMS),
    "hira": Family("HiRA", _scaled(lrk.hira), FORMS, speed=8),
    "randlora": Family("RandLoRA", _randlora, FORMS),
    "fourierft": Family("FourierFT", _fourier, FORMS, speed=8),
    "shira": Family("SHiRA", _shira, FORMS),
    "subspace": Family("random subspace", _subspace, FORMS, speed=2),
    "ia3": Family("(IA)3", _ia3, PARTS, speed=8, own=True),
    "bitfit": Family("BitFit", _trained(lrk.is_bias), PARTS, own=True),
    "norms": Family("layer norms", _trained(lrk.is_norm), PARTS, own=True),
    "houlsby": Family(
        "serial bottlenecks (Houlsby)", _serial(WRITE), NETS, dense=False
    ),
    "pfeiffer": Family(
        "serial bottleneck (Pfeiffer)", _serial(BEHIND), NETS, dense=False
    ),
    "parallel": Family("parallel bottlenecks", _parallel(WRITE), NETS, dense=False),
    "prefix": Family(
        "prefix", lambda _, size: lrk.prefix(size, select=READ), NETS, speed=8,
        dense=False,
    ),
    "mam": Family("MAM: prefix and parallel", _mam, MIXED, dense=False),
    "mam-learned": Family(
        "MAM, learned scales", _mam_learned, MIXED, dense=False
    ),
    "mam-gated": Family("MAM, the parallel gated", _mam_gated, MIXED, dense=False),
    "unipelt": Family("UniPELT: three, gated", _unipelt, MIXED, dense=False),
    "unipelt-fixed": Family(
        "UniPELT, fixed scales", _unipelt_fixed, MIXED, dense=False
    ),
    "full": Family(
        "full fine-tuning", lambda cut, _: lrk.full(select=kernels(cut)), ENDS,
        own=True,
    ),
    "probe": Family("head alone", lambda *_: lrk.identity(), ENDS, own=True),
}  # fmt: skip


def names_kept(family: Family, trainable: Any) -> Any:
    """What multiplies each gradient: 0 for what is frozen by its name."""

    def one(keys: tuple[Any, ...], leaf: Any) -> np.float32:
        del leaf
        return np.float32(getattr(keys[-1], "key", "") not in family.frozen)

    return jax.tree_util.tree_map_with_path(one, trainable)


def numbers(family: Family, cut: Cut, size: int) -> int:
    """How many numbers a family of one size trains; nothing is computed."""
    init = family.make(cut, size).init
    own = jax.eval_shape(init, jax.random.key(0), cut.params).trainable
    kept = names_kept(family, own)
    sizes = jax.tree.map(lambda k, x: int(k) * x.size, kept, own)
    return round(family.share * sum(jax.tree.leaves(sizes)))


def fitted(family: Family, cut: Cut, budget: int) -> int:
    """The size whose trained numbers are nearest to a budget; 0 if it has none.

    Sizes that a transform refuses (a rank above a side, say) are too large.
    """
    if family.own:
        return 0

    def above(size: int) -> bool:
        if family.most and size > family.most:
            return True
        try:
            return numbers(family, cut, size) > budget
        except ValueError:
            return True

    low, high = 1, 2
    while not above(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if above(middle) else (middle, high)
    if family.most and high > family.most:
        return low
    try:
        gaps = [abs(numbers(family, cut, size) - budget) for size in (low, high)]
    except ValueError:
        return low
    return low if gaps[0] <= gaps[1] else high
