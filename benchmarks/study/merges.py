"""The merges that are compared, each as one jitted function of stacked states."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lowrank as lrk
from benchmarks.study.encoder import kernels
from benchmarks.study.singles import Singles

DENSITY = 0.2  # that TIES trims to, and DARE and its kin keep
GRAM_TEXTS = 256  # training texts of each task that RegMean reads
FISHER_TEXTS = 64  # and that Fisher merging reads
KIND = "lora"  # LoRI's states are LoRA's with another part trained


class Merge(NamedTuple):
    """A merge of the table.

    Attributes:
        title: What tables call it.
        run: `run(trees, facts, key) -> tree`.
        needs: What it reads of the training data: `grams`, `fishers` or nothing.
    """

    title: str
    run: Callable[[Sequence[Any], Any, Any], Any]
    needs: str = ""


def _plain(method: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return lambda trees, facts, key: method(trees, **options)  # noqa: ARG005


def _keyed(method: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return lambda trees, facts, key: method(trees, key=key, **options)  # noqa: ARG005


def merges(rank: int) -> dict[str, Merge]:
    """Every merge by name; `rank` is the rank of one adapter."""
    m = lrk.merging
    ties = functools.partial(m.ties, density=DENSITY)
    return {
        "concat": Merge("sum (concat)", _plain(m.concat)),
        "linear": Merge("linear (PEFT, cross terms)", _plain(m.linear)),
        "svd": Merge(f"svd, rank {rank}", _plain(m.svd, rank=rank)),
        "lego": Merge(f"LEGO, rank {rank}", _keyed(m.lego, rank=rank)),
        "magnitude": Merge("magnitude", _plain(m.magnitude, density=DENSITY)),
        "ties": Merge("TIES", _plain(ties)),
        "dare": Merge("DARE", _keyed(m.dare, density=DENSITY)),
        "dare-ties": Merge(
            "DARE, then TIES", _keyed(m.dare, density=DENSITY, elect=True)
        ),
        "della": Merge("DELLA", _keyed(m.della, density=DENSITY)),
        "breadcrumbs": Merge("Breadcrumbs", _plain(m.breadcrumbs, density=DENSITY)),
        "knots": Merge("KnOTS, TIES inside", _plain(m.knots, merge=ties)),
        "core": Merge("Core Space, TIES inside", _plain(m.core_space, merge=ties)),
        "tsv": Merge("TSV", _plain(m.tsv)),
        "iso": Merge("Iso-C", _plain(m.iso)),
        "iso-cts": Merge("Iso-CTS", _plain(m.iso_cts)),
        "regmean": Merge(
            "RegMean",
            lambda trees, facts, key: m.regmean(trees, facts),  # noqa: ARG005
            "grams",
        ),
        "fisher": Merge(
            "Fisher",
            lambda trees, facts, key: m.fisher(trees, facts),  # noqa: ARG005
            "fishers",
        ),
    }


class Merging:
    """Merges the adapters of a suite into changes of the plain weights."""

    def __init__(self, work: Singles) -> None:
        """Takes the single-task runs."""
        self.work = work
        self.merges = merges(work.options.rank)
        self._compiled: dict[Any, Callable[..., Any]] = {}

    def states(self, name: str, seed: int) -> list[lrk.State]:
        """The trained adapters of one method, one for each task."""
        work = self.work
        return [
            work.state(name, work.single(name, task, seed)) for task in work.suite.tasks
        ]

    def change(
        self, merge: str, states: Sequence[lrk.State], facts: Any, seed: int
    ) -> dict[str, Any]:
        """What a merge adds to each adapted weight, at weights of one."""
        if merge not in self._compiled:
            tx, how = self.work.transform(KIND), self.merges[merge].run

            def run(params: Any, states: Any, facts: Any, key: Any) -> dict[str, Any]:
                trees = [tx.apply(params, state) for state in states]
                merged = lrk.materialize(how(trees, facts, key))
                gap = jax.tree.map(jnp.subtract, merged, params)
                return {path: _leaf(gap, path) for path in states[0].trainable}

            self._compiled[merge] = jax.jit(run)
        key = jax.random.fold_in(jax.random.key(seed), 7)
        params = self.work.cut.params
        return self._compiled[merge](params, list(states), facts, key)

    def encoder(self, change: Mapping[str, Any], scale: float) -> Any:
        """Plain parameters with a merged change at a scale."""
        if "encoder" not in self._compiled:

            def run(params: Any, change: Any, scale: Any) -> Any:
                state = lrk.State({p: {"d": scale * d} for p, d in change.items()}, {})
                tx = lrk.full(select=kernels(self.work.cut))
                return lrk.materialize(tx.apply(params, state))

            self._compiled["encoder"] = jax.jit(run)
        return self._compiled["encoder"](
            self.work.cut.params, change, jnp.float32(scale)
        )

    def facts(self, needs: str, name: str, seed: int) -> Any:
        """What a merge reads of the training data, for each task; none for most."""
        if not needs:
            return ()
        states, work = self.states(name, seed), self.work
        own = {"grams": self._gram, "fishers": self._fisher}[needs]
        return [own(states[i], i, name, seed) for i in range(len(work.suite.tasks))]

    def _texts(self, task: int, number: int) -> tuple[Any, Any, Any]:
        split = self.work.suite.splits["train"]
        return (
            split.hidden[task, :number],
            split.mask[task, :number],
            split.labels[task, :number],
        )

    def _gram(self, state: lrk.State, task: int, name: str, seed: int) -> Any:
        """Gram matrices of the inputs of each adapted weight."""
        del name, seed
        if "gram" not in self._compiled:
            tx, pool = self.work.transform(KIND), self.work.cut.pool

            def run(params: Any, state: Any, hidden: Any, mask: Any) -> Any:
                return lrk.merging.gram(pool, tx.apply(params, state), hidden, mask)

            self._compiled["gram"] = jax.jit(run)
        hidden, mask, _ = self._texts(task, GRAM_TEXTS)
        return self._compiled["gram"](self.work.cut.params, state, hidden, mask)

    def _fisher(self, state: lrk.State, task: int, name: str, seed: int) -> Any:
        """Diagonal Fisher information of each adapted weight, labels drawn."""
        work = self.work
        single = work.single(name, work.suite.tasks[task], seed)
        kernel, bias = (jnp.asarray(x) for x in single.head)
        classes = int(work.suite.classes[task])

        def logits(params: Any, x: Any) -> Any:
            return (work.cut.pool(params, *x) @ kernel + bias[None])[:, :classes]

        hidden, mask, labels = self._texts(task, FISHER_TEXTS)
        adapted = work.transform(KIND).apply(work.cut.params, state)
        key = jax.random.fold_in(jax.random.key(seed), 11)
        batches = [((hidden, mask), labels)]
        return lrk.merging.fisher_diagonal(logits, adapted, batches, key)

    def interference(self, name: str, seed: int) -> dict[str, float]:
        """How far the adapters of a method meet: mean over pairs and weights."""
        if "interference" not in self._compiled:
            tx = self.work.transform(KIND)

            def run(params: Any, states: Any) -> Any:
                trees = [tx.apply(params, state) for state in states]
                found = lrk.merging.interference(trees, signs=True)
                return {
                    "cosine": {p: jnp.abs(x) for p, x in found.cosine.items()},
                    "overlap": found.overlap,
                    "conflict": found.conflict,
                }

            self._compiled["interference"] = jax.jit(run)
        found = self._compiled["interference"](
            self.work.cut.params, self.states(name, seed)
        )
        pairs = np.triu_indices(len(self.work.suite.tasks), k=1)
        return {
            kind: float(np.mean([np.mean(np.asarray(x)[pairs]) for x in own.values()]))
            for kind, own in found.items()
        }


def _leaf(tree: Any, path: str) -> Any:
    for part in path.split("/"):
        tree = tree[part]
    return tree
