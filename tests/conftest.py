"""Fixtures that any test may ask for."""

from collections.abc import Callable
from typing import Any

import pytest


class Traces:
    """Counts how often a function is traced: `f = jax.jit(traces(f))`."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return fn(*args, **kwargs)

        return counted


@pytest.fixture
def traces() -> Traces:
    """A fresh counter; `traces.count` says how often Python ran the function."""
    return Traces()
