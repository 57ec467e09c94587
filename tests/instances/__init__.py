"""The table of instances that the laws run for: every transform and what it claims.

A new method adds one row to the table of its family.
"""

from tests.instances import adapters, quantization, rram, subspace
from tests.instances.instance import Instance

INSTANCES: tuple[Instance, ...] = (
    *adapters.INSTANCES,
    *subspace.INSTANCES,
    *rram.INSTANCES,
    *quantization.INSTANCES,
)
