"""Arrays in, arrays out: the linear algebra that families share."""

from lowrank.linalg._factored_polar import factored_polar, support
from lowrank.linalg._factored_svd import factored_svd
from lowrank.linalg._hadamard import hadamard, hadamard_blocks
from lowrank.linalg._largest import largest
from lowrank.linalg._leading import leading_vectors
from lowrank.linalg._mvm import crossbar_weights, mvm, tile_count, with_wires
from lowrank.linalg._product import labelled_product, regroup
from lowrank.linalg._quantize import (
    blocks_of,
    coarse_count,
    from_coarse,
    from_int8,
    from_nf4,
    to_coarse,
    to_int8,
    to_nf4,
)
from lowrank.linalg._thin_qr import thin_qr
from lowrank.linalg._truncated_svd import truncated_svd

__all__ = [
    "blocks_of",
    "coarse_count",
    "crossbar_weights",
    "factored_polar",
    "factored_svd",
    "from_coarse",
    "from_int8",
    "from_nf4",
    "hadamard",
    "hadamard_blocks",
    "labelled_product",
    "largest",
    "leading_vectors",
    "mvm",
    "regroup",
    "support",
    "thin_qr",
    "tile_count",
    "to_coarse",
    "to_int8",
    "to_nf4",
    "truncated_svd",
    "with_wires",
]
