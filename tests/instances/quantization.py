"""Bases in few bits."""

import lowrank as lrk
from tests.instances.instance import Instance
from tests.network import KERNELS, STACKED

INSTANCES = (
    Instance(
        "int8",
        lambda: lrk.quantization.int8(select=KERNELS, axes=STACKED),
        identity_at_init=False,
    ),
    Instance(
        "nf4+lora",
        lambda: lrk.chain(
            lrk.quantization.nf4(block=10, select=KERNELS, axes=STACKED), lrk.lora(2)
        ),
        identity_at_init=False,
        random=("a",),
        alive=("a", "b"),
        members=(
            Instance(
                "nf4",
                lambda: lrk.quantization.nf4(block=10, select=KERNELS, axes=STACKED),
            ),
        ),
    ),
)
