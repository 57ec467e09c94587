"""Many dimensions, learning rates and seeds in one program."""

import itertools
import math
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lowrank._base import PyTree, Transform
from lowrank._many import map_tasks
from lowrank._select import Select
from lowrank.subspace._projection import Projection, check_dimension, floating
from lowrank.subspace._sweep_runs import content
from lowrank.subspace._sweep_trial import Start, Train, is_nested, trial, whole

_WHO = "subspace.sweep"

Log = Callable[[str], object]
Progress = Callable[[int, int], object]


class Sweep(NamedTuple):
    """What a sweep found.

    Attributes:
        scores: What `train` returned; every leaf has the leading axes
            `[d, rate, seed]`. NumPy arrays.
        ds: Dimensions, in the order of the first axis.
        rates: Learning rates, in the order of the second.
        seeds: Seeds, in the order of the third.
        seconds: Wall time, compiling included.

    Example:
        >>> lrk.subspace.Sweep._fields
        ('scores', 'ds', 'rates', 'seeds', 'seconds')
    """

    scores: PyTree
    ds: tuple[int, ...]
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    seconds: float


def sweep(
    train: Train,
    params: PyTree,
    subspace: Projection | Callable[[int], Transform],
    ds: Sequence[int],
    *,
    rates: Sequence[float],
    seeds: Sequence[int],
    data: PyTree = None,
    start: Start | None = None,
    select: Select = floating,
    chunk: int | None = None,
    method: str = "auto",
    log: Log | None = None,
    progress: Progress | None = None,
    runs: MutableMapping[str, PyTree] | None = None,
) -> Sweep:
    """Train in subspaces of many dimensions, at many rates, from many seeds.

    The runs are dealt into chunks, and a chunk is one call of one compiled program: the
    only one, if the projection is nested, and one for each `d` otherwise. Which
    optimizer and which loss is up to `train`.

    Args:
        train: `train(place, trainable, rate, key, data) -> scores`, as for `trial`; a
            score may be an array, such as the trained vector.
        params: The tree whose leaves move.
        subspace: A projection, or a function `d -> Transform`.
        ds: Dimensions, each at least 1 and at most the `D` entries that move.
        rates: Learning rates, positive. They are arguments of the program, as small
            subspaces need larger ones than `params` itself.
        seeds: Seeds, from 0; run `s` has the key `jax.random.key(s)`.
        data: A pytree of arrays, given to `train`: what it would close over would be
            compiled in as constants.
        start: `start(key, params)`: draws where a seed starts. None: at `params`.
        select: Which leaves a projection moves.
        chunk: Runs of one call; None: as many as there are seeds.
        method: How `map_tasks` maps over the runs of a call.
        log: Is told the expected seconds, from the first chunk, before the others run.
        progress: Is told `(done, all)` runs after each chunk: what a bar needs.
        runs: Scores of finished runs, by a name of `d`, the largest `d` of its draw,
            rate, seed, and a hash of `params` and `data`. Those in it are not run
            again, and each chunk's are put into it as it ends; a mapping that is a
            file, such as `shelve.open(path)`, makes a sweep that resumes. It is for one
            `train`, `subspace`, `start` and `select`: what they are is not kept.

    Returns:
        The scores by `[d, rate, seed]`. They do not depend on `chunk`, but for
        rounding. A trained vector ends in zeros from entry `d` on.

    Raises:
        TypeError: If `train` is no function, an axis no sequence, a dimension, seed or
            chunk no int, or `runs` no mapping.
        ValueError: If there is no dimension, rate or seed, one of them twice, or one
            out of range.

    Example:
        >>> def train(place, z, rate, key, data):
        ...     gap = lambda z: lrk.materialize(place(z))["w"].sum() - data
        ...     slope = jax.grad(gap)(z)["subspace"]["z"]  # one step solves it
        ...     step = {"subspace": {"z": -gap(z) * slope / (slope @ slope)}}
        ...     return jnp.abs(gap(step))
        >>> found = lrk.subspace.sweep(
        ...     train, {"w": jnp.zeros(6)}, lrk.subspace.dense(), [1, 3],
        ...     rates=[1.0], seeds=[0, 1, 2, 3], data=5.0,
        ... )
        >>> found.scores.shape
        (2, 1, 4)

    Notes:
        Scores that learning rates are chosen by should be other ones than those that
        are reported: return both from `train`, and see `at_best_rate`.
        With `n` seeds a chunk holds `n` projections and, under `vmap`, what they need
        for training; `dense` has `D max(ds)` entries for each.

    References:
        Li et al., 2018, arXiv:1804.08838: section 2.
    """
    begin = time.perf_counter()
    if not callable(train):
        raise TypeError(f"{_WHO}: expected a function to train with, got {train!r}.")
    if runs is not None and not isinstance(runs, MutableMapping):
        raise TypeError(
            f"{_WHO}: expected runs as a mapping, got {runs!r}. Pass a dict, or "
            "shelve.open(path)."
        )
    dims, own_rates, own_seeds = _grid(ds, rates, seeds)
    size = len(own_seeds) if chunk is None else check_dimension(_WHO, chunk, "chunk")
    groups = [dims] if is_nested(subspace) else [(d,) for d in dims]
    own = "" if runs is None else f" on {content(params, data)}"
    everything = {
        (d, rate, seed): f"d={d} of {max(group)} rate={rate} seed={seed}{own}"
        for group in groups
        for d, rate, seed in itertools.product(group, own_rates, own_seeds)
    }
    kept = {} if runs is None else runs
    left = {member: name for member, name in everything.items() if name not in kept}
    clock = _Clock(len(everything), len(left), log, progress)
    for group in groups:
        members = {member: name for member, name in left.items() if member[0] in group}
        if members:
            run = trial(train, subspace, max(group), start=start, select=select)
            program = _program(run, group, method)
            _chunks(program, params, data, members, size, clock, kept)
    found = [kept[name] for name in everything.values()]
    shape = (len(dims), len(own_rates), len(own_seeds))
    scores = jax.tree.map(lambda *x: _stacked(x, shape), *found)
    return Sweep(scores, dims, own_rates, own_seeds, time.perf_counter() - begin)


def at_best_rate(scores: Any, chosen_by: Any) -> np.ndarray:
    """Scores at the learning rate that is best for each dimension.

    Args:
        scores: `[d, rate, seed]`.
        chosen_by: What decides, of the same shape, higher is better: validation
            accuracy, where `scores` are test accuracies. The mean over seeds counts;
            NaN, a run that diverged, counts as worst.

    Returns:
        `[d, seed]`.

    Raises:
        ValueError: If the shapes are not the same three axes.

    Example:
        >>> valid = [[[0.1, 0.2], [0.8, 0.7]], [[0.9, 0.9], [0.3, 0.2]]]
        >>> test = [[[0.2, 0.3], [0.7, 0.6]], [[0.8, 0.8], [0.4, 0.1]]]
        >>> lrk.subspace.at_best_rate(test, valid).tolist()
        [[0.7, 0.6], [0.8, 0.8]]
    """
    given, by = np.asarray(scores), np.asarray(chosen_by, np.float64)
    if given.ndim != 3 or given.shape != by.shape:
        raise ValueError(
            f"subspace.at_best_rate: expected scores of one shape [d, rate, seed], got "
            f"{given.shape} and {by.shape}. Pass leaves of Sweep.scores."
        )
    means = np.nan_to_num(by, nan=-np.inf, neginf=-np.inf, posinf=np.inf).mean(-1)
    best = np.argmax(means, axis=1)
    return np.take_along_axis(given, best[:, None, None], axis=1)[:, 0]


class _Clock:
    """Tells how far a sweep is; once, after the first chunk, how long it will take."""

    def __init__(
        self, runs: int, left: int, log: Log | None, progress: Progress | None
    ) -> None:
        self.runs, self.left, self.log, self.progress = runs, left, log, progress

    def tell(self, done: int, compiling: float, seconds: float) -> None:
        self.left -= done
        if self.progress is not None:
            self.progress(self.runs - self.left, self.runs)
        if self.log is not None and self.left > 0:
            rest = self.left * seconds / done
            self.log(
                f"{_WHO}: compiled in {compiling:.1f} s; {done} run(s) took "
                f"{seconds:.1f} s; the other {self.left} are expected to take "
                f"{rest:.0f} s ({rest / 3600:.2g} h)"
            )
        self.log = None


def _program(run: Any, group: Sequence[int], method: str) -> Any:
    """A jitted function of `params`, `data` and three vectors: the runs of a chunk."""
    # A group of one dimension has it as a constant: what is not nested needs that.
    fixed = group[0] if len(group) == 1 else None

    def program(params: PyTree, data: PyTree, ds: Any, rates: Any, seeds: Any) -> Any:
        def one(d: Any, rate: Any, seed: Any) -> PyTree:
            own = d if fixed is None else fixed
            return run(params, own, rate, jax.random.key(seed), data)

        return map_tasks(one, method=method)(ds, rates, seeds)

    return jax.jit(program)


def _chunks(
    program: Any,
    params: PyTree,
    data: PyTree,
    members: Mapping[tuple[int, float, int], str],
    size: int,
    clock: _Clock,
    kept: MutableMapping[str, PyTree],
) -> None:
    """Keeps the scores of all members; the last is filled up to one shape."""
    size = min(size, len(members))
    compiled, compiling = None, 0.0
    for begin in range(0, len(members), size):
        own = list(members)[begin : begin + size]
        full = [*own, *[own[-1]] * (size - len(own))]
        ds, rates, seeds = (np.array(column) for column in zip(*full, strict=True))
        args = (params, data, ds.astype("i4"), rates.astype("f4"), seeds.astype("u4"))
        before = time.perf_counter()
        if compiled is None:
            compiled = program.lower(*args).compile()
            compiling = time.perf_counter() - before
            before = time.perf_counter()
        scores = jax.tree.map(np.asarray, jax.block_until_ready(compiled(*args)))
        seconds = time.perf_counter() - before
        for i, member in enumerate(own):
            kept[members[member]] = jax.tree.map(lambda x, i=i: x[i, ...], scores)
        clock.tell(len(own), compiling, seconds)


def _stacked(leaves: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """The leaves of all members as one array; shorter ones end in zeros."""
    full = tuple(max(sizes) for sizes in zip(*(x.shape for x in leaves), strict=True))
    out = np.zeros((len(leaves), *full), leaves[0].dtype)
    for i, own in enumerate(leaves):
        out[(i, *map(slice, own.shape))] = own
    return out.reshape(shape + full)


def _grid(
    ds: Sequence[int], rates: Sequence[float], seeds: Sequence[int]
) -> tuple[tuple[int, ...], tuple[float, ...], tuple[int, ...]]:
    """The axes of a sweep, checked.

    Raises:
        TypeError: If one is no sequence, or holds anything but such numbers.
        ValueError: If one is empty, has a value twice, or one out of range.
    """
    given = {"ds": ds, "rates": rates, "seeds": seeds}
    for name, values in given.items():
        if isinstance(values, str) or not np.iterable(values):
            raise TypeError(
                f"{_WHO}: {name} must be a sequence, got {values!r}. Pass a list."
            )
    dims = tuple(whole("ds", d) for d in ds)
    own_seeds = tuple(whole("seeds", seed) for seed in seeds)
    if bad := [rate for rate in rates if not hasattr(rate, "__float__")]:
        raise TypeError(f"{_WHO}: rates must be numbers, got {bad}.")
    own_rates = tuple(float(rate) for rate in rates)
    axes: dict[str, tuple[tuple[Any, ...], Callable[[Any], bool], str]] = {
        "ds": (dims, lambda d: d >= 1, "at least 1"),
        "rates": (own_rates, lambda r: math.isfinite(r) and r > 0, "positive"),
        "seeds": (own_seeds, lambda s: 0 <= s < 2**32, "from 0 to 2**32 - 1"),
    }
    wrong = [
        f"{name} {list(values)}: expected one or more values, each once, {words}"
        for name, (values, fits, words) in axes.items()
        if not values or len(set(values)) < len(values) or not all(map(fits, values))
    ]
    if wrong:
        raise ValueError(f"{_WHO}: wrong {'; '.join(wrong)}. Correct the grid.")
    return dims, own_rates, own_seeds
