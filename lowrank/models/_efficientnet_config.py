"""Sizes of an EfficientNet."""

from dataclasses import dataclass
from typing import NamedTuple

from lowrank.models._config import check_sizes


class Stage(NamedTuple):
    """Blocks of an EfficientNet that follow one another.

    Attributes:
        repeats: Number of blocks.
        window: Height and width of the depthwise kernels.
        stride: Stride of the first block; the others have 1.
        expand: Inner features, as a multiple of those that come in.
        width: Features that go out.
    """

    repeats: int
    window: int
    stride: int
    expand: int
    width: int


class Block(NamedTuple):
    """One block: features that come in and go out, and the depthwise convolution."""

    n: int
    m: int
    window: int
    stride: int
    expand: int


LITE0 = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


@dataclass(frozen=True, kw_only=True)
class EfficientNetConfig:
    """Sizes of an EfficientNet without squeeze and excitation (the Lite family).

    Args:
        stages: The stages of blocks.
        num_channels: Channels of the images.
        stem_width: Features after the first convolution.
        head_width: Features after the last convolution.
        num_labels: Outputs of the classifier; 0: there is none.

    Raises:
        ValueError: If there is no stage, or a size is below 1; all are listed.

    Example:
        >>> from lowrank.models import EfficientNetConfig
        >>> len(EfficientNetConfig().blocks())
        16

    References:
        Tan and Le, EfficientNet, 2019, arXiv:1905.11946: table 1 (the defaults are
        EfficientNet-Lite0: B0 without squeeze and excitation, with relu6).
    """

    stages: tuple[Stage, ...] = LITE0
    num_channels: int = 3
    stem_width: int = 32
    head_width: int = 1280
    num_labels: int = 1000

    def __post_init__(self) -> None:
        """Refuse impossible sizes."""
        check_sizes(self, optional=("num_labels",))
        wrong = [
            f"'stages[{i}].{name}': expected at least 1, got {value}"
            for i, stage in enumerate(self.stages)
            for name, value in stage._asdict().items()
            if value < 1
        ]
        wrong += [] if self.stages else ["'stages': expected one or more, got none"]
        if wrong:
            raise ValueError(
                f"EfficientNetConfig: wrong sizes at {'; '.join(wrong)}. Correct the "
                "config."
            )

    def blocks(self) -> tuple[Block, ...]:
        """The blocks of all stages, in order."""
        found, width = [], self.stem_width
        for stage in self.stages:
            for i in range(stage.repeats):
                stride = stage.stride if i == 0 else 1
                found.append(
                    Block(width, stage.width, stage.window, stride, stage.expand)
                )
                width = stage.width
        return tuple(found)
