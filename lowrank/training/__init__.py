"""Training on several devices and hosts, and checkpoints.

Needs `pip install lowrank[training]`.
"""

from lowrank.training._checkpoint import Checkpoint
from lowrank.training._fingerprint import fingerprint
from lowrank.training._shard import fsdp, shard, state_shardings, tensor_parallel

__all__ = [
    "Checkpoint",
    "fingerprint",
    "fsdp",
    "shard",
    "state_shardings",
    "tensor_parallel",
]
