"""Merging: from adapted trees over one base to one adapted tree."""

from lowrank.merging._breadcrumbs import breadcrumbs
from lowrank.merging._concat import concat
from lowrank.merging._core_space import core_space
from lowrank.merging._dare import dare
from lowrank.merging._della import della
from lowrank.merging._fisher import fisher
from lowrank.merging._fisher_diagonal import fisher_diagonal
from lowrank.merging._gram import gram
from lowrank.merging._interference import Interference, interference
from lowrank.merging._iso import iso, iso_cts
from lowrank.merging._knots import knots
from lowrank.merging._learn import Learned, entropy, learn_weights
from lowrank.merging._lego import lego
from lowrank.merging._linear import linear
from lowrank.merging._magnitude import magnitude
from lowrank.merging._overlap import overlap
from lowrank.merging._regmean import regmean
from lowrank.merging._svd import discarded_energy, svd
from lowrank.merging._task_arithmetic import task_arithmetic
from lowrank.merging._ties import ties
from lowrank.merging._tsv import tsv

__all__ = [
    "Interference",
    "Learned",
    "breadcrumbs",
    "concat",
    "core_space",
    "dare",
    "della",
    "discarded_energy",
    "entropy",
    "fisher",
    "fisher_diagonal",
    "gram",
    "interference",
    "iso",
    "iso_cts",
    "knots",
    "learn_weights",
    "lego",
    "linear",
    "magnitude",
    "overlap",
    "regmean",
    "svd",
    "task_arithmetic",
    "ties",
    "tsv",
]
