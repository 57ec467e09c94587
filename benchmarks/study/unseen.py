"""One adapter and one head for some domains, scored on those and on one left out."""

from typing import Any, NamedTuple

import jax
import numpy as np

import lowrank as lrk
from benchmarks import data, stats
from benchmarks.study import methods as ways
from benchmarks.study.encoder import features, hidden_states
from benchmarks.study.methods import Method
from benchmarks.study.singles import TUNING_SEED, Singles
from benchmarks.study.tasks import CLASSES, LENGTHS
from benchmarks.study.train import Job, batches, nll
from benchmarks.tables._quickstart_probe import fit_probe

TYPOS = 0.1  # share of the letters of a text that change places with the next
METHODS = {
    "probe": Method("head on the frozen encoder", kind="none"),
    "lora": ways.HEADLINE["lora"],
    "lori-d": ways.HEADLINE["lori-d"],
    "lori-s": ways.HEADLINE["lori-s"],
    "serial": Method("serial adapter", kind="bottleneck", trains_a=True),
    "full": ways.HEADLINE["full"],
}
Head = tuple[np.ndarray, np.ndarray]


class Run(NamedTuple):
    """What one run gives.

    Attributes:
        state: State of the method's transform; None for the probe.
        head: Kernel and bias.
        trained: How many numbers were trained, the head left out.
    """

    state: lrk.State | None
    head: Head
    trained: int


class Unseen:
    """Runs over the domains of sentiment, one of which is left out."""

    def __init__(self, work: Singles) -> None:
        """Takes what the single-task runs have: options, encoder, domains."""
        self.work = work
        self._rates: dict[tuple[str, str], tuple[float, list[float]]] = {}
        self._noisy: dict[str, tuple[Any, Any]] = {}
        self._inits: dict[str, Any] = {}

    def seen(self, left: str) -> list[int]:
        """The domains that are trained on."""
        return [i for i, name in enumerate(self.work.suite.tasks) if name != left]

    def start(self, left: str, texts: int) -> Head:
        """A head on the frozen encoder, fitted on some texts of each seen domain."""
        work, parts = self.work, {}
        for split, most in (("head", texts), ("valid", None)):
            own = work.suite.splits[split]
            pooled, labels = [], []
            for i in self.seen(left):
                known = work.suite.labels(split, i)[:most]
                kept = slice(len(known))
                params = work.cut.params
                hidden, mask = own.hidden[i, kept], own.mask[i, kept]
                pooled.append(features(work.cut, params, hidden, mask))
                labels.append(known)
            parts[split] = np.concatenate(pooled), np.concatenate(labels)
        probe = fit_probe(parts["head"], parts["valid"], 2, outputs=CLASSES)
        return np.asarray(probe.head.kernel), np.asarray(probe.head.bias)

    def run(
        self, name: str, left: str, shots: int, seed: int, rate: float | None = None
    ) -> Run:
        """One run: half of the shots start the head, the other half train."""
        head, half = self.start(left, shots // 2), shots // 2
        if name == "probe":
            return Run(None, head, 0)
        rate = self.rate(name, left)[0] if rate is None else rate
        method, mask = METHODS[name], None
        if method.mask:
            dense = self.run("lori-d", left, shots, seed)
            mask = ways.mask_of(method, dense.state, None, self._key(left, seed))
        state = ways.start(method, self._init(method, left, seed), mask, None)
        keep = ways.keep(method, state.trainable, mask)
        job = self.job(state, keep, head, left, half, seed, rate)
        tx = self._transform(method)
        trained = self.work.trainer.train(f"unseen-{method.kind}", tx, job)
        numbers = ways.trained_numbers(method, state.trainable, mask)
        kernels, biases = trained.heads
        return Run(
            state._replace(trainable=trained.trainable),
            (kernels[0], biases[0]),
            numbers,
        )

    def rate(self, name: str, left: str) -> tuple[float, list[float]]:
        """The rate with the least validation loss on the seen domains, and all."""
        if (name, left) not in self._rates:
            o, row = self.work.options, f"rate-unseen-{name}-{left}"
            grid = o.full_rates if name == "full" else o.rates
            shots = o.head + o.train
            given = self.work.given(kind="unseen", method=name, left=left, shots=shots)
            found = self.work.store.load_arrays(row, config=given)
            if found is None:
                losses = [
                    self._loss(
                        name, self.run(name, left, shots, TUNING_SEED, rate), left
                    )
                    for rate in grid
                ]
                found = {"losses": np.array(losses)}
                self.work.store.save_arrays(row, found, config=given)
            tried = [float(x) for x in found["losses"]]
            best = int(np.argmin(np.where(np.isfinite(tried), tried, 1e30)))
            self._rates[name, left] = (float(grid[best]), tried)
        return self._rates[name, left]

    def logits(
        self, name: str, run: Run, task: int, split: str, *, typos: bool = False
    ) -> np.ndarray:
        """Logits of a domain's split, of its test texts with typos if so asked."""
        work = self.work
        number = len(work.suite.labels(split, task))
        if typos:
            hidden, mask = self.noisy(work.suite.tasks[task])
        else:
            own = work.suite.splits[split]
            hidden, mask = own.hidden[task], own.mask[task]
        if run.state is None:
            pooled = features(work.cut, work.cut.params, hidden, mask)
        else:
            method = METHODS[name]
            tx = self._transform(method)
            pooled = work.trainer.lifted(
                f"unseen-{method.kind}", tx, run.state, hidden, mask
            )
        kernel, bias = run.head
        return (pooled @ kernel + bias)[:number, :2]

    def noisy(self, task: str) -> tuple[Any, Any]:
        """States at the cut of a domain's test texts with typos."""
        if task not in self._noisy:
            work, length = self.work, LENGTHS["domains"]
            whole = data.load(task, synthetic=work.options.synthetic)
            texts = whole.splits["test"].take(slice(work.options.test)).x
            tokens = data.encode(with_typos(texts), work.cut.tokenizer, length)
            self._noisy[task] = hidden_states(work.cut, tokens, length)
        return self._noisy[task]

    def _transform(self, method: Method) -> lrk.Transform:
        if method.kind not in self._inits:
            tx = ways.transform(method, self.work.cut, self.work.options.rank)
            self._inits[method.kind] = (tx, jax.jit(tx.init))
        return self._inits[method.kind][0]

    def _init(self, method: Method, left: str, seed: int) -> lrk.State:
        self._transform(method)
        state = self._inits[method.kind][1](self._key(left, seed), self.work.cut.params)
        return jax.tree.map(np.asarray, state)

    def _key(self, left: str, seed: int) -> Any:
        return jax.random.fold_in(jax.random.key(seed), 200 + self.work.task(left))

    def job(
        self,
        state: lrk.State,
        keep: Any,
        head: Head,
        left: str,
        texts: int,
        seed: int,
        rate: float,
    ) -> Job:
        """The seen domains take turns, one batch each, with one head for all."""
        o, work, seen = self.work.options, self.work, self.seen(left)
        turns = np.tile(np.array(seen), o.steps)
        orders = [
            batches(
                min(texts, len(work.suite.labels("train", i))), o.steps, o.batch, seed
            )
            for i in seen
        ]
        kernel, bias = head
        return Job(
            state,
            (kernel[None], bias[None]),
            keep,
            turns,
            np.zeros_like(turns),
            np.stack(orders, axis=1).reshape(len(turns), o.batch),
            np.float32(rate),
        )

    def _loss(self, name: str, run: Run, left: str) -> float:
        """Mean validation loss over the seen domains."""
        losses = [
            nll(self.logits(name, run, i, "valid"), self.work.suite.labels("valid", i))
            for i in self.seen(left)
        ]
        return float(np.mean(losses))


def with_typos(texts: Any, share: float = TYPOS, seed: int = 0) -> list[str]:
    """Texts in which some letters changed places with the next one of their word."""
    draws = stats.generator(seed)
    return [_mistyped(text, draws.random(len(text)) < share) for text in texts]


def _mistyped(text: str, chosen: np.ndarray) -> str:
    letters, i = list(text), 0
    while i + 1 < len(letters):
        if chosen[i] and letters[i].isalpha() and letters[i + 1].isalpha():
            letters[i], letters[i + 1] = letters[i + 1], letters[i]
            i += 1
        i += 1
    return "".join(letters)
