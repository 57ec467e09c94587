"""Merging: from adapted trees over one base to one adapted tree."""

from lowrank.merging._concat import concat
from lowrank.merging._overlap import overlap

__all__ = ["concat", "overlap"]
