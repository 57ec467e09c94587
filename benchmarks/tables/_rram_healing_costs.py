"""What a healed net costs to run, counted and not simulated: the analytic card."""

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.record import Records
from benchmarks.report import Table
from benchmarks.tables import _rram_healing_plan as plan
from lowrank import rram

TILE = 128
RANKS = (0, 1, 2, 8, 16)
POSITIONS = {"conv1": 24 * 24, "conv2": 8 * 8}  # of LeNet-5's kernels


def costs(records: Records) -> Table:
    """Conversions of the chip, digital work and energy by rank of what stands beside.

    The counts follow from shapes alone; nets that were not run show as such.
    """
    rows: list[list[Any]] = []
    for net, title in plan.NETS.items():
        if not len(records.where(kind="main", net=net)):
            rows.append([title, *(None,) * 7])
            continue
        none = card(net, 0).inference_pj
        for rank in RANKS:
            own = card(net, rank)
            total, energy = own.total, own.inference_pj
            more = None if none is None or energy is None else energy / none
            rows.append(
                [
                    title,
                    f"rank {rank}" if rank else "no adapter",
                    total.cells,
                    total.conversions,
                    total.multiply_adds,
                    total.bytes_moved,
                    None if energy is None else energy / 1e3,
                    more,
                ]
            )
    columns = (
        "net", "beside the chip", "cells", "conversions", "digital multiply-adds",
        "bytes moved", "nJ", "times no adapter",
    )  # fmt: skip
    return Table(
        columns,
        rows,
        caption="The analytic cost of one image on a healed chip.",
        align="llrrrrrr",
        digits={"nJ": 1, "times no adapter": 1},
        notes=[
            "Counted by `rram.cost_card` from the shapes, for one image and tiles of "
            f"{TILE} rows: an adapter of a rank is LoRA, LoRI-D or an SVD correction, "
            "on every kernel, in 4 bytes a number. `nJ`: those counts by "
            "`rram.published_energies`; the analog product, its input converters and "
            "the layers between are left out, so the ratio is an upper end. A new head "
            "or biases replace digital numbers of the net and add next to nothing; "
            "ITT and retraining add nothing here, and write cells instead."
        ],
    )


def card(net: str, rank: int) -> rram.CostCard:
    """The card of a net with a low-rank adapter on every kernel."""
    shapes = {
        path: jax.ShapeDtypeStruct(shape, jnp.float32)
        for path, shape in plan.SHAPES[net].items()
    }
    uses = {path: n for path, n in POSITIONS.items() if path in shapes}
    known = rram.published_energies()
    return rram.cost_card(
        shapes,
        rank=rank,
        tile=TILE,
        uses=uses,
        conversion_pj=known["conversion_pj"],
        multiply_add_pj=known["multiply_add_pj"],
        byte_pj=known["byte_pj"],
    )
