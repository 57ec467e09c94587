"""Operators: values that stand where weights stood and know how to multiply."""

from lowrank.operators._bottleneck import Bottleneck
from lowrank.operators._crossbar import Crossbar
from lowrank.operators._delta import Delta
from lowrank.operators._dropout import DropoutLowRank
from lowrank.operators._factored import Factored
from lowrank.operators._gated import Gated
from lowrank.operators._gathered import Gathered
from lowrank.operators._lowrank import LowRank
from lowrank.operators._magnitude import Magnitude
from lowrank.operators._parallel import Parallel
from lowrank.operators._quantized import Quantized
from lowrank.operators._rescaled import Rescaled
from lowrank.operators._rewired import Rewired
from lowrank.operators._routed import Routed
from lowrank.operators._row_delta import RowDelta
from lowrank.operators._specs import Contraction, Convolution, Gather

__all__ = [
    "Bottleneck",
    "Contraction",
    "Convolution",
    "Crossbar",
    "Delta",
    "DropoutLowRank",
    "Factored",
    "Gated",
    "Gather",
    "Gathered",
    "LowRank",
    "Magnitude",
    "Parallel",
    "Quantized",
    "Rescaled",
    "Rewired",
    "Routed",
    "RowDelta",
]
