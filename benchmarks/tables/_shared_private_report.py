"""What the table of shared and private adapters shows."""

from typing import Any

from benchmarks.record import Records
from benchmarks.report import Block, Heading, Table, Text
from benchmarks.study.methods import METHODS
from benchmarks.study.shared import SCHEMES
from benchmarks.study.tasks import LENGTHS, SUITES
from benchmarks.tables import _lori_words as words
from benchmarks.tables._lori_words import Claim, Hypothesis, Rights

TITLES = SUITES["domains"]
APART = "lora"
NAMES = {
    "lora": f"{METHODS['lora'].title}, one for each domain",
    "lora-r2": f"{METHODS['lora-r2'].title}, one for each domain",
    "joint": "LoRA, one for all domains",
    **{name: scheme.title for name, scheme in SCHEMES.items()},
}


def blocks(records: Records) -> list[Block]:
    """Returns the blocks of the report; complete even for no records."""
    cells = {name: _rights(records, name) for name in NAMES}
    sizes = {name: _size(records, name) for name in NAMES}
    return [
        Heading("Does sharing save parameters?"),
        words.hypotheses(
            expected(cells, sizes),
            "Sharing: the hypotheses written down before the run.",
        ),
        _table(cells, sizes),
        Text(_reduced(records)),
    ]


def _of(records: Records, name: str) -> Records:
    """The records of a row of the table."""
    if name in SCHEMES:
        return records.where(kind="shared", scheme=name)
    if name == "joint":
        return records.where(kind="joint")
    return records.where(kind="single", method=name)


def _rights(records: Records, name: str) -> Rights | None:
    own = _of(records, name)
    if name in ("lora", "lora-r2"):
        return words.of_singles(own, TITLES)
    return words.of_merges(own, TITLES)


def _size(records: Records, name: str) -> int | None:
    """Numbers trained for all domains together, heads left out."""
    own = _of(records, name)
    if not len(own):
        return None
    number = own[0].metrics["trained"]
    return number * (len(TITLES) if name in ("lora", "lora-r2") else 1)


def expected(
    cells: dict[str, Rights | None], sizes: dict[str, int | None]
) -> list[Hypothesis]:
    """The hypotheses, in the words of the table, with their comparisons."""
    whole = sizes[APART]
    half = [name for name in SCHEMES if whole and 2 * (sizes[name] or whole) <= whole]
    return [
        Hypothesis(
            "H19",
            "the schemes with a shared part reach the accuracy of an adapter each "
            "(within 1 point) with half of its numbers or fewer",
            [
                Claim(
                    f"{NAMES[name]} minus one each",
                    words.difference(cells[name], cells[APART]),
                    words.no_cost,  # to reach is not to be worse by more
                )
                for name in half
            ],
        ),
        Hypothesis(
            "H20",
            "one adapter for all is worse than an adapter each",
            [
                Claim(
                    "one for all minus one each",
                    words.difference(cells["joint"], cells[APART]),
                    words.below,
                )
            ],
        ),
    ]


def _table(cells: dict[str, Rights | None], sizes: dict[str, int | None]) -> Table:
    """A row for each way."""
    rows: list[list[Any]] = []
    for name, title in NAMES.items():
        own, size = cells[name], sizes[name]
        if own is None or size is None:
            rows.append([title, *[None] * (len(TITLES) + 4)])
            continue
        mean, *each = own.percents()
        minus = words.NONE
        if name != APART:
            minus = words.written(words.difference(own, cells[APART]))
        share = size / sizes[APART] if sizes[APART] else None
        rows.append([title, mean, minus, *each, size, share])
    columns = (
        "adapters", "mean, %", "minus one each",
        *(f"{title}, %" for title in TITLES.values()), "trained", "share",
    )  # fmt: skip
    notes = [
        "`trained`: numbers of the adapters of all four domains together, heads left "
        "out; `share`: of those of a rank-8 LoRA for each. The mean is over the texts "
        "of all domains; 95 % bootstrap intervals over texts and seeds, differences "
        "paired. Rates: the same number of trials for every row."
    ]
    return Table(
        columns,
        rows,
        caption="Sentiment in four domains: adapters apart, together, and in parts.",
        align="lll" + "l" * len(TITLES) + "rr",
        digits=dict.fromkeys(columns, 1) | {"share": 3},
        notes=notes,
    )


def _reduced(records: Records) -> str:
    """What was small."""
    own = [r for r in records if "rank" in r.config]
    if not own:
        return "Not run."
    seeds = ", ".join(map(str, sorted({r.seed for r in own})))
    return words.budget(own[0].config, LENGTHS["domains"]) + f"Seeds {seeds}."
