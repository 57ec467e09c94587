"""Subspaces: many weights that few trained numbers move."""

from lowrank.subspace._dense import dense
from lowrank.subspace._gather import gather
from lowrank.subspace._random import Projection, random

__all__ = ["Projection", "dense", "gather", "random"]
