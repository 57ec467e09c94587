"""The hypotheses of healing, written down before the run, and what the rows say."""

from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.chips.points import TITLES
from benchmarks.record import Records
from benchmarks.report import Table
from benchmarks.tables import _rram_healing_plan as plan
from benchmarks.tables._rram_healing_numbers import (
    END,
    ENOUGH,
    Board,
    Case,
    Needed,
    board,
    fit,
    needed,
)

TIMES = 4  # H1: how many times LoRA's rank the SVD needs
HALF = 0.5  # H1: of the shorter side
KINDS = ("held-out rates", "the clustered map", "LeNet-5")
COMPARED = ("dimension", "effective_rank", "norm")
SHARES = (0.8, 0.9, 0.95, 0.97)
ENDED = "the rate grid ends"
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
    for net, points in plan.HELD_OUT.items():
        for point in points:
            cells = board(records, kind="dimension", net=net, point=point)
            title = f"{plan.NETS[net]}, {point.replace('-', ', ')}"
            found.append(Place(title, net, point, "dimension", cells))
    return [place for place in found if place.cells]


def spectrum(cells: Board, name: str) -> float | None:
    """What the error of a point is like."""
    none = cells.get("none")
    own = none.record.metrics.get("spectrum") if none is not None else None
    return None if own is None else float(own[name])


def case(place: Place, enough: float = ENOUGH) -> Case:
    """A point as the prediction of LoRA's rank sees it."""
    dimension = needed(place.cells, "subspace", enough)
    rank = needed(place.cells, "lora", enough)
    features = {
        name: spectrum(place.cells, name) for name in FEATURES if name != "dimension"
    }
    features["dimension"] = (
        None if dimension is None or dimension.sign else dimension.size
    )
    main = place.kind == "main" and place.net == "mlp"
    kind = KINDS[2] if place.net != "mlp" else KINDS["clusters" in place.point]
    at_end = any(own is not None and own.at_end for own in (dimension, rank))
    return Case(place.title, main, rank, features, "" if main else kind, at_end)


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
            "size; `<=` and `>`: beyond the sizes that were run; *: it "
            "rests on a row whose learning rate is the least or the largest of its "
            "grid, so another rate may need less. Effective rank: the "
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
        ["H1a: E is nearly full rank", *_full_rank(main)],
        ["H1b: the SVD needs a rank close to the width", *_wide(main)],
        [f"H1c: the SVD needs at least {TIMES} times LoRA's rank", *_first(main)],
        [
            "H2: the dimension of healing predicts LoRA's rank better than E's "
            "effective rank or norm",
            *_second(found),
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
            "undecided: a size lies beyond those that were run, a rate that it rests "
            "on is the least or the largest of its grid (marked *), or rows are "
            "missing. H1a: the effective rank is above half of the shorter side. H1b: "
            "the rank is at least half of the shorter side of the widest kernel; that "
            "half was set after the run, the words before it. H2: one factor for each "
            "predictor, fitted on the fault points of the MLP; the number is the mean "
            "magnitude of the error of log2(rank) on held-out rates, the clustered map "
            "and LeNet-5, over the cases that both a rank and the predictor are known "
            "for; undecided unless there is one of each."
        ],
    )


Verdict = tuple[str, str | None]


def _full_rank(found: list[Place]) -> Verdict:
    """H1a."""
    marks, words = [], []
    for place in found:
        full = spectrum(place.cells, "full")
        if full is None:
            marks.append(0)
            continue
        marks.append(1 if full > HALF else -1)
        words.append(f"{place.title}: {full:.2f} of the side")
    return _verdict(marks), "; ".join(words) or None


def _wide(found: list[Place]) -> Verdict:
    """H1b."""
    marks, words = [], []
    for place in found:
        svd, width = needed(place.cells, "svd"), plan.WIDTHS[place.net]
        if svd is None:
            marks.append(0)
            continue
        share = Times(svd.size / width, {"<=": "<=", ">": ">="}.get(svd.sign, ""))
        marks.append(_at_least(share, HALF))
        words.append(f"{place.title}: rank {svd} of {width}")
    return _verdict(marks), "; ".join(words) or None


def _first(found: list[Place]) -> Verdict:
    """H1c."""
    return _ratios(found, "svd", lambda times: _at_least(times, TIMES))


def _third(found: list[Place]) -> Verdict:
    """H3."""
    return _ratios(
        found, "lori-d", lambda times: min(_at_least(times, 2), _at_most(times, 4))
    )


def _ratios(found: list[Place], kind: str, mark: Callable[["Times"], int]) -> Verdict:
    """How many times LoRA's rank a kind needs, at every point."""
    marks, words, ended = [], [], False
    for place in found:
        one, lora = needed(place.cells, kind), needed(place.cells, "lora")
        if one is None or lora is None:
            marks.append(0)
            continue
        times, at_end = ratio(one, lora), one.at_end or lora.at_end
        ended |= at_end
        marks.append(0 if at_end else mark(times))
        words.append(f"{place.title}: {_times(times)}{END if at_end else ''}")
    verdict = _verdict(marks)
    if verdict == "undecided" and ended:
        verdict += f": {ENDED}"
    return verdict, "; ".join(words) or None


def _second(found: list[Place], enough: float = ENOUGH) -> Verdict:
    """H2."""
    cases = [case(place, enough) for place in found]
    fits = {name: fit(cases, name) for name in FEATURES}
    words = "; ".join(
        f"{FEATURES[n]}: {own.mean:.2f} over {len(own.errors)} cases"
        for n, own in fits.items()
        if own is not None and own.mean is not None
    )
    if not cases:
        return "not run", None
    compared = [fits[name] for name in COMPARED]
    means = [None if own is None else own.mean for own in compared]
    known = [set(own.errors) if own is not None else set() for own in compared]
    whole = set.intersection(*known)
    lacking = [
        kind
        for kind in KINDS
        if not any(own.kind == kind and own.name in whole for own in cases)
    ]
    used = whole | {own.name for own in cases if own.fitted}
    ended = any(own.at_end for own in cases if own.name in used)
    why = [f"no rank is known for {', '.join(lacking)}"] if lacking else []
    why += [ENDED] if ended else []
    if why or None in means:
        return ": ".join(["undecided", *(["; ".join(why)] if why else [])]), (
            words or None
        )
    first, *rivals = (mean for mean in means if mean is not None)
    return "supported" if first < min(rivals) else "contradicted", words


def thresholds(found: list[Place]) -> Table:
    """LoRA's rank at other shares than that of the hypotheses, and what H2 says."""
    rows: list[list[Any]] = [
        [place.title, *(_shown(needed(place.cells, "lora", s)) for s in SHARES)]
        for place in found
    ]
    rows.append(["H2, read at that share", *(_second(found, s)[0] for s in SHARES)])
    return Table(
        ("point", *(f"{100 * share:g} %" for share in SHARES)),
        rows,
        caption="LoRA's rank by the share of the loss that must come back.",
        align="l" * (1 + len(SHARES)),
        notes=[
            "Looked at after the run, to see whether another share than 90 % tells "
            "the points apart: none gives a rank for every kind of point. `<=`, `>`: "
            "beyond the ranks that were run; *: it rests on a rate at the end of its "
            "grid."
        ],
    )


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
