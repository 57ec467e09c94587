"""What the configs of the models share: checks of their sizes."""

from collections.abc import Collection, Iterable
from dataclasses import fields
from typing import Any

_MOST = 2**24  # more than any size of a published model


def is_number(value: Any) -> bool:
    """Whether it is a number that can be reckoned with: no bool, NaN or infinity."""
    return type(value) in (int, float) and abs(value) < 1e30


def check_depth(who: str, place: Any, layers: int, tensors: int) -> None:
    """Refuse more layers than there are tensors before any of them is made.

    Raises:
        ValueError: If there are more.
    """
    if layers > tensors:
        raise ValueError(
            f"{who}: '{place}' tells of {layers} layers, but there are {tensors} "
            "tensors. One of both is damaged: fetch them again."
        )


def check_sizes(
    config: Any,
    multiples: Iterable[tuple[str, str]] = (),
    optional: Collection[str] = (),
) -> None:
    """Refuse sizes below 1 or absurd, negative reals, and widths that do not divide.

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
        if type(value) is int and field.type is not float and value > _MOST:
            wrong.append(
                f"'{field.name}': expected at most {_MOST}, got {str(value)[:30]}"
            )
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
