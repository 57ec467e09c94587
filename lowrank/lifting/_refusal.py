"""What lift says when a weight cannot stay factored, or is not used."""

from collections.abc import Iterable, Sequence

from lowrank._base import Path
from lowrank.lifting._frame import Use


class LiftError(TypeError):
    """`lift` met an operation that would form a weight, or a leaf that does not fit."""


def refuse(uses: Iterable[Use], paths: Sequence[Path]) -> None:
    """Raise for every use that would form a weight.

    Raises:
        LiftError: Always.
    """
    lines = dict.fromkeys(
        f"'{paths[use.slot]}' ({use.operator}) at {use.primitive} ({use.source})"
        + (f": {use.note}" if use.note else "")
        for use in uses
    )
    raise LiftError(
        f"lift: no factored form of {'; '.join(lines)}. Leave the leaf out with "
        'select=, or pass on_dense="allow" to form the weight there; lrk.explain shows '
        "every use."
    )


def refuse_unused(paths: Iterable[Path]) -> None:
    """Raise for operators that the function does not use.

    Raises:
        LiftError: Always.
    """
    names = ", ".join(f"'{path}'" for path in paths)
    raise LiftError(
        f"lift: the function never uses {names}, so what is trained there has no "
        'effect. Leave the leaf out with select=, or pass on_unused="allow".'
    )


def refuse_mismatch(reasons: Iterable[str]) -> None:
    """Raise for operators whose parts do not fit each other.

    Raises:
        LiftError: Always.
    """
    raise LiftError(
        f"lift: {'; '.join(reasons)}. Stacked adapters go through "
        "jax.vmap(lrk.lift(fn), in_axes=(lrk.in_axes(adapted), 0)), not whole."
    )
