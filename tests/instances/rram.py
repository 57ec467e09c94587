"""Crossbars, with and without what acts in the product, and their rearrangements."""

import numpy as np

import lowrank as lrk
from tests.instances.instance import Instance
from tests.network import KERNELS, LAYERS, STACKED, WIDTH

_CHIP = lrk.rram.Device(p_lrs=0.05, p_hrs=0.1, write=lrk.rram.Lognormal(0.2))
_ANALOG = _CHIP.replace(
    read=0.01,
    # So fine that a product rounded otherwise (under vmap) falls on the same step, to
    # the tolerance: coarse ones are tested beside the operator.
    dac=lrk.rram.Converter(20),
    adc=lrk.rram.Converter(20, limit=12.0, noise=0.01),
)
_ROWS = {
    "first/kernel": np.roll(np.arange(WIDTH), 5),
    "layers/kernel": np.stack([np.roll(np.arange(WIDTH), i) for i in range(LAYERS)]),
}
_SIGNS = {"second/kernel": np.where(np.arange(WIDTH) % 3, 1.0, -1.0)}
_BOTH = _SIGNS | {"first/kernel": np.where(np.arange(WIDTH) % 5, -1.0, 1.0)}

INSTANCES = (
    Instance(
        "crossbar",
        lambda: lrk.rram.crossbar(
            _CHIP.replace(levels=32), select=KERNELS, axes=STACKED
        ),
        identity_at_init=False,
        random=("code", "gain"),
    ),
    Instance(
        "crossbar+lora",
        lambda: lrk.chain(lrk.rram.crossbar(_CHIP, tile=10), lrk.lora(2)),
        identity_at_init=False,
        random=("code", "gain", "a"),
        alive=("a", "b"),
    ),
    Instance(
        "lora+crossbar",
        lambda: lrk.chain(lrk.lora(2), lrk.rram.crossbar(_CHIP)),
        identity_at_init=False,
        random=("code", "gain", "a"),
        alive=("a", "b"),
        flops=1.3,
    ),
    Instance(
        "analog+lora",
        lambda: lrk.chain(
            lrk.rram.crossbar(_ANALOG, tile=16, select=KERNELS, axes=STACKED),
            lrk.lora(2, select=KERNELS, axes=STACKED),
        ),
        has_dense=False,
        exact_grad=False,
        stochastic=True,
        identity_at_init=False,
        random=("code", "gain", "a"),
        alive=("a", "b"),
        # So narrow that draws and conversions cost more than products; XLA counts the
        # reciprocal of a converter's range for every value, though it is taken once.
        flops=3.1,
        members=(
            Instance(
                "crossbar-analog",
                lambda: lrk.rram.crossbar(
                    _ANALOG, tile=16, select=KERNELS, axes=STACKED
                ),
            ),
        ),
    ),
    Instance(
        "permute+unpermute",
        lambda: lrk.chain(
            lrk.rram.permute(_ROWS, spare=3, axes=STACKED),
            lrk.rram.unpermute(_ROWS, spare=3, axes=STACKED),
        ),
        members=(
            Instance("permute", lambda: lrk.rram.permute(_ROWS, axes=STACKED)),
            Instance("unpermute", lambda: lrk.rram.unpermute(_ROWS, axes=STACKED)),
        ),
    ),
    Instance(
        "flip",
        lambda: lrk.rram.flip(_SIGNS, _SIGNS),
        identity_at_init=False,
        members=(
            Instance(
                "crossbar-analog+flip",
                lambda: lrk.chain(
                    lrk.rram.crossbar(
                        _ANALOG, select=lrk.matching("^(first|second)/k")
                    ),
                    lrk.rram.flip(_BOTH, _BOTH),
                ),
            ),
        ),
    ),
    Instance(
        "lora+factors",
        lambda: lrk.chain(lrk.lora(2), lrk.rram.factors(_CHIP, select=lrk.is_matrix)),
        identity_at_init=False,
        random=("a/code", "b/gain", "a"),
        alive=("a", "b"),
        rank=2,
    ),
)
