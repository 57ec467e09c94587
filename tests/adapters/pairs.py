"""Which transforms compose by `chain`: derived from the tables of instances.

`python -m tests.adapters.pairs` writes the table of `docs/methods/composition.md` anew.
"""

import dataclasses
import functools
import inspect
import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import pytest

import lowrank as lrk
from tests import network
from tests.instances import INSTANCES, Instance
from tests.network import arrays, model
from tests.untyped import untyped

PAGE = Path(__file__).parents[2] / "docs/methods/composition.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
KEY = jax.random.key(7, impl="unsafe_rbg")  # of little code: it compiles at once
LIFTED = lrk.lift(model)
FAMILIES = (lrk, lrk.adapters, lrk.subspace, lrk.rram, lrk.quantization)


# --- what is composed ----------------------------------------------------------------


def method_of(name: str) -> str:
    """The public name that a row's name starts with; else the row's own name."""
    public = {name for family in FAMILIES for name in family.__all__}
    parts = name.split("-")
    fronts = ("_".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((front for front in fronts if front in public), name)


def touched(row: Instance) -> int:
    """How many leaves a transform touches."""
    return len(lrk.select_paths(built(row), network.with_images()))


def plain_rows() -> list[Instance]:
    """The rows of one transform each, and members of others; not the identity."""
    single = re.compile(r"(?!identity$)[^+|]+")
    return [row for row in all_rows() if single.fullmatch(row.name)]


def all_rows() -> list[Instance]:
    """All rows, and members of others."""
    return [one for row in INSTANCES for one in (row, *row.members)]


@functools.cache
@untyped()
def methods() -> dict[str, Instance]:
    """By name, the row of each method that touches most leaves.

    A composed row, or a further one of a method, enters by its own name if it has a
    part, or leaves an operator on top of a leaf, that no other row has.
    """
    rows: dict[str, list[Instance]] = defaultdict(list)
    for row in plain_rows():
        rows[method_of(row.name)].append(row)
    chosen = {name: max(own, key=touched) for name, own in rows.items()}
    seen = set(chosen).union(*(outermost(alone(row)) for row in chosen.values()))
    for row in all_rows():
        parts = set(map(method_of, re.split(r"[+|]", row.name))) - {"identity"}
        if new := (parts | outermost(alone(row))) - seen:
            chosen[row.name] = row
            seen |= new
    return chosen


@functools.cache
def built(row: Instance) -> lrk.Transform:
    """The transform of a row."""
    return row.build()


@functools.cache
def alone(row: Instance) -> Any:
    """The tree that a transform gives, without a number in it."""
    return adapted(built(row), shapes())


@functools.cache
def shapes() -> Any:
    """The tree of the laws with kernels of images, without a number in it."""
    return jax.eval_shape(network.with_images)


def adapted(tx: lrk.Transform, params: Any) -> Any:
    """The tree that a transform gives with the state of its own `init`."""
    return jax.eval_shape(
        lambda key, params: tx.apply(params, tx.init(key, params), key=key), KEY, params
    )


@functools.cache
def classes() -> tuple[str, ...]:
    """The names of all classes of operators."""
    found, todo = [], [lrk.Operator]
    while todo:
        below = todo.pop().__subclasses__()
        found += [cls.__name__ for cls in below]
        todo += below
    return tuple(sorted(set(found)))


def nesting(leaf: Any) -> str:
    """`LowRank(Magnitude)`: an operator and what it stands on."""
    if not isinstance(leaf, lrk.Operator):
        return ""
    inner = [nesting(getattr(leaf, name)) for name in leaf.base_fields]
    below = ", ".join(filter(None, inner))
    return f"{type(leaf).__name__}({below})" if below else type(leaf).__name__


def kinds(tree: Any) -> frozenset[str]:
    """The nestings of operators in a tree."""
    return frozenset(filter(None, map(nesting, leaves(tree).values())))


def outermost(tree: Any) -> set[str]:
    """The names of the operators that stand in a tree, whatever they stand on."""
    return {kind.split("(")[0] for kind in kinds(tree)}


def leaves(tree: Any) -> dict[str, Any]:
    """Arrays and operators by path."""
    flat = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda x: isinstance(x, lrk.Operator)
    )
    return {"/".join(str(k.key) for k in path): leaf for path, leaf in flat}


# --- what comes of it ----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a pair comes to, or why it is refused.

    Attributes:
        dense: Whether every operator has a dense form.
        reason: The message of the refusal.
    """

    dense: bool = False
    reason: str | None = None


@functools.cache
@untyped()  # the laws check each transform's types; here that would be half the time
def outcomes() -> dict[tuple[str, str], Outcome]:
    """Of every ordered pair.

    The second member sees operators and shapes alone. So firsts that leave the same
    paths, and operators of one kind at leaves of as many axes, are one case; and the
    model is lifted where a leaf has an operator that it has not met there yet.
    """
    seen: dict[Any, Outcome] = {}
    met: set[tuple[str, str]] = set()
    found = {}
    for first, second in itertools.product(methods(), repeat=2):
        given = alone(methods()[first])
        left = {(leaf.ndim, nesting(leaf)) for leaf in leaves(given).values()}
        case = (tuple(leaves(given)), frozenset(left), second)
        if case not in seen:
            seen[case] = _outcome(given, methods()[second], met)
        found[first, second] = seen[case]
    return found


def _outcome(given: Any, second: Instance, met: set[tuple[str, str]]) -> Outcome:
    new, reason = refusal(lambda: adapted(built(second), given))
    if reason:
        return Outcome(reason=reason)
    places = {(path, nesting(leaf)) for path, leaf in leaves(new).items()}
    if places - met:
        reason = refusal(lambda: outputs(new))[1]
        if reason:
            return Outcome(reason=reason)
        met |= places
    own = [x for x in leaves(new).values() if isinstance(x, lrk.Operator)]
    return Outcome(all(x.has_dense for x in own))


def outputs(tree: Any) -> Any:
    """Shapes of what the lifted model gives."""
    return jax.eval_shape(LIFTED, tree, arrays()["x"])


def refusal(run: Callable[[], Any]) -> tuple[Any, str | None]:
    """What a call returns, or the message of the package's own refusal."""
    try:
        return run(), None
    except (TypeError, ValueError) as error:
        message = str(error)
        if not re.match(r"[\w.]+: ", message):
            raise
        return None, shortened(message)


def shortened(message: str) -> str:
    """A message with one leaf of each kind, and no line or class of operator."""
    message = re.sub(r" \(\w+\.py:\d+\)", "", message)
    message = re.sub(rf"\b({'|'.join(classes())})\b", "Operator", message)
    place = r"'[\w/]+'(?: of shape \([\d, ]+\))?"
    tail = r"(?:: [^;.,']+| \(\w+\))?"
    return re.sub(rf"({place}{tail})(?:[;,] {place}{tail})+", r"\1, ...", message)


# --- the public calls behind the rows ------------------------------------------------


def calls() -> dict[str, str]:
    """By method, the public call of its row, found by making the row once more."""
    texts: dict[int, str] = {}
    kept = []  # so that no other object gets an id that is in `texts`

    def shown(arg: Any) -> str:
        if isinstance(arg, lrk.rram.Device):
            plain = lrk.rram.Device()
            own = [f.name for f in dataclasses.fields(arg)]
            own = [n for n in own if getattr(arg, n) != getattr(plain, n)]
            return f"lrk.rram.Device({'=..., '.join(own)}=...)"
        return repr(arg) if isinstance(arg, (int, float)) else texts.get(id(arg), "...")

    def recorded(path: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def run(*args: Any, **options: Any) -> Any:
            made = call(*args, **options)
            named = [(n, x) for n, x in options.items() if n not in ("select", "axes")]
            parts = [*map(shown, args), *(f"{n}={shown(x)}" for n, x in named)]
            parts = [part for part in parts if not part.endswith("...")]
            rest = ["..."] if len(parts) < len(args) + len(options) else []
            kept.append(made)
            texts[id(made)] = f"{path}({', '.join(parts + rest)})"
            return made

        return run

    with pytest.MonkeyPatch.context() as patch:
        for family in FAMILIES:
            front = family.__name__.replace("lowrank", "lrk")
            for name in family.__all__:
                public = getattr(family, name)
                if inspect.isfunction(public):
                    patch.setattr(family, name, recorded(f"{front}.{name}", public))
        made = {name: row.build() for name, row in methods().items()}
    return {name: texts.get(id(tx), f"lrk.{name}") for name, tx in made.items()}


# --- the page ------------------------------------------------------------------------


def _alike(names: Iterable[str], line: Callable[[str], Any]) -> list[list[str]]:
    """Names whose lines of the table are equal, together."""
    groups: dict[Any, list[str]] = defaultdict(list)
    for name in names:
        groups[line(name)].append(name)
    return list(groups.values())


def table() -> str:
    """The table in Markdown: equal rows and equal columns are one each."""
    found, names = outcomes(), list(methods())
    reasons = list(dict.fromkeys(o.reason for o in found.values() if o.reason))

    def mark(first: str, second: str) -> str:
        own = found[first, second]
        if own.reason is not None:
            return f"refused ({reasons.index(own.reason) + 1})"
        return "yes" if own.dense else "in products"

    rows = _alike(names, lambda a: tuple(mark(a, b) for b in names))
    columns = _alike(names, lambda b: tuple(mark(a, b) for a in names))

    def label(group: list[str], groups: list[list[str]]) -> str:
        most = group is max(groups, key=len) and len(groups) > 1
        shown = (f"`{name}`".replace("|", "\\|") for name in group)
        return "all others" if most else ", ".join(shown)

    lines = [
        f"{len(names)} transforms, {len(found)} ordered pairs, "
        f"{sum(o.reason is not None for o in found.values())} of them refused.",
        "",
        f"| first \\ second | {' | '.join(label(g, columns) for g in columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for row in rows:
        cells = [mark(row[0], column[0]) for column in columns]
        lines.append(f"| {label(row, rows)} | {' | '.join(cells)} |")
    lines += ["", "The refusals:", ""] if reasons else []
    lines += [f"{i + 1}. {reason}" for i, reason in enumerate(reasons)]
    lines += ["", "The operators that the transforms leave:", ""]
    lines += ["| transform | operators |", "|---|---|"]
    for group in _alike(names, lambda name: kinds(alone(methods()[name]))):
        own = sorted(kinds(alone(methods()[group[0]])))
        shown = ", ".join(f"`{kind}`" for kind in own) or "plain arrays"
        lines.append(f"| {label(group, [group])} | {shown} |")
    lines += ["", "The calls behind the names; `...` stands for arrays, selections and"]
    lines += ["axes:", "", "| transform | call |", "|---|---|"]
    lines += [f"| `{name}` | `{call}` |" for name, call in calls().items()]
    return "\n".join(lines)


def committed() -> str:
    """The table that the page shows."""
    return PAGE.read_text().split(BEGIN)[1].split(END)[0].strip()


def write() -> None:
    """Write the table of the page anew."""
    front, rest = PAGE.read_text().split(BEGIN)
    back = rest.split(END)[1]
    PAGE.write_text(f"{front}{BEGIN}\n\n{table()}\n\n{END}{back}")


if __name__ == "__main__":
    write()
