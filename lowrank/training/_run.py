"""The compiled step of `fit`, and the adapters that it moves."""

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lowrank._base import Array, PyTree, State, Transform, is_array
from lowrank.training._fetch import fetched
from lowrank.training._step import Carry, Given, Loss, Optimizer, Step, step

_WHO = "training.fit"


class _Frame(NamedTuple):
    """A tree without its arrays: what a program is compiled for."""

    treedef: Any
    rest: tuple[tuple[int, Hashable], ...]

    def fill(self, arrays: Sequence[Any]) -> PyTree:
        """The tree with these arrays."""
        own, rest = iter(arrays), dict(self.rest)
        size = len(rest) + len(arrays)
        leaves = [rest[i] if i in rest else next(own) for i in range(size)]
        return jax.tree.unflatten(self.treedef, leaves)


def _framed(tree: PyTree) -> tuple[_Frame, list[Any]]:
    """A tree taken apart: Python values stay what they are in a jitted function."""
    leaves, treedef = jax.tree.flatten(tree)
    rest = tuple((i, x) for i, x in enumerate(leaves) if not is_array(x))
    return _Frame(treedef, rest), [x for x in leaves if is_array(x)]


class Program(NamedTuple):
    """A step, and what is compiled of it."""

    step: Step
    update: Callable[..., tuple[Carry, dict[str, Array]]]
    fused: int


@functools.lru_cache(maxsize=8)
def program_of(
    loss: Loss, tx: Transform, optimizer: Optimizer, options: tuple[Any, ...]
) -> Program:
    """The jitted step; one for the same functions, so that they compile once."""
    names = "batch_axis accumulate method lift dtype remat loss_scale".split()
    *rest, fused = options
    if isinstance(fused, bool) or not isinstance(fused, int) or fused < 1:
        raise ValueError(f"{_WHO}: fused must be an int of at least 1, got {fused!r}.")
    made = step(loss, tx, optimizer, **dict(zip(names, rest, strict=True)))

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
    def update(
        frame: _Frame, arrays: list[Any], given: Given, carry: Carry, batches: Any
    ) -> tuple[Carry, dict[str, Array]]:
        params = frame.fill(arrays)

        def one(carry: Carry, batch: Any) -> tuple[Carry, dict[str, Array]]:
            return made.update(params, given, carry, batch)

        if fused > 1:
            return jax.lax.scan(one, carry, batches)
        carry, metrics = one(carry, batches)
        return carry, jax.tree.map(lambda x: x[None], metrics)

    return Program(made, update, fused)


def _same(one: np.ndarray, two: np.ndarray) -> bool:
    """Whether two rows of numbers are equal; NaN is NaN."""
    return np.array_equal(one, two, equal_nan=one.dtype.kind == "f")


def _named(names: Sequence[str], which: np.ndarray) -> str:
    return ", ".join(f"'{names[i]}'" for i in np.flatnonzero(which).tolist())


@jax.jit
def _copied(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.copy, tree)


@jax.jit
def _rows(tree: PyTree, rows: Array) -> PyTree:
    return jax.tree.map(lambda x: x[rows], tree)


@jax.jit
def _with_rows(tree: PyTree, rows: Array, part: PyTree) -> PyTree:
    return jax.tree.map(lambda x, own: x.at[rows].set(own), tree, part)


class Run:
    """The adapters under way; those that run are rows of all of them."""

    def __init__(
        self,
        program: Program,
        params: PyTree,
        states: State | Sequence[State],
        limits: Any,
        hyper: Mapping[str, Any] | None,
        key: Array | None,
        *,
        narrow: bool,
        batch_axis: int | None,
    ) -> None:
        self.program, self.batch_axis, self._narrow = program, batch_axis, narrow
        self.frame, self.arrays = _framed(params)
        init = program.step.init
        self.given, carry = init(states, steps=limits, hyper=hyper, key=key)
        # It will be donated, and the states are the caller's.
        self.carry: Carry = _copied(carry)
        self.number = self.given.limit.shape[0]
        self.limits = np.array(self.given.limit)
        self.stopped = np.zeros(self.number, bool)
        self.done, self.rows = 0, np.arange(self.number)
        self.fixed = self.given.fixed
        self._all: tuple[Given, Carry] = (self.given, self.carry)
        self._pending: list[Any] = []

    @property
    def last(self) -> int:
        """The step after which no adapter runs."""
        return int(self.limits.max())

    @property
    def active(self) -> np.ndarray:
        """Which adapters have steps to take."""
        return self.limits > self.done

    def advance(self, batches: Any, count: int) -> None:
        """Take steps; nothing is waited for."""
        if self.batch_axis == 0 and len(self.rows) < self.number:
            axis = int(self.program.fused > 1)
            batches = jax.tree.map(lambda x: x.take(self.rows, axis), batches)
        self.carry, metrics = self.program.update(
            self.frame, self.arrays, self.given, self.carry, batches
        )
        self._pending.append((self.rows, metrics))
        self.done += count

    def fetch(self) -> dict[str, np.ndarray]:
        """The metrics of the steps since the last call, `[steps, adapters]`."""
        parts = []
        for rows, metrics in fetched(self._pending):
            whole = {}
            for name, own in metrics.items():
                shape = (own.shape[0], self.number, *own.shape[2:])
                whole[name] = np.full(shape, np.nan, np.float32)
                whole[name][:, rows] = own
            parts.append(whole)
        self._pending = []
        names = parts[0] if parts else {}
        return {n: np.concatenate([part[n] for part in parts]) for n in names}

    def whole(self) -> Carry:
        """A copy of what all adapters carry."""
        if len(self.rows) == self.number:
            return _copied(self.carry)
        return _with_rows(self._all[1], self.rows, self.carry)

    def state(self) -> State:
        """A copy of the stacked state."""
        return State(self.whole().trainable, self.fixed)

    def stop(self, which: np.ndarray, steps: Any) -> None:
        """Let some adapters take no more steps than these."""
        self.stopped = self.stopped | which
        limits = np.where(which, np.minimum(self.limits, steps), self.limits)
        self.limits = limits.astype(np.int32)
        self.given = self.given._replace(limit=jnp.asarray(self.limits[self.rows]))
        given, carry = self._all
        self._all = (given._replace(limit=jnp.asarray(self.limits)), carry)

    def kept(self) -> dict[str, Any]:
        """What it takes to go on, and what must not have changed by then."""
        given, key = self._all[0], self._all[0].key
        if key is not None and jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
            key = jax.random.key_data(key)
        own = {"carry": self.whole(), "stopped": jnp.asarray(self.stopped)}
        return own | {"hyper": given.hyper, "key": key}

    def resume(self, done: int, tree: dict[str, Any], names: Sequence[str]) -> None:
        """Go on from what was kept.

        Raises:
            ValueError: If other numbers are given now, or an adapter that had taken
                its steps is to take more; all are named.
        """
        own, taken = self.kept(), fetched(tree["carry"].step)
        stopped = np.array(fetched(tree["stopped"]))
        pairs = {f"hyper '{n}'": (x, own["hyper"][n]) for n, x in tree["hyper"].items()}
        if own["key"] is not None:
            pairs["key"] = (tree["key"], own["key"])
        bad = []
        for what, pair in pairs.items():
            old, new = (np.asarray(x).reshape(self.number, -1) for x in fetched(pair))
            differ = ~np.array(list(map(_same, old, new)))
            if differ.any():
                bad.append(f"{what} is another one for {_named(names, differ)}")
        late = ~stopped & (taken < np.minimum(done, self.limits))
        if late.any():
            bad.append(
                f"steps is more than what ended the training of {_named(names, late)}, "
                "whose batches have gone by"
            )
        if bad:
            raise ValueError(
                f"{_WHO}: cannot go on from the checkpoint of step {done}: "
                f"{'; '.join(bad)}. Pass what it was begun with, or begin anew from "
                "its states, without this checkpoint."
            )
        self.done, self.carry = done, _copied(tree["carry"])
        self.stop(stopped, taken)

    def narrow(self) -> None:
        """Leave finished adapters out, once half of those in the program are."""
        running = np.flatnonzero(self.active)
        width = len(self.rows)
        while width > 1 and (width + 1) // 2 >= len(running):
            width = (width + 1) // 2
        if not self._narrow or width == len(self.rows) or not len(running):
            return
        resting = np.setdiff1d(self.rows, running)[: width - len(running)]
        self._all = (self._all[0], self.whole())
        self.rows = np.sort(np.concatenate([running, resting]))
        self.given = _rows(self._all[0], self.rows)
        self.carry = _rows(self._all[1], self.rows)
