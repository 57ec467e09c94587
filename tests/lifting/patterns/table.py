"""The table of model patterns that `lift` runs unmodified."""

from tests.lifting.patterns import (
    control_flow,
    convolutions,
    flax_models,
    loops,
    other_frameworks,
    products,
    sharding,
    structure,
)
from tests.lifting.patterns.pattern import Pattern

PATTERNS: tuple[Pattern, ...] = (
    *products.PATTERNS,
    *structure.PATTERNS,
    *convolutions.PATTERNS,
    *loops.PATTERNS,
    *control_flow.PATTERNS,
    *flax_models.PATTERNS,
    *other_frameworks.PATTERNS,
    *sharding.PATTERNS,
)
