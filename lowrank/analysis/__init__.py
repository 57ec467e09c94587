"""Analysis: what adapters changed, how alike they are, and what they leave out."""

from lowrank.analysis._amplification import amplification
from lowrank.analysis._capacity import Capacity, capacity
from lowrank.analysis._compare import compare
from lowrank.analysis._drift import Drift, drift
from lowrank.analysis._intruders import Intruders, intruders, mitigate_intruders
from lowrank.analysis._kernel import kernel, kernel_alignment
from lowrank.analysis._report import report
from lowrank.analysis._similarity import (
    cosine,
    principal_angles,
    similarity_grid,
    subspace_similarity,
)
from lowrank.analysis._spectrum import (
    effective_rank,
    energy_at_rank,
    norm,
    numerical_rank,
    participation_ratio,
    rank_at_energy,
    singular_values,
    stable_rank,
)
from lowrank.analysis._table import Table
from lowrank.analysis._tasks import alignment_ratio, sign_conflicts, task_interference

__all__ = [
    "Capacity",
    "Drift",
    "Intruders",
    "Table",
    "alignment_ratio",
    "amplification",
    "capacity",
    "compare",
    "cosine",
    "drift",
    "effective_rank",
    "energy_at_rank",
    "intruders",
    "kernel",
    "kernel_alignment",
    "mitigate_intruders",
    "norm",
    "numerical_rank",
    "participation_ratio",
    "principal_angles",
    "rank_at_energy",
    "report",
    "sign_conflicts",
    "similarity_grid",
    "singular_values",
    "stable_rank",
    "subspace_similarity",
    "task_interference",
]
