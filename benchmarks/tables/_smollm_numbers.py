"""Losses of examples from records, their differences, and the hypotheses."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import stats
from benchmarks.record import Record, Records
from benchmarks.tables._smollm_data import CORPORA
from benchmarks.tables._smollm_work import METHODS

Span = tuple[float, float, float]

CLOSE_TO_LORA, KEEPS, QLORA = 0.05, 0.5, 0.8
QUANTISED = {"int8": 0.01, "nf4": 0.1}
TITLES = {
    "base": "as published",
    "lora": "LoRA",
    "lori-d": "LoRI-D",
    "lori-s": "LoRI-S",
    "full": "full fine-tuning",
    "qlora": "LoRA over NF4",
}


def rows_of(records: Records, way: str, corpus: str = "") -> list[Record]:
    """The records of one way, by seed."""
    found = records.where(way=way, corpus=corpus)
    return sorted(found, key=lambda record: record.seed)


def losses(rows: Sequence[Record], where: str) -> np.ndarray | None:
    """Losses `[seeds, examples]` on a corpus, whose mean is that of nats per token.

    A mean over tokens is a ratio `R = sum n_i / sum t_i` of sums over examples. Entry
    `i` is `R + (n_i - R t_i) / mean(t)`: their mean is `R`, and resampling them gives,
    to first order, what resampling the ratio gives.
    """
    found = [row.metrics["test"][where] for row in rows]
    if not found:
        return None
    nll, tokens = (np.array([own[k] for own in found]) for k in ("nll", "tokens"))
    ratio = nll.sum(axis=1, keepdims=True) / tokens.sum(axis=1, keepdims=True)
    return ratio + (nll - ratio * tokens) / tokens.mean(axis=1, keepdims=True)


def perplexity(x: np.ndarray | None) -> Span | None:
    """With its interval over examples and seeds."""
    if x is None:
        return None
    found = stats.bootstrap_interval(x)
    return tuple(math.exp(end) for end in found)  # pyrefly: ignore[bad-return]


def paired(*ways: Sequence[Record]) -> list[list[Record]]:
    """The rows of the seeds that all have; those of no seed stand beside each."""
    seeds = [{row.seed for row in rows} for rows in ways if not _alone(rows)]
    common = sorted(set.intersection(*seeds)) if seeds else [0]
    return [
        [rows[0]] * len(common)
        if _alone(rows)
        else [row for row in rows if row.seed in common]
        for rows in ways
    ]


def _alone(rows: Sequence[Record]) -> bool:
    """Whether these are of a base, which no seed changes."""
    return len(rows) > 0 and rows[0].config["corpus"] == ""


def gap(
    one: Sequence[Record], two: Sequence[Record], where: str, by: float = 0.0
) -> Span | None:
    """How far the loss of `one` is above that of `two`, plus a number."""
    own, other = (losses(rows, where) for rows in paired(one, two))
    if own is None or other is None:
        return None
    found = stats.paired_bootstrap(own + by, other)
    return found.difference, found.low, found.high


def gain(
    base: Sequence[Record],
    one: Sequence[Record],
    two: Sequence[Record],
    share: float,
    where: str,
) -> Span | None:
    """How far the gain of `one` is above a share of that of `two`."""
    start, own, other = (losses(rows, where) for rows in paired(base, one, two))
    if start is None or own is None or other is None:
        return None
    found = stats.paired_bootstrap(start - own, share * (start - other))
    return found.difference, found.low, found.high


class Claim(NamedTuple):
    """A number that a hypothesis says is above zero; None where it was not run."""

    label: str
    margin: Span | None


class Hypothesis(NamedTuple):
    """A hypothesis and the margins by which it is met."""

    name: str
    text: str
    claims: Sequence[Claim]

    def verdict(self) -> str | None:
        """Whether every margin's interval lies above zero."""
        margins = [claim.margin for claim in self.claims]
        known = [own for own in margins if own is not None]
        if any(high < 0 for _, _, high in known):
            return "fails"
        if len(known) < len(margins) or not margins:
            return None
        return "holds" if all(low > 0 for _, low, _ in known) else "open"

    def figures(self) -> str | None:
        """The margins in words."""
        known = [(c.label, c.margin) for c in self.claims if c.margin is not None]
        texts = (
            f"{label} {value:+.3f} [{low:+.3f}, {high:+.3f}]"
            for label, (value, low, high) in known
        )
        return "; ".join(texts) or None


def hypotheses(records: Records) -> list[Hypothesis]:
    """Those of the table's docstring, judged."""
    base = rows_of(records, "base")

    def on(way: str, corpus: str) -> list[Record]:
        return rows_of(records, way, corpus)

    def each(claim: Any, *corpora: str) -> list[Claim]:
        return [Claim(CORPORA[c], claim(c)) for c in corpora or CORPORA]

    def forgets(corpus: str) -> Span | None:
        (other,) = (name for name in CORPORA if name != corpus)
        return gap(on("lora", corpus), on("lori-s", corpus), other)

    learned = [
        Claim(f"{TITLES[way]}, {CORPORA[c]}", gap(base, on(way, c), c))
        for way in METHODS
        for c in CORPORA
    ]
    plain = on("memory-float32", "")
    rounded = [
        Claim(f"{kind}, {CORPORA[c]}", gap(plain, on(f"memory-{kind}", ""), c, most))
        for kind, most in QUANTISED.items()
        for c in CORPORA
    ]
    close = each(lambda c: gap(on("lora", c), on("lori-d", c), c, CLOSE_TO_LORA))
    keeps = each(lambda c: gain(base, on("lori-s", c), on("lora", c), KEEPS, c))
    over = each(
        lambda c: gain(base, on("qlora", c), on("lora", c), QLORA, c), "dialogue"
    )
    spare = [Claim("GiB to spare", _spared(records))]
    return [
        Hypothesis("S1", "each adapter lowers the loss on its own corpus", learned),
        Hypothesis("S2", f"LoRI-D is at most {CLOSE_TO_LORA:g} above LoRA", close),
        Hypothesis("S3", "LoRI-S gains at least half of what LoRA gains", keeps),
        Hypothesis(
            "S4",
            "LoRI-S raises the loss on the other corpus by less than LoRA",
            each(forgets),
        ),
        Hypothesis("S5", "int8 costs less than 0.01, NF4 less than 0.1", rounded),
        Hypothesis(
            "S6", "LoRA over NF4 gains at least four fifths of LoRA's gain", over
        ),
        Hypothesis(
            "S7",
            "a step of LoRA takes less than half the memory of full fine-tuning",
            spare,
        ),
    ]


def step_bytes(record: Record) -> int:
    """What a step takes with all that it is given."""
    cost = record.metrics["cost"]
    return cost["arguments"] + cost["temporaries"]


def _spared(records: Records) -> Span | None:
    """How far LoRA's step is below half of full fine-tuning's; exact."""
    full, lora = (rows_of(records, way, "dialogue") for way in ("full", "lora"))
    if not full or not lora:
        return None
    spare = (step_bytes(full[0]) / 2 - step_bytes(lora[0])) / 2**30
    return spare, spare, spare
