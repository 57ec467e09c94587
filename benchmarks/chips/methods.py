"""Ways to heal a chip: what each trains or computes, and what it keeps."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import lowrank as lrk
from benchmarks.chips.nets import Net
from lowrank import rram

TITLES = {
    "none": "no action",
    "head": "new head only",
    "bias": "biases only",
    "svd": "SVD of the known error",
    "svdw": "activation-weighted SVD",
    "patch": "sparse patch, largest |E|",
    "patchw": "sparse patch, largest E^2 E[x^2]",
    "subspace": "random subspace",
    "lori-s": "LoRI-S, mask by calibration",
    "lori-f": "LoRI-S, fault-aware mask",
    "lori-d": "LoRI-D",
    "lora": "LoRA",
    "itt": "ITT",
    "retrain": "retraining through the map",
}
SIZED = ("svd", "svdw", "patch", "patchw", "subspace", "lori-s", "lori-f", "lori-d")
SIZED += ("lora",)
GROUPS = {
    "direct": ("none", "svd", "svdw", "patch", "patchw"),
    "low": ("head", "bias", "lori-s", "lori-f", "lori-d", "lora"),
    "subspace": ("subspace",),
    "full": ("retrain", "itt"),
}
"""Kinds that one compiled call heals together; the product with the base is shared."""
WHAT = {
    "patch": "weights",
    "patchw": "weights",
    "subspace": "numbers",
    "lori-s": "entries",
    "lori-f": "entries",
}
FLOAT = INDEX = 4  # bytes


class Way(NamedTuple):
    """A kind with its size: a rank, or a count of numbers; 0 where there is none."""

    kind: str
    size: int = 0

    @property
    def name(self) -> str:
        """As rows are named: `lora-8`."""
        return f"{self.kind}-{self.size}" if self.size else self.kind

    @property
    def title(self) -> str:
        """As tables show it."""
        title = TITLES[self.kind]
        if not self.size:
            return title
        what = WHAT.get(self.kind, "rank")
        own = f"rank {self.size}" if what == "rank" else f"{self.size:,} {what}"
        return f"{title}, {own}"

    @property
    def group(self) -> str:
        """Which compiled call it belongs to."""
        return next(name for name, kinds in GROUPS.items() if self.kind in kinds)

    @property
    def trained(self) -> bool:
        """Whether it takes steps, and so has a learning rate."""
        return self.group != "direct"


def parse(name: str) -> Way:
    """A way from its name.

    Raises:
        ValueError: If there is none of that name.
    """
    kind, _, size = name.rpartition("-")
    if name in TITLES and name not in SIZED:
        return Way(name)
    if kind in SIZED and size.isdigit() and int(size) > 0:
        return Way(kind, int(size))
    raise ValueError(
        f"methods: no way {name!r}: expected one of {list(TITLES)}, with a size after "
        f"a dash for {list(SIZED)}."
    )


def kernels(path: str, leaf: Any) -> bool:
    """Kernels sit on the chip, biases are digital."""
    del path
    return len(leaf.shape) > 1


def sides(net: Net) -> dict[str, tuple[int, int]]:
    """Rows and columns of every kernel, by path, as matrices."""
    shapes = {path: tuple(leaf_at(net.params, path).shape) for path in net.axes}
    return {p: (math.prod(shape[:-1]), shape[-1]) for p, shape in shapes.items()}


def low_rank(make: Any, rank: int, net: Net, **more: Any) -> lrk.Transform:
    """A low-rank adapter on every kernel; where a side is shorter, of that rank."""
    ranks: dict[int, list[str]] = {}
    for path, size in sides(net).items():
        ranks.setdefault(min(rank, *size), []).append(path)
    members = [
        make(
            own,
            select=lrk.matching("^(" + "|".join(paths) + ")$"),
            axes={path: net.axes[path] for path in paths},
            **more,
        )
        for own, paths in ranks.items()
    ]
    return members[0] if len(members) == 1 else lrk.chain(*members)


def head_of(net: Net) -> str:
    """The path of the last layer, with a slash."""
    return max(sides(net)).rpartition("/")[0] + "/"


def transform(way: Way, net: Net, mask_rank: int) -> lrk.Transform:
    """What a trained way puts beside the deployed weights."""
    if way.kind == "head":
        return lrk.full(select=lrk.matching("^" + head_of(net)))
    if way.kind == "bias":
        return lrk.full(select=lrk.matching("bias$"))
    if way.kind == "subspace":
        return lrk.subspace.random(way.size, lrk.subspace.gather())
    if way.kind == "lora":
        return low_rank(lrk.lora, way.size, net)
    rank = way.size if way.kind == "lori-d" else mask_rank
    return low_rank(lrk.lori, rank, net)


def unit(way: Way, net: Net) -> float:
    """What a step of one learning rate means: for a subspace, a step of a weight.

    Each weight takes `z / sqrt(D / d)`, so a number moves by the inverse of it.
    """
    if way.kind != "subspace":
        return 1.0
    total = sum(leaf.size for leaf in jax.tree.leaves(net.params))
    return math.sqrt(total / way.size)


def calibrated(state: lrk.State, count: int) -> Any:
    """LoRI's own mask, from a trained LoRI-D: the largest entries of B."""
    return _top(state.trainable, count)


def fault_aware(state: lrk.State, error: Mapping[str, Any], count: int) -> Any:
    """A mask without training: the entries of B that the error pulls most, `|A^T E|`.

    With A fixed, `A^T E` is the gradient of `|A B - E|^2 / 2` at B of zero, but for the
    sign: columns with much error keep many entries.
    """
    size = {
        path: {"b": jnp.abs(_pull(own["a"], error[path]))}
        for part in parts(state.fixed)
        for path, own in part.items()
    }
    return _top(size, count)


def _pull(a: jax.Array, error: jax.Array) -> jax.Array:
    own = a.reshape(-1, a.shape[-1])
    return own.T @ error.reshape(own.shape[0], -1)


def _top(trainable: Any, count: int) -> dict[str, jax.Array]:
    """The mask, by path, of the `count` largest entries of B over the whole net."""
    own = {path: part[path]["b"] for part in parts(trainable) for path in part}
    total = sum(b.size for b in own.values())
    state = lrk.State({p: {"b": b} for p, b in own.items()}, {})
    return dict(lrk.lori_mask(state, density=min(1.0, (count + 0.5) / total)))


def parts(side: Any) -> tuple[Mapping[str, Any], ...]:
    """The members of one half of a state, whether of a chain or not."""
    return side if isinstance(side, tuple) else (side,)


def masked(grads: Any, mask: Mapping[str, jax.Array]) -> Any:
    """Gradients of B that are zero outside a mask."""
    found = tuple(
        {path: {"b": own["b"] * mask[path]} for path, own in part.items()}
        for part in parts(grads)
    )
    return found if isinstance(grads, tuple) else found[0]


def truncated(adapted: Any, rank: int) -> Any:
    """An SVD correction cut to a lower rank: its columns are in falling order."""

    def cut(leaf: Any) -> Any:
        if not isinstance(leaf, lrk.LowRank):
            return leaf
        return leaf.replace(a=leaf.a[..., :rank], b=leaf.b[:rank])

    is_leaf = lambda leaf: isinstance(leaf, lrk.LowRank)  # noqa: E731
    return jax.tree.map(cut, adapted, is_leaf=is_leaf)


def patched(
    net: Net, params: Any, deployed: Any, way: Way, energy: Mapping[str, Any]
) -> Any:
    """The `size` most important wrong weights, put right.

    Importance is `|E|`, or the energy `E^2 E[x^2]` that the error of a weight sends to
    an output, over all positions of a convolution.
    """
    if way.kind == "patch":
        return rram.patch(params, deployed, way.size, select=kernels)
    weight = {}
    for path in sides(net):
        wrong = leaf_at(params, path) - leaf_at(deployed, path)
        rows = energy[path].reshape(*wrong.shape[:-1], 1)
        weight[path] = jnp.square(wrong) * rows
    return rram.patch(params, deployed, way.size, importance=weight, select=kernels)


def leaf_at(tree: Any, path: str) -> Any:
    """The leaf of a nested dict at a path."""
    for name in path.split("/"):
        tree = tree[name]
    return tree


class Cost(NamedTuple):
    """What a way keeps and does beside the chip.

    Attributes:
        numbers: Digital values that belong to one chip.
        bytes: Of those values, and of the places that have to be kept with them.
        seeded: Further numbers that a seed gives back: a frozen A, a projection.
        multiply_adds: Digital ones, for one image.
        written: Whether the chip's cells are programmed anew.
    """

    numbers: int
    bytes: int
    seeded: int
    multiply_adds: int
    written: bool


def positions(net: Net) -> dict[str, int]:
    """How many times an image meets each kernel: the positions of a convolution."""
    where = {"conv1": 24 * 24, "conv2": 8 * 8}
    return {path: where.get(path.split("/")[0], 1) for path in sides(net)}


def cost(way: Way, net: Net, mask_rank: int) -> Cost:
    """What a way costs; counts that depend on the chip are those of even spread."""
    shapes, uses = sides(net), positions(net)
    weights = sum(n * m for n, m in shapes.values())
    products = sum(n * m * uses[path] for path, (n, m) in shapes.items())
    kind, size = way.kind, way.size
    if kind in ("none", "itt", "retrain"):
        return Cost(0, 0, 0, 0, kind != "none")
    if kind in ("patch", "patchw"):
        own = rram.patch_bytes(size, value=FLOAT, index=INDEX)
        return Cost(size, own, 0, round(products * size / weights), False)
    if kind == "subspace":
        total = sum(leaf.size for leaf in jax.tree.leaves(net.params))
        return Cost(size, FLOAT * size, total, products, False)
    if kind == "bias":
        own = sum(m for _, m in shapes.values())
        return Cost(own, FLOAT * own, 0, 0, False)
    if kind == "head":
        n, m = shapes[head_of(net) + "kernel"]
        return Cost(n * m + m, FLOAT * (n * m + m), 0, n * m, False)
    return _low_cost(way, shapes, uses, mask_rank)


def _low_cost(
    way: Way,
    shapes: Mapping[str, tuple[int, int]],
    uses: Mapping[str, int],
    mask_rank: int,
) -> Cost:
    """The cost of a pair of factors."""
    masks = way.kind in ("lori-s", "lori-f")
    size = mask_rank if masks else way.size
    ranks = {path: min(size, *own) for path, own in shapes.items()}
    ins = {path: ranks[path] * shapes[path][0] for path in shapes}
    outs = {path: ranks[path] * shapes[path][1] for path in shapes}
    down = sum(ins[path] * uses[path] for path in shapes)
    up = sum(outs[path] * uses[path] for path in shapes)
    a, b = sum(ins.values()), sum(outs.values())
    if masks:
        kept = min(way.size, b)
        work = down + round(up * kept / b)
        return Cost(kept, (FLOAT + INDEX) * kept, a, work, False)
    if way.kind == "lori-d":
        return Cost(b, FLOAT * b, a, down + up, False)
    return Cost(a + b, FLOAT * (a + b), 0, down + up, False)
