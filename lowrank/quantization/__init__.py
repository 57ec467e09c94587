"""A frozen base in few bits, as transforms."""

from lowrank.quantization._int8 import int8
from lowrank.quantization._nf4 import nf4

__all__ = ["int8", "nf4"]
