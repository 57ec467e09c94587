"""Calls as a user makes them: without the type checks that the tests weave in."""

import contextlib
from collections.abc import Iterator

import jaxtyping


@contextlib.contextmanager
def untyped() -> Iterator[None]:
    """Wrongly typed arguments reach the package's own checks and messages."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)
