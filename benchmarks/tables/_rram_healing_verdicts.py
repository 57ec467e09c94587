"""The hypotheses of healing, written down before the run, and what the rows say."""

from typing import Any, NamedTuple

from benchmarks.chips.points import TITLES
from benchmarks.record import Records
from benchmarks.report import Table
from benchmarks.tables import _rram_healing_plan as plan
from benchmarks.tables._rram_healing_numbers import (
    Board,
    Case,
    Needed,
    board,
    fit,
    needed,
)

TIMES = 4  # H1: how many times LoRA's rank the SVD needs
HALF = 0.5  # H1: of the shorter side
FEATURES = {
    "dimension": "intrinsic dimension of healing",
    "effective_rank": "effective rank of E",
    "stable_rank": "stable rank of E",
    "norm": "relative norm of E",
}


class Place(NamedTuple):
    """A fault point with its cells."""

    title: str
    net: str
    point: str
    kind: str
    cells: Board


def places(records: Records) -> list[Place]:
    """All points that the hypotheses speak of, those that were run."""
    found = []
    for net, title in plan.NETS.items():
        for point in plan.POINTS[net]:
            cells = board(records, kind="main", net=net, point=point)
            found.append(Place(f"{title}, {TITLES[point]}", net, point, "main", cells))
    for point in plan.HELD_OUT:
        cells = board(records, kind="dimension", net="mlp", point=point)
        title = f"{plan.NETS['mlp']}, {point.replace('-', ', ')}"
        found.append(Place(title, "mlp", point, "dimension", cells))
    return [place for place in found if place.cells]


def spectrum(cells: Board, name: str) -> float | None:
    """What the error of a point is like."""
    none = cells.get("none")
    own = none.record.metrics.get("spectrum") if none is not None else None
    return None if own is None else float(own[name])


def case(place: Place) -> Case:
    """A point as the prediction of LoRA's rank sees it."""
    dimension = needed(place.cells, "subspace")
    features = {
        name: spectrum(place.cells, name) for name in FEATURES if name != "dimension"
    }
    features["dimension"] = (
        None if dimension is None or dimension.sign else dimension.size
    )
    main = place.kind == "main" and place.net == "mlp"
    return Case(place.title, main, needed(place.cells, "lora"), features)


def ranks(found: list[Place]) -> Table:
    """Sizes that bring back 90 %, with what the error is like."""
    rows: list[list[Any]] = []
    for place in found:
        rows.append(
            [
                place.title,
                *(_shown(needed(place.cells, k)) for k in ("svd", "svdw")),
                *(_shown(needed(place.cells, k)) for k in ("lori-d", "lora")),
                _shown(needed(place.cells, "subspace")),
                *(spectrum(place.cells, n) for n in ("effective_rank", "full")),
                *(spectrum(place.cells, n) for n in ("stable_rank", "norm")),
            ]
        )
    columns = (
        "point", "SVD", "weighted SVD", "LoRI-D", "LoRA", "subspace d",
        "effective rank", "of the side", "stable rank", "relative norm",
    )  # fmt: skip
    return Table(
        columns,
        rows,
        caption="Rank, or d, that brings back 90 % of the lost accuracy, and what the "
        "error E is like.",
        digits={"effective rank": 0, "of the side": 2, "stable rank": 1,
                "relative norm": 2},
        notes=[
            "Between two sizes the share is taken to be linear in the logarithm of the "
            "size; `<=` and `>`: beyond the sizes that were run. Effective rank: the "
            "exponential of the entropy of the singular values of E; stable rank: the "
            "squared Frobenius norm over the square of the largest singular value; "
            "means over kernels, weighted by the shorter side. Relative norm: the "
            "Frobenius norm of E over that of the weights. A kernel whose side is "
            "shorter than the rank has an adapter of that side's rank."
        ],
    )  # fmt: skip


def hypotheses(found: list[Place]) -> Table:
    """The verdicts."""
    main = [place for place in found if place.kind == "main"]
    rows = [
        [
            "H1: E is nearly full rank, so the SVD needs at least "
            f"{TIMES} times LoRA's rank",
            *_first(main),
        ],
        [
            "H2: the dimension of healing predicts LoRA's rank better than E's "
            "effective rank or norm",
            *_second([case(place) for place in found]),
        ],
        ["H3: a frozen random A costs 2 to 4 times the rank", *_third(main)],
    ]
    return Table(
        ("hypothesis", "verdict", "numbers"),
        rows,
        caption="The hypotheses written down before the run.",
        align="lll",
        notes=[
            "Read off point estimates of the sizes that bring back 90 %. Supported: "
            "every point bears it out; contradicted: at least one speaks against it; "
            "undecided: a size lies beyond those that were run, or rows are missing. "
            "H2: one factor for each predictor, fitted on the fault points of the MLP; "
            "the number is the mean magnitude of the error of log2(rank) on held-out "
            "rates, the clustered map and LeNet-5, over the cases that both a rank and "
            "the predictor are known for."
        ],
    )


def _first(found: list[Place]) -> tuple[str, str | None]:
    """H1."""
    marks, words = [], []
    for place in found:
        full = spectrum(place.cells, "full")
        svd, lora = needed(place.cells, "svd"), needed(place.cells, "lora")
        if full is None or svd is None or lora is None:
            marks.append(0)
            continue
        times = ratio(svd, lora)
        marks.append(min(1 if full > HALF else -1, _at_least(times, TIMES)))
        words.append(
            f"{place.title}: {full:.2f} of the side, SVD over LoRA {_times(times)}"
        )
    return _verdict(marks), "; ".join(words) or None


def _third(found: list[Place]) -> tuple[str, str | None]:
    """H3."""
    marks, words = [], []
    for place in found:
        lori, lora = needed(place.cells, "lori-d"), needed(place.cells, "lora")
        if lori is None or lora is None:
            marks.append(0)
            continue
        times = ratio(lori, lora)
        above, below = _at_least(times, 2), _at_most(times, 4)
        marks.append(min(above, below))
        words.append(f"{place.title}: {_times(times)}")
    return _verdict(marks), "; ".join(words) or None


def _second(cases: list[Case]) -> tuple[str, str | None]:
    """H2."""
    fits = {name: fit(cases, name) for name in FEATURES}
    means = {n: own.mean for n, own in fits.items() if own is not None}
    known = {n: mean for n, mean in means.items() if mean is not None}
    words = "; ".join(
        f"{FEATURES[n]}: {own.mean:.2f} over {len(own.errors)} cases"
        for n, own in fits.items()
        if own is not None and own.mean is not None
    )
    rivals = [known[n] for n in ("effective_rank", "norm") if n in known]
    if "dimension" not in known or len(rivals) < 2:
        return ("not run" if not words else "undecided"), words or None
    return ("supported" if known["dimension"] < min(rivals) else "contradicted"), words


class Times(NamedTuple):
    """A ratio of two sizes, and whether it is only a bound."""

    value: float
    bound: str  # "", ">=", "<=" or "?"


def ratio(one: Needed, two: Needed) -> Times:
    """How many times the one size is the other."""
    up = one.sign == ">" or two.sign == "<="
    down = one.sign == "<=" or two.sign == ">"
    bound = "?" if up and down else ">=" if up else "<=" if down else ""
    return Times(one.size / two.size, bound)


def _at_least(times: Times, least: float) -> int:
    if times.bound in ("", ">=") and times.value >= least:
        return 1
    return -1 if times.bound in ("", "<=") and times.value < least else 0


def _at_most(times: Times, most: float) -> int:
    if times.bound in ("", "<=") and times.value <= most:
        return 1
    return -1 if times.bound in ("", ">=") and times.value > most else 0


def _verdict(marks: list[int]) -> str:
    if not marks:
        return "not run"
    if min(marks) < 0:
        return "contradicted"
    return "supported" if min(marks) > 0 else "undecided"


def _times(times: Times) -> str:
    return f"{times.bound} {times.value:.1f}".strip()


def _shown(found: Needed | None) -> str | None:
    return None if found is None else str(found)
