"""What the table of learning rates and ranks shows."""

from typing import Any, NamedTuple

import numpy as np

from benchmarks import figures, stats
from benchmarks.record import Records
from benchmarks.report import Block, Figure, Heading, Table, Text
from benchmarks.stats import Difference
from benchmarks.study.rank_sweep import MEETING, RULES
from benchmarks.study.scores import gap, numbers, percent
from benchmarks.study.tasks import LENGTHS
from benchmarks.tables import _lori_words as words
from benchmarks.tables._lori_words import Claim, Hypothesis

RESAMPLES = 2_000
MIDDLE = 4  # the rank that the largest is compared with
WORST = 10.0  # the most that a loss counts: runs diverge


class Grid(NamedTuple):
    """All runs of one rule.

    Attributes:
        ranks: Ranks.
        rates: Rates.
        losses: Validation losses `[seeds, ranks, rates]`.
        accuracies: Validation accuracies, likewise.
        right: Which test texts are right `[seeds, ranks, rates, n]`.
    """

    ranks: tuple[int, ...]
    rates: tuple[float, ...]
    losses: np.ndarray
    accuracies: np.ndarray
    right: np.ndarray

    def best(self) -> np.ndarray:
        """The number of the rate with the least mean loss, for each rank."""
        return self.losses.mean(axis=0).argmin(axis=1)

    def at_best(self, rank: int) -> np.ndarray:
        """Which test texts are right at the best rate of a rank, `[seeds, n]`."""
        place = self.ranks.index(rank)
        return self.right[:, place, self.best()[place]]


Grids = dict[str, Grid | None]


def grid(records: Records, rule: str) -> Grid | None:
    """The runs of a rule, on the seeds that have every rank; None without any."""
    own = {(r.seed, r.config["rank"]): r for r in records.where(rule=rule)}
    ranks = sorted({rank for _, rank in own})
    seeds = sorted({s for s, _ in own if all((s, rank) in own for rank in ranks)})
    if not seeds:
        return None

    def read(name: str) -> np.ndarray:
        return np.array(
            [[own[s, rank].metrics[name] for rank in ranks] for s in seeds], float
        )

    right = np.array(
        [
            [
                [
                    numbers(guess) == numbers(own[s, rank].metrics["labels"])
                    for guess in own[s, rank].metrics["test"]
                ]
                for rank in ranks
            ]
            for s in seeds
        ]
    )
    losses = read("valid_loss")
    return Grid(
        tuple(ranks),
        tuple(own[seeds[0], ranks[0]].config["rates"]),
        np.where(np.isfinite(losses), np.minimum(losses, WORST), WORST),
        read("valid_accuracy"),
        right.astype(float),
    )


def drift(own: Grid, losses: np.ndarray) -> float:
    """Doublings of the best rate for each doubling of the rank: a fitted slope."""
    best = losses.mean(axis=0).argmin(axis=1)
    slope, _ = np.polyfit(np.log2(own.ranks), np.log2(np.array(own.rates)[best]), 1)
    return float(slope)


def drifts(own: Grid) -> np.ndarray:
    """The drift, then those of seeds drawn anew."""
    draws = stats.generator(0)
    seeds = len(own.losses)
    picks = draws.integers(seeds, size=(RESAMPLES, seeds))
    return np.array(
        [drift(own, own.losses), *(drift(own, own.losses[p]) for p in picks)]
    )


def blocks(records: Records) -> list[Block]:
    """Returns the blocks of the report; complete even for no records."""
    grids: Grids = {rule: grid(records, rule) for rule in RULES}
    found: list[Block] = [
        Heading("Learning rate by rank"),
        words.hypotheses(
            expected(grids),
            "Rates and ranks: the hypotheses written down before the run.",
        ),
        _best(grids),
        _drift(grids),
    ]
    found += [_figure(rule, own) for rule, own in grids.items() if own is not None]
    return [*found, Text(_reduced(records))]


# --- the hypotheses ------------------------------------------------------------------


def expected(grids: Grids) -> list[Hypothesis]:
    """The hypotheses, in the words of the table, with their comparisons."""
    rank, root = grids["rank"], grids["root"]
    return [
        Hypothesis(
            "R1",
            "under alpha / sqrt(r) the best rate drifts less with the rank "
            "(hundredths of a doubling for each doubling)",
            [Claim("sqrt(r) minus r, of the drift", _drifts_apart(rank, root),
                   words.below)],
        ),
        Hypothesis(
            "R2",
            f"under alpha / sqrt(r) the largest rank is better than rank {MIDDLE}",
            [Claim("largest minus middle", _larger(root), words.above)],
        ),
        Hypothesis(
            "R3",
            f"at the largest rank, with the rate of rank {MEETING}, alpha / sqrt(r) "
            "has the lower loss (hundredths of a nat)",
            [Claim("sqrt(r) minus r", _carried(rank, root), words.below)],
        ),
        Hypothesis(
            "R4",
            "each at its own best rate, the rules are within a point at the largest "
            "rank",
            [Claim("sqrt(r) minus r", _tuned(rank, root), words.within)],
        ),
    ]  # fmt: skip


def _drifts_apart(rank: Grid | None, root: Grid | None) -> Difference | None:
    """How much further from zero one drift is than the other, on the same seeds."""
    if rank is None or root is None or len(rank.ranks) < 2:
        return None
    found = 100 * (np.abs(drifts(root)) - np.abs(drifts(rank)))
    low, high = np.quantile(found[1:], (0.025, 0.975))
    share = float(np.mean(found[1:] <= 0))
    return Difference(float(found[0]), float(low), float(high), share)


def _larger(root: Grid | None) -> Difference | None:
    if root is None or MIDDLE not in root.ranks or max(root.ranks) == MIDDLE:
        return None
    return gap(root.at_best(max(root.ranks)), root.at_best(MIDDLE))


def _carried(rank: Grid | None, root: Grid | None) -> Difference | None:
    """The validation losses at the largest rank with the rate that is best earlier."""
    if rank is None or root is None or MEETING not in rank.ranks:
        return None
    place = rank.best()[rank.ranks.index(MEETING)]
    pair = [own.losses[:, -1, place][None] for own in (root, rank)]
    return gap(*pair)


def _tuned(rank: Grid | None, root: Grid | None) -> Difference | None:
    if rank is None or root is None:
        return None
    return gap(*(own.at_best(max(own.ranks)) for own in (root, rank)))


# --- the tables and figures ----------------------------------------------------------


def _best(grids: Grids) -> Table:
    rows: list[list[Any]] = []
    for rule, own in grids.items():
        if own is None:
            rows.append([RULES[rule], "every rank", *[None] * 4])
            continue
        for i, (rank, best) in enumerate(zip(own.ranks, own.best(), strict=True)):
            end = best in (0, len(own.rates) - 1)
            rows.append(
                [
                    RULES[rule],
                    rank,
                    f"{own.rates[best]:.2g}{'*' * bool(end)}",
                    float(own.losses[:, i, best].mean()),
                    100 * float(own.accuracies[:, i, best].mean()),
                    percent(own.at_best(rank)),
                ]
            )
    columns = (
        "scale", "rank", "best rate", "validation loss", "validation, %", "test, %",
    )  # fmt: skip
    return Table(
        columns,
        rows,
        caption="The best rate of every rank, by the mean validation loss over seeds.",
        notes=[
            "Test accuracy at that rate, with 95 % bootstrap intervals over texts and "
            "seeds. A star marks an end of the grid, where a better rate may lie "
            f"outside. At rank {MEETING} the two rules are one."
        ],
        align="lrlrrl",
        digits=dict.fromkeys(columns, 1) | {"validation loss": 3},
    )


def _drift(grids: Grids) -> Table:
    rows = []
    for rule, own in grids.items():
        cells: list[Any] = [None, None]
        if own is not None and len(own.ranks) > 1:
            found = drifts(own)
            low, high = np.quantile(found[1:], (0.025, 0.975))
            rates = np.array(own.rates)[own.best()]
            cells = [(found[0], low, high), f"{rates.max() / rates.min():.3g}"]
        rows.append([RULES[rule], *cells])
    return Table(
        ["scale", "doublings of the best rate for each of the rank", "largest / least"],
        rows,
        caption="How far the best rate drifts with the rank.",
        notes=["A fitted slope, with 95 % intervals over seeds drawn anew."],
        align="lll",
        digits=2,
    )


def _figure(rule: str, own: Grid) -> Figure:
    """Validation accuracy over ranks and rates."""
    values = 100 * own.accuracies.mean(axis=0)

    def draw() -> Any:
        return figures.heatmap(
            values,
            [str(rank) for rank in own.ranks],
            [f"{rate:.2g}" for rate in own.rates],
            xlabel="peak learning rate",
            ylabel="rank",
            title=RULES[rule],
            digits=0,
        )

    best = ", ".join(
        f"rank {rank} at {own.rates[place]:.2g}"
        for rank, place in zip(own.ranks, own.best(), strict=True)
    )
    return Figure(
        draw,
        f"Validation accuracy in per cent by rank and rate, {RULES[rule]}, mean over "
        "seeds.",
        f"The best rates: {best}.",
        name=f"lr_rank_{rule}",
    )


def _reduced(records: Records) -> str:
    if not len(records):
        return "Not run."
    config = {**records[0].config, "rank": records[0].config["largest"]}
    seeds = ", ".join(map(str, sorted({r.seed for r in records})))
    return words.budget(config, LENGTHS["tasks"]) + (
        f"Ranks below the largest are filled up with zeros. Seeds {seeds}."
    )
