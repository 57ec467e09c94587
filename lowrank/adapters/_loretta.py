"""LoRETTA: LoRA whose factors are tensor trains."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lowrank import _check, _tree
from lowrank._axes import Axes, resolve
from lowrank._base import Path, PyTree, State, Transform
from lowrank._select import Select, check_select, is_matrix, selected
from lowrank.adapters._lora import Initializer, check_leaves, check_rank, scale_of
from lowrank.operators import LowRank

Sides = tuple[tuple[int, ...], tuple[int, ...]]
# A number of near-equal factors, or a function that gives the factors of a size.
Divide = int | Callable[[int], tuple[int, ...]]


def contracted(cores: list[Array], rows: int) -> Float[Array, "rows columns"]:
    """The matrix of a tensor train: all cores contracted, then cut after some modes."""
    whole = cores[0]
    for core in cores[1:]:
        whole = jnp.tensordot(whole, core, 1)
    return whole.reshape(rows, -1)


def core_shapes(modes: tuple[int, ...], tt_rank: int) -> list[tuple[int, ...]]:
    """Shapes of the cores, one for each mode; the first and the last lack one bond."""
    bonds = [(), *[(tt_rank,)] * (len(modes) - 1), ()]
    return [(*bonds[k], mode, *bonds[k + 1]) for k, mode in enumerate(modes)]


def draw_cores(
    key: Array, modes: tuple[int, ...], tt_rank: int, deviation: float
) -> list[Array]:
    """Gaussian cores whose product has about this deviation."""
    drawn = []
    for k, shape in enumerate(core_shapes(modes, tt_rank)):
        bond = tt_rank if k + 1 < len(modes) else 1
        own = jax.random.normal(jax.random.fold_in(key, k), shape, jnp.float32)
        drawn.append(own * (deviation ** (1 / len(modes)) / math.sqrt(bond)))
    return drawn


def draw_pair(
    key: Array,
    ranks: tuple[int, int],
    modes: Sides,
    init_last: Initializer,
    stack: tuple[int, ...],
) -> dict[str, Array]:
    """All cores of one leaf; each stack index has its own key."""
    (rank, tt_rank), (inputs, outputs) = ranks, modes

    def draw(key: Array) -> dict[str, Array]:
        for_a, for_b, for_last = jax.random.split(key, 3)
        n, m = math.prod(inputs), math.prod(outputs)
        a = draw_cores(for_a, (*inputs, rank), tt_rank, (n + rank) ** -0.5)
        b = draw_cores(for_b, (rank, *outputs), tt_rank, (m + rank) ** -0.5)
        b[-1] = init_last(for_last, b[-1].shape, jnp.float32)
        sides = {"a": a, "b": b}
        return {
            f"{s}{k}": core for s, own in sides.items() for k, core in enumerate(own)
        }

    if not stack:
        return draw(key)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(math.prod(stack)))
    drawn = jax.vmap(draw)(keys)
    return {name: core.reshape(*stack, *core.shape[1:]) for name, core in drawn.items()}


def factor_pair(
    cores: Mapping[str, Array], rank: int, sizes: Axes
) -> tuple[Array, Array]:
    """`A: [*stack, *in, r]` and `B: [*stack, r, *out]` from their cores."""

    def pair(own: Mapping[str, Array]) -> tuple[Array, Array]:
        a, b = (
            [own[f"{side}{k}"] for k in range(len(own)) if f"{side}{k}" in own]
            for side in "ab"
        )
        return contracted(a, math.prod(sizes.inputs)), contracted(b, rank)

    for _ in sizes.stack:
        pair = jax.vmap(pair)
    a, b = pair(dict(cores))
    return (
        a.reshape(*sizes.stack, *sizes.inputs, rank),
        b.reshape(*sizes.stack, rank, *sizes.outputs),
    )


def balanced(size: int, count: int) -> tuple[int, ...]:
    """A size as so many factors, as near to each other as divisors allow."""
    factors = []
    for left in range(count, 0, -1):
        most = round(size ** (1 / left) + 1e-9) if left > 1 else size
        factor = next(f for f in range(most, 0, -1) if size % f == 0)
        factors.append(factor)
        size //= factor
    return tuple(factors)


def loretta(
    rank: int,
    tt_rank: int,
    *,
    divide: Divide = 3,
    alpha: Any = None,
    scale: Any = None,
    select: Select = is_matrix,
    axes: Mapping[Path, Axes] | None = None,
    init_last: Initializer = jax.nn.initializers.zeros,
) -> Transform:
    """LoRETTA (rep): LoRA whose `A` and `B` are tensor trains.

    A kernel `W: [n, m]` becomes `W + s A B` with `A: [n, r]` the matrix of a train over
    the modes `(n_1, ..., n_d, r)` and `B: [r, m]` of one over `(r, m_1, ..., m_d)`,
    where `n_1 ... n_d = n` and `m_1 ... m_d = m`. Both are contracted once in each
    `apply`; the product stays factored.

    Args:
        rank: Inner size `r`, at least 1 and at most the smaller side of each leaf.
        tt_rank: Size of the bonds between cores, at least 1.
        divide: Number `d` of near-equal factors of each side, at least 1; or a function
            that gives the factors of a size.
        alpha: The scale `s` is `alpha / rank`; None for a scale of 1. May be traced.
        scale: The scale itself, in place of `alpha`. May be traced.
        select: Which leaves to adapt; called once, in `init`, as `select(path, leaf)`.
        axes: As for `lora`.
        init_last: Initializer of the last core of `B`, called as
            `init_last(key, (tt_rank, m_d), float32)` for each stack index.

    Returns:
        A transform that is the identity at init (with the default `init_last`).
        Trainable, float32: the cores `a0 ... ad` and `b0 ... bd`, with the stack in
        front. Fixed: `scale`. What `apply` gives is a plain `LowRank` for each leaf.

    Raises:
        TypeError: If `rank` or `tt_rank` is not an int, or `divide` neither int nor
            function.
        ValueError: If `rank`, `tt_rank` or `divide` is below 1, or `alpha` and `scale`
            are both given; in `init`, if a selected leaf cannot be adapted, or `divide`
            gives no factors of its sides; in `apply`, if the state is of another tree.

    Example:
        >>> tx = lrk.loretta(2, 3, divide=2)
        >>> state = tx.init(jax.random.key(0), {"w": jnp.ones((12, 16))})
        >>> {name: core.shape for name, core in state.trainable["w"].items()}
        {'a0': (3, 3), 'a1': (3, 4, 3), 'a2': (3, 2),
         'b0': (2, 3), 'b1': (3, 4, 3), 'b2': (3, 4)}

    Notes:
        In the authors' code all cores are drawn, so that the model starts beside `W`;
        here the last core of `B` is zero (`init_last` draws it). They tabulate the
        modes of common sizes; `divide` takes such a table. Norms and heads that they
        train beside it are `lrk.full(select=...)` in a chain.

    References:
        Yang et al., LoRETTA, 2024, arXiv:2402.11417: LoRETTA_rep, `dW = s A B` with
        both matrices as trains, `A[i_1 ... i_d, j] = G_0[i_1] G_1[i_2] ... G_d[j]`,
        with the cores' Gaussian deviations of the authors' code.
    """
    rank, tt_rank = check_rank("loretta", rank), _check_tt_rank(tt_rank)
    check_select("loretta", select)
    number = scale_of("loretta", rank, alpha, scale)
    factors = _check_divide(divide)

    def start(key: Array, params: PyTree) -> State:
        _check.check_key("loretta", key)
        chosen = selected("loretta", params, select)
        found = resolve("loretta", chosen, axes)
        check_leaves("loretta", rank, chosen, found)
        modes = _modes(factors, chosen, found)
        trainable = {}
        for path, leaf in chosen.items():
            stack = found[path].sizes(leaf.shape).stack
            mine = _tree.leaf_key(key, path)
            ranks = (rank, tt_rank)
            trainable[path] = draw_pair(mine, ranks, modes[path], init_last, stack)
        fixed = {p: {"scale": jnp.asarray(number, jnp.float32)} for p in chosen}
        return State(trainable, fixed)

    def apply(params: PyTree, state: State, *, key: Array | None = None) -> PyTree:
        del key
        leaves = _tree.leaves("loretta", params)
        _check.check_state("loretta", leaves, state, fixed=("scale",))
        chosen = {path: leaves[path] for path in state.fixed}
        found = resolve("loretta", chosen, axes)
        modes = _modes(factors, chosen, found)
        wanted = {}
        for path, leaf in chosen.items():
            stack = found[path].sizes(leaf.shape).stack
            wanted[path] = _wanted(stack, rank, tt_rank, modes[path])
        _check.check_shapes("loretta", state.trainable, wanted)
        new = {}
        for path, w in chosen.items():
            dims = found[path]
            sizes = dims.sizes(w.shape)
            a, b = factor_pair(state.trainable[path], rank, sizes)
            held = {"a_dims": dims.a_dims, "b_dims": dims.b_dims}
            scaled = {"scale": state.fixed[path]["scale"]}
            new[path] = LowRank._make(w=w, a=a, b=b, **scaled, **held)
        _check.check_operators("loretta", new)
        return _tree.replace("loretta", params, new)

    return Transform(start, apply)


def _wanted(
    stack: tuple[int, ...], rank: int, tt_rank: int, modes: Sides
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a leaf's cores."""
    sides = {"a": (*modes[0], rank), "b": (rank, *modes[1])}
    return {
        f"{side}{k}": (*stack, *shape)
        for side, own in sides.items()
        for k, shape in enumerate(core_shapes(own, tt_rank))
    }


def _check_tt_rank(tt_rank: Any) -> int:
    """The size of bonds as an int.

    Raises:
        TypeError: If it is no int.
        ValueError: If it is below 1.
    """
    if isinstance(tt_rank, bool) or not isinstance(tt_rank, int):
        raise TypeError(f"loretta: tt_rank must be an int, got {tt_rank!r}.")
    if tt_rank < 1:
        raise ValueError(f"loretta: tt_rank must be at least 1, got {tt_rank}.")
    return tt_rank


def _check_divide(divide: Any) -> Callable[[int], Any]:
    """A function that gives the factors of a size.

    Raises:
        TypeError: If it is neither an int nor a function.
        ValueError: If it is below 1.
    """
    if callable(divide):
        return divide
    if isinstance(divide, bool) or not isinstance(divide, int):
        raise TypeError(
            f"loretta: divide must be an int or a function of a size, got {divide!r}."
        )
    if divide < 1:
        raise ValueError(f"loretta: divide must be at least 1, got {divide}.")
    return functools.partial(balanced, count=divide)


def _modes(
    factors: Callable[[int], Any],
    chosen: Mapping[Path, Any],
    found: Mapping[Path, Axes],
) -> dict[Path, Sides]:
    """The factors of both sides of every leaf.

    Raises:
        ValueError: If their product is another size; all such leaves are named.
    """
    modes, bad = {}, []
    for path, leaf in chosen.items():
        sizes = found[path].sizes(leaf.shape)
        sides = [math.prod(dims) for dims in (sizes.inputs, sizes.outputs)]
        own = [tuple(factors(side)) for side in sides]
        modes[path] = (own[0], own[1])
        wrong = [f"{s} as {o}" for s, o in zip(sides, own, strict=True) if _odd(s, o)]
        bad += [f"{_tree.describe(path, leaf)}: {case}" for case in wrong]
    if bad:
        raise ValueError(
            f"loretta: divide gives {'; '.join(bad)}. Return positive ints whose "
            "product is the size."
        )
    return modes


def _odd(size: int, factors: tuple[Any, ...]) -> bool:
    """Whether these are no factors of a size."""
    whole = all(isinstance(factor, int) and factor > 0 for factor in factors)
    return not factors or not whole or math.prod(factors) != size
