"""What a compiled call of healing is told, and what it reads."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Options(NamedTuple):
    """What all ways share.

    Attributes:
        steps: Training steps of every way.
        batch: Images of a step.
        calibration: Steps of the LoRI-D from which LoRI-S takes its mask.
        calibration_rate: Their learning rate.
        mask_rank: Rank of LoRI-S.
        capacity: The most chips of one call; fewer take less time.
        scored: Images of one product when ways are scored.
        freeze: Share of the afflicted weights that ITT reduces and freezes.
        penalty: Factor of ITT's penalty on defects.
    """

    steps: int = 150
    batch: int = 128
    calibration: int = 40
    calibration_rate: float = 5e-3
    mask_rank: int = 32
    capacity: int = 100
    scored: int = 1000
    freeze: float = 0.1
    penalty: float = 1e-4


class Inputs(NamedTuple):
    """What a call reads: all traced, so that points, rates and splits share a program.

    Attributes:
        params: The weights that were wanted.
        train: Images and labels to train on.
        scored: Images and labels to score.
        parts: How many products of images are scored.
        labels: How many labelled images a chip may see.
        lrs: Share of cells stuck at low resistance.
        hrs: Share of cells stuck at high resistance.
        rates: The learning rate of each way.
        grams: By path, of clean inputs.
        importance: By path, for ITT.
    """

    params: Any
    train: tuple[Any, Any]
    scored: tuple[Any, Any]
    parts: Any
    labels: Any
    lrs: Any
    hrs: Any
    rates: Mapping[str, Any]
    grams: Mapping[str, Any]
    importance: Mapping[str, Any]
