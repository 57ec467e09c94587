"""Ways to heal a chip that holds the upper layers of an encoder, and what they cost."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lowrank as lrk
from benchmarks.study import methods as study
from benchmarks.study.encoder import Cut, kernels

DIGITAL = lrk.matching(r"^layer/\d+/.*(bias|LayerNorm/scale)$")


class Way(NamedTuple):
    """One way.

    Attributes:
        title: What tables call it.
        kind: Which program trains it: `lora`, `digital` (biases and norms), `subspace`
            or `retrain` (the matrices, through the map, written to the chip again); or
            `svd`, `patch`, `head`, `none`, which train nothing beside it.
        trains_a: For LoRA: whether A is trained.
        share: Rank as a multiple of the table's rank.
        mask: For LoRI-S: how the mask on B is found.
        weighted: For the SVD: whether by the activations.
        mapped: For retraining: whether it starts from weights programmed by the map.
    """

    title: str
    kind: str
    trains_a: bool = False
    share: float = 1.0
    mask: str = ""
    weighted: bool = False
    mapped: bool = False

    @property
    def trained(self) -> bool:
        """Whether it takes steps, and so has a learning rate."""
        return self.kind in ("lora", "digital", "subspace", "retrain")


WAYS = {
    "none": Way("no action", "none"),
    "head": Way("new head only", "head"),
    "digital": Way("biases and norms", "digital"),
    "svd": Way("SVD of the known error, rank r", "svd"),
    "svd-wide": Way("SVD of the known error, rank 4 r", "svd", share=4),
    "svd-weighted": Way("activation-weighted SVD, rank r", "svd", weighted=True),
    "patch": Way("sparse patch, bytes of rank r", "patch"),
    "subspace": Way("random subspace", "subspace"),
    "lori-s": Way("LoRI-S, mask by calibration", "lora", mask="calibrated"),
    "lori-s-fault": Way("LoRI-S, fault-aware mask", "lora", mask="fault"),
    "lori-d": Way("LoRI-D, rank r", "lora"),
    "lora-tiny": Way("LoRA, rank r / 8", "lora", trains_a=True, share=0.125),
    "lora-small": Way("LoRA, rank r / 4", "lora", trains_a=True, share=0.25),
    "lora-half": Way("LoRA, rank r / 2", "lora", trains_a=True, share=0.5),
    "lora": Way("LoRA, rank r", "lora", trains_a=True),
    "lora-wide": Way("LoRA, rank 2 r", "lora", trains_a=True, share=2),
    "retrain": Way("retraining through the map", "retrain"),
    "retrain-mapped": Way("ITT's programming, then retraining", "retrain", mapped=True),
}
# What other points and fewer labels are compared on.
FEW = ("none", "head", "digital", "svd-weighted", "lori-d", "lora", "retrain")
TRAINED = tuple(name for name, way in WAYS.items() if way.trained)


def rank_of(way: Way, rank: int) -> int:
    """The rank of a way."""
    return max(1, round(way.share * rank))


def dimension(cut: Cut, rank: int, density: float) -> int:
    """How many numbers the subspace has: as many as LoRI-S trains."""
    return max(1, int(density * sum(rank * m for _, m in shapes(cut).values())))


def patch_count(cut: Cut, rank: int) -> int:
    """Entries of a patch that takes the bytes of a LoRA: a value and a place each."""
    return sum(rank * (n + m) for n, m in shapes(cut).values()) // 2


def shapes(cut: Cut) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of each matrix on the chip, by path."""
    state = jax.eval_shape(
        lrk.lora(1, select=kernels(cut)).init, jax.random.key(0), cut.params
    )
    return {
        path: (own["a"].shape[0], own["b"].shape[1])
        for path, own in state.trainable.items()
    }


def transform(way: Way, cut: Cut, rank: int, density: float) -> lrk.Transform:
    """What trains a way: one for each kind."""
    if way.kind == "digital":
        return lrk.full(select=DIGITAL)
    if way.kind == "subspace":
        return lrk.subspace.random(
            dimension(cut, rank, density),
            lrk.subspace.gather(),
            select=kernels(cut),
        )
    return lrk.lora(rank, alpha=study.SCALE * rank, select=kernels(cut))


def start(way: Way, state: lrk.State, mask: Any, rank: int) -> tuple[Any, Any]:
    """The state that training starts from, and what multiplies its gradients.

    LoRA of any rank, LoRI-D and LoRI-S are one program: LoRI is LoRA whose gradient is
    0 on A, and its mask is on the gradient of B; a smaller rank has columns of zeros.
    """
    method = study.Method(
        way.title,
        kind="lora" if way.kind == "lora" else "full",
        trains_a=way.trains_a,
        rank=rank_of(way, rank) if way.share < 1 else 0,
    )
    keep = study.keep(method, state.trainable, mask)
    return study.start(method, state, mask, None), keep


def fault_mask(
    state: lrk.State, error: Mapping[str, Any], density: float
) -> dict[str, np.ndarray]:
    """LoRI's mask without training: where `A^T E` is largest, over all matrices.

    With A fixed, `A^T E` is how strongly each entry of B is pulled by the error that
    the chip is known to have.
    """
    pull = {
        path: {"b": jnp.abs(jnp.asarray(own["a"]).T @ error[path])}
        for path, own in state.trainable.items()
    }
    mask = lrk.lori_mask(lrk.State(pull, {}), density=density)
    return {path: np.asarray(own) for path, own in mask.items()}


def calibrated_mask(trainable: Any, density: float) -> dict[str, np.ndarray]:
    """LoRI's own mask: the largest entries of the B that LoRI-D trained on the chip."""
    own = {p: {"b": jnp.asarray(x["b"])} for p, x in trainable.items()}
    mask = lrk.lori_mask(lrk.State(own, {}), density=density)
    return {path: np.asarray(found) for path, found in mask.items()}


class Cost(NamedTuple):
    """Digital numbers kept for one chip, their bytes, and multiply-adds per token."""

    numbers: int
    bytes: int
    multiply_adds: int


def cost(name: str, cut: Cut, rank: int, density: float) -> Cost:
    """What a way keeps beside the chip, the head left out.

    Values have 4 bytes, and so have places. A frozen A and the places of the subspace
    come from a seed. The change of the subspace has no fast product: it is formed.
    """
    way, sizes = WAYS[name], shapes(cut)
    own = rank_of(way, rank)
    low = sum(own * (n + m) for n, m in sizes.values())
    ins = sum(own * n for n, _ in sizes.values())
    outs = low - ins
    kept = dimension(cut, rank, density)
    if way.kind in ("none", "head", "retrain"):
        return Cost(0, 0, 0)
    if way.kind == "digital":
        leaves = jax.eval_shape(
            lrk.full(select=DIGITAL).init, jax.random.key(0), cut.params
        )
        numbers, _ = lrk.count(leaves)
        return Cost(numbers, 4 * numbers, 0)  # they are added either way
    if way.kind == "patch":
        count = patch_count(cut, rank)
        return Cost(count, lrk.rram.patch_bytes(count), count)
    if way.kind == "subspace":
        return Cost(kept, 4 * kept, sum(n * m for n, m in sizes.values()))
    if way.mask:
        return Cost(kept, 8 * kept, ins + kept)
    if way.kind == "lora" and not way.trains_a:
        return Cost(outs, 4 * outs, low)
    return Cost(low, 4 * low, low)
