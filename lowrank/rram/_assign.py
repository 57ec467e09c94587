"""Which row of the crossbar each row of a weight sits on: the best of all matchings."""

import functools
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from lowrank import _compat, _tree
from lowrank._axes import Axes, resolve
from lowrank._base import Path, PyTree, State
from lowrank._combine import state_parts
from lowrank.operators import _dispatch as ask
from lowrank.operators._rows import matrix_shape, to_matrix
from lowrank.rram._importance import check_fit
from lowrank.rram._permute import Spare, spare_rows
from lowrank.rram._program import Chip, read_back

Matrix = Float[Array, "rows cols"]
Costs = Float[Array, "rows places"]


class Assignment(NamedTuple):
    """A placement of rows, and what it is worth.

    Attributes:
        rows: By path, int32 `[*stack, R]`: row `r` of the weight sits on row `rows[r]`
            of the crossbar. What `permute` and `unpermute` take.
        seconds: Time that it took, of the wall clock; the first includes compiling.
        cost: By path, the weighted squared error of the weights `(before, after)`: with
            each row where it is, and as assigned; summed over a stack.
    """

    rows: dict[Path, Array]
    seconds: float
    cost: dict[Path, tuple[float, float]]


@functools.partial(jax.jit, static_argnames=("scheme", "columns"))
def placement_costs(
    w: Matrix, omega: Matrix, chip: Chip, scheme: Any, columns: bool = True
) -> Costs:
    """`C[r, q] = sum_j omega[r, j] (w_hat[j] - w[r, j])^2`, row `r` in place `q`.

    One place after another is programmed with every row, so that no array `[rows,
    places, cols]` is formed: exact whatever the cells do. (As ten matrix products,
    which need conductances affine in what is asked for, it takes as long.)
    """
    cells, numbers = parts(chip)

    def one(place: dict[str, Array]) -> Array:
        own = {n: x[:, None] for n, x in place.items()}
        error = read_back(w, numbers | own, scheme, None, columns) - w
        return jnp.sum(omega * error * error, axis=-1)

    return lax.map(one, {n: jnp.moveaxis(x, 1, 0) for n, x in cells.items()}).T


def parts(chip: Chip) -> tuple[dict[str, Array], dict[str, Array]]:
    """A chip's cells, and the numbers that all of them share."""
    size = chip["gain"].shape
    cells = {n: x for n, x in chip.items() if x.shape == size}
    return cells, {n: x for n, x in chip.items() if n not in cells}


def match(costs: np.ndarray) -> np.ndarray:
    """The place of each row such that the costs sum to the least: Hungarian method."""
    from scipy.optimize import linear_sum_assignment  # JAX depends on SciPy

    return linear_sum_assignment(costs)[1].astype(np.int32)


def assign(
    params: PyTree,
    state: State,
    scheme: Any,
    importance: PyTree,
    *,
    spare: Spare = 0,
    columns: bool = True,
    axes: Mapping[Path, Axes] | None = None,
) -> Assignment:
    """Assign rows of weights to rows of a chip, so that important ones are healthy.

    Row `r` on row `q` of the crossbar costs `C[r, q] = sum_j omega[r, j] (w_hat[j] -
    w[r, j])^2` with `w_hat` what the cells of row `q` make of `w[r]`. The placement of
    least total cost is found exactly. Runs on the host, once for each chip.

    Args:
        params: The weights, as they are wanted.
        state: The state of `crossbar`, or of a chain that holds one: the chip. It has
            `spare` rows more than the weights.
        scheme: The device's scheme.
        importance: `omega`, an array by path for each leaf on the chip, not negative:
            what `importance` or `fisher_importance` gives.
        spare: As for `permute`.
        columns: As for `crossbar`.
        axes: As for `crossbar`.

    Returns:
        An `Assignment`. `cost[path][1]` is the least of all placements, and so not
        above `cost[path][0]`.

    Raises:
        TypeError: If an argument is traced, or `spare` is no int.
        ValueError: If `spare < 0`, the state holds no chip or that of another tree, the
            importance does not fit, or numbers are negative or not finite.

    Example:
        >>> params = {"w": jnp.asarray([[1.0, 1.0], [0.0, 0.0]])}
        >>> device = lrk.rram.Device()
        >>> state = lrk.rram.crossbar(device).init(jax.random.key(0), params)
        >>> codes = jnp.zeros((2, 2, 2), int).at[:, 0].set(lrk.rram.HRS)
        >>> state = lrk.rram.with_faults(state, {"w": codes})  # the first word line
        >>> omega = {"w": jnp.ones((2, 2))}
        >>> found = lrk.rram.assign(params, state, device.scheme, omega)
        >>> found.rows["w"].tolist(), [round(c, 3) for c in found.cost["w"]]
        ([1, 0], [2.0, 0.0])

    Notes:
        Costs are those of the weights: converters, read noise and wires are not
        counted. The scale of a column is that of the whole column, which no permutation
        changes; with tiles the chip's scales depend on the placement, and the costs
        are those without tiles. A spare row that stays empty is driven by zero volts,
        so its cells cost nothing.
        Time grows with the cube of the rows: well under a second for 784 x 512 weights
        on two CPU cores.

    References:
        Chen et al., DATE 2017 (as cited by later work): bipartite matching of weight
        rows to crossbar rows, with redundant rows; their cost is known only from later
        work. Kuhn, The Hungarian method, 1955.
    """
    start = time.perf_counter()
    traced = jax.tree.leaves((params, state, importance))
    if not all(map(_compat.is_known, traced)):
        raise TypeError(
            "assign: runs on the host, and something is traced. Call it outside "
            "jax.jit and jax.vmap, once for each chip."
        )
    inputs = chip_inputs("assign", params, state, importance, axes, spare)
    _check_numbers(inputs)
    rows, cost = {}, {}
    for path, (w, omega, chip) in inputs.items():
        (cells, numbers), stack = parts(chip), w.shape[:-2]
        found = np.zeros((*stack, w.shape[-2]), np.int32)
        before = after = 0.0
        for i in np.ndindex(stack):
            own = {n: x[i] for n, x in cells.items()} | numbers
            costs = np.asarray(
                placement_costs(w[i], omega[i], own, scheme, columns), np.float64
            )
            found[i] = match(costs)
            places = np.arange(costs.shape[0])
            before += float(costs[places, places].sum())
            after += float(costs[places, found[i]].sum())
        rows[path], cost[path] = jnp.asarray(found), (before, after)
    return Assignment(rows, time.perf_counter() - start, cost)


# --- what a chip and its weights are, as matrices ------------------------------------


def chip_inputs(
    who: str,
    params: PyTree,
    state: State,
    importance: PyTree,
    axes: Mapping[Path, Axes] | None,
    spare: Spare = 0,
) -> dict[Path, tuple[Array, Array, dict[str, Array]]]:
    """Weights, importance and cells of every leaf on a chip, as matrices.

    Raises:
        ValueError: If the state holds no chip or one of another tree, or the importance
            does not fit; all leaves are named.
    """
    chips = chips_of(who, state)
    leaves = _tree.leaves(who, params)
    missing = [path for path in chips if path not in leaves]
    if missing:
        near = _tree.quoted(_tree.nearest(missing, leaves))
        raise ValueError(
            f"{who}: the chip has {_tree.quoted(missing)}, which the parameters lack; "
            f"the nearest paths are {near}. Pass the tree that init saw."
        )
    more = spare_rows(who, chips, spare)
    chosen = {path: leaves[path] for path in chips}
    dims = resolve(who, chosen, axes)
    bad = []
    for path, leaf in chosen.items():
        *stack, rows, cols = matrix_shape(leaf, dims[path])
        cells = (*stack, 2, rows + more.get(path, 0), cols)
        have = tuple(chips[path]["gain"].shape)
        if have != cells:
            bad.append(f"'{path}': expected cells {cells}, got {have}")
    if bad:
        raise ValueError(
            f"{who}: the chip does not fit: {'; '.join(bad)}. Pass the state of a "
            "crossbar for these weights, with as many rows more as spare= says."
        )
    omega = _tree.leaves(who, importance)
    check_fit(who, "importance", {p: tuple(w.shape) for p, w in chosen.items()}, omega)

    def matrix(path: Path, leaf: Any) -> Array:
        return to_matrix(jnp.asarray(ask.dense(leaf), jnp.float32), dims[path])

    return {p: (matrix(p, w), matrix(p, omega[p]), chips[p]) for p, w in chosen.items()}


def is_chip(leaf: Any) -> bool:
    """Whether a leaf of a state holds cells."""
    return isinstance(leaf, Mapping) and {"gain", "offset"} <= set(leaf)


def chips_of(who: str, state: State) -> dict[Path, dict[str, Array]]:
    """The chip of every path.

    Raises:
        ValueError: If there is none, or two for one path.
    """
    parts = [part for part in state_parts(state.fixed) if isinstance(part, Mapping)]
    pairs = [
        (path, dict(leaf))
        for part in parts
        for path, leaf in part.items()
        if is_chip(leaf)
    ]
    if not pairs:
        raise ValueError(
            f"{who}: the state holds no chip. Pass the State that lrk.rram.crossbar's "
            "init returned, or that of a chain that holds it."
        )
    names = [path for path, _ in pairs]
    twice = sorted({path for path in names if names.count(path) > 1})
    if twice:
        raise ValueError(
            f"{who}: the state holds two chips for {_tree.quoted(twice)}. Pass the "
            "state of one crossbar."
        )
    return dict(pairs)


def _check_numbers(inputs: Mapping[Path, tuple[Array, Array, Any]]) -> None:
    """Refuse numbers that no cost can be made of.

    Raises:
        ValueError: If there are any; all leaves are named.
    """
    bad = []
    for path, (w, omega, _) in inputs.items():
        if not bool(jnp.isfinite(w).all()):
            bad.append(f"'{path}' has weights that are not finite")
        if not bool((jnp.isfinite(omega) & (omega >= 0)).all()):
            bad.append(f"'{path}' has importance that is negative or not finite")
    if bad:
        raise ValueError(
            f"assign: {'; '.join(bad)}. Pass weights as they are wanted, and "
            "importance of at least 0."
        )
