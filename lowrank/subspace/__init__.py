"""Subspaces: many weights that few trained numbers move."""

from lowrank.subspace._bound import (
    CompressionBound,
    Quantised,
    compression_bound,
    quantise,
)
from lowrank.subspace._dense import dense
from lowrank.subspace._fastfood import fastfood, fastfood_stacked
from lowrank.subspace._gather import gather
from lowrank.subspace._kronecker import kronecker
from lowrank.subspace._over import over
from lowrank.subspace._projection import Projection
from lowrank.subspace._random import random
from lowrank.subspace._sparse import sparse
from lowrank.subspace._structured import group_names, structured
from lowrank.subspace._sweep import Sweep, at_best_rate, sweep
from lowrank.subspace._sweep_dimension import (
    Baselines,
    Bracket,
    IntrinsicDimension,
    bisect,
    intrinsic_dimension,
    local_and_overall,
)
from lowrank.subspace._sweep_trial import trial
from lowrank.subspace._wrappers import per_leaf, regenerated

__all__ = [
    "Baselines",
    "Bracket",
    "CompressionBound",
    "IntrinsicDimension",
    "Projection",
    "Quantised",
    "Sweep",
    "at_best_rate",
    "bisect",
    "compression_bound",
    "dense",
    "fastfood",
    "fastfood_stacked",
    "gather",
    "group_names",
    "intrinsic_dimension",
    "kronecker",
    "local_and_overall",
    "over",
    "per_leaf",
    "quantise",
    "random",
    "regenerated",
    "sparse",
    "structured",
    "sweep",
    "trial",
]
