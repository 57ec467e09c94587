"""What the configs of the models share: checks of their sizes."""

from collections.abc import Collection, Iterable
from dataclasses import fields
from typing import Any


def check_sizes(
    config: Any,
    multiples: Iterable[tuple[str, str]] = (),
    optional: Collection[str] = (),
) -> None:
    """Refuse sizes below 1, negative real numbers, and widths that do not divide.

    `multiples` are pairs of fields `(whole, part)`: the first is to be a multiple of
    the second. The fields in `optional` may be 0; those that are no numbers are left
    alone.
    """
    wrong = []
    for field in fields(config):
        value = getattr(config, field.name)
        least = 0 if field.type is float or field.name in optional else 1
        if isinstance(value, int | float) and type(value) is not bool and value < least:
            wrong.append(f"'{field.name}': expected at least {least}, got {value}")
    if not wrong:
        wrong = [
            f"'{whole}': expected a multiple of {getattr(config, part)} ({part}), "
            f"got {getattr(config, whole)}"
            for whole, part in multiples
            if getattr(config, whole) % getattr(config, part)
        ]
    if wrong:
        raise ValueError(
            f"{type(config).__name__}: wrong sizes at {'; '.join(wrong)}. Correct the "
            "config."
        )
