"""Operators: values that stand where weights stood and know how to multiply."""

from lowrank.operators._bottleneck import Bottleneck
from lowrank.operators._crossbar import Crossbar
from lowrank.operators._delta import Delta
from lowrank.operators._dropout import DropoutLowRank
from lowrank.operators._gated import Gated
from lowrank.operators._lowrank import LowRank
from lowrank.operators._magnitude import Magnitude
from lowrank.operators._parallel import Parallel
from lowrank.operators._rewired import Rewired
from lowrank.operators._routed import Routed
from lowrank.operators._specs import Contraction, Convolution, Gather

__all__ = [
    "Bottleneck",
    "Contraction",
    "Convolution",
    "Crossbar",
    "Delta",
    "DropoutLowRank",
    "Gated",
    "Gather",
    "LowRank",
    "Magnitude",
    "Parallel",
    "Rewired",
    "Routed",
]
