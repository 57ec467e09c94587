"""Module names and patterns of a PEFT config, matched as PEFT matches them.

The patterns come from a file. Python's matcher can take for ever on a short one, so
those whose time cannot be bounded are refused, and what all take together is limited.
"""

import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

_LONGEST, _MOST, _SECONDS = 200_000, 16, 20.0
_REPEAT_WEIGHT = 3  # of a choice: a repeat multiplies the work by the name's length
_REPEAT = re.compile(r"[*+]|\{\d*,?\d*\}")
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)


def compiled(text: Any, most: int = _MOST) -> re.Pattern[str] | str:
    """A pattern from a file, or why it is refused."""
    if not isinstance(text, str) or len(text) > _LONGEST:
        return "no regular expression"
    if (reason := _slow(text, most)) is not None:
        return reason
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        return f"no regular expression: {error}"


def _slow(text: str, most: int) -> str | None:
    """Why matching could take very long, or None.

    Kept for each open group: the weight of this branch, and the most of any before.
    """
    groups, place = [[0, 0]], 0
    while place < len(text):
        char = text[place]
        if char == "\\":
            place += 2
            continue
        if char == "[" and (found := _CLASS.match(text, place)):
            place = found.end()
            continue
        if char == "(":
            groups.append([0, 0])
        elif char == ")" and len(groups) > 1:
            inside = max(groups.pop())
            if inside and _REPEAT.match(text, place + 1):
                return "a repeat of repeats or choices, which may match for ever"
            groups[-1][0] += inside
        elif char == "|":
            groups[-1] = [1, max(groups[-1])]
        elif char == "?" and text[place - 1 : place] not in ("(", "*", "+", "}", ""):
            groups[-1][0] += 1
        elif _REPEAT.match(text, place):
            groups[-1][0] += _REPEAT_WEIGHT
        place += 1
    many = max(map(max, groups)) > most
    return "too many repeats and choices in one branch" if many else None


def _timed(match: Callable[[str], Any]) -> Callable[[str], Any]:
    """A matcher that gives up once it has taken very long in all."""
    spent = 0.0

    def run(name: str) -> Any:
        nonlocal spent
        start = time.perf_counter()
        found = match(name)
        spent += time.perf_counter() - start
        if spent > _SECONDS:
            raise ValueError(
                f"adapter_config.json: its patterns took more than {_SECONDS:.0f} s to "
                "match. Write plain module names in their place."
            )
        return found

    return run


def matcher(targets: Any) -> Callable[[str], bool] | str:
    """Whether a module's name is one of `target_modules`; or why that cannot be told.

    A list holds names or ends of names; a string is a regular expression for the whole
    name.
    """
    if isinstance(targets, str):
        pattern = compiled(targets)
        if isinstance(pattern, str):
            return pattern
        return _timed(lambda name: pattern.fullmatch(name) is not None)
    if isinstance(targets, list) and all(isinstance(t, str) for t in targets):
        known = frozenset(targets)
        return lambda name: any(end in known for end in ends(name))
    return "neither a list of names nor a string"


def ends(name: str) -> Iterable[str]:
    """`a.b.c`, `b.c`, `c`."""
    parts = name.split(".")
    return (".".join(parts[i:]) for i in range(len(parts)))


def lookup(
    patterns: Mapping[str, Any], kinds: tuple[type, ...]
) -> Callable[[str], Any] | list[str]:
    """The value for a module's name in a pattern table, or what is wrong with it.

    The first key that matches an end of the name wins, as in PEFT; None if none does.
    """
    table, bad = [], []
    for key, value in patterns.items():
        pattern = compiled(key, _MOST - _REPEAT_WEIGHT)
        if not isinstance(pattern, str):
            pattern = _ending(key)
        if isinstance(pattern, str):
            bad.append(f"{key!r}: {pattern}")
        elif type(value) not in kinds:
            bad.append(f"{key!r}: expected a number, got {value!r}")
        else:
            table.append((pattern, value))

    def find(name: str) -> Any:
        return next((value for pattern, value in table if pattern.match(name)), None)

    return bad or _timed(find)


def _ending(key: str) -> re.Pattern[str] | str:
    """The pattern of an end of a name; flags for all of it, `(?i)`, cannot be in it."""
    try:
        return re.compile(rf"(?:.*\.)?(?:{key})$")
    except (re.error, OverflowError, RecursionError) as error:
        return f"no regular expression for an end of a name: {error}"


def exact_targets(names: Iterable[str], others: Iterable[str]) -> list[str] | str:
    """`target_modules` that take these modules and none of the others.

    A list, unless another name ends in one of them; then a regular expression.
    """
    known = sorted(names)
    own = frozenset(known)
    caught = any(
        end in own for other in others if other not in own for end in ends(other)
    )
    return "|".join(map(re.escape, known)) if caught else known


def exactly(name: str) -> str:
    """The key of a pattern table for one module, and for no other that ends alike."""
    return f"^{re.escape(name)}"
