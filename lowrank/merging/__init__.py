"""Merging: from adapted trees over one base to one adapted tree."""

from lowrank.merging._concat import concat

__all__ = ["concat"]
