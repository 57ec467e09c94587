"""The numbers of an RRAM device."""

import dataclasses
from typing import Any

import numpy as np

from lowrank.rram._effects import (
    Additive,
    Clusters,
    Converter,
    Lognormal,
    Polynomial,
    PowerDrift,
    Proportional,
    Relaxation,
)
from lowrank.rram._numbers import check, check_whole, concrete, node
from lowrank.rram._scheme import OneSided, Scheme

_NO_TIME = (
    "Device: drift and relaxation need a time. Pass time=, in s since programming."
)


@node
@dataclasses.dataclass(frozen=True)
class Device:
    """An RRAM device: what it can be programmed to, and how it fails.

    A pytree whose leaves are the numbers: they may be traced, so a rate or a spread is
    swept in one compiled call. A part that is None is absent, at no cost. Conductances
    are in uS, times in s, resistances in ohm.

    Args:
        g_min: Lowest conductance that is programmed, the zero state; above 0.
        g_max: Highest conductance that is programmed.
        levels: Number of conductances, evenly spaced, a whole number of at least 2.
            None: a continuum.
        p_lrs: Share of cells stuck at low resistance (high conductance), in [0, 1].
        p_hrs: Share of cells stuck at high resistance; `p_lrs + p_hrs` at most 1.
        g_lrs: Conductance of cells stuck at low resistance; a pair `(low, high)` draws
            it uniformly, None is `g_max`.
        g_hrs: Conductance of cells stuck at high resistance; None is `g_min`.
        p_row: Share of word lines that are open: both cells of their weights at 0 uS.
        p_column: Share of bit lines that are open: their cells at 0 uS. Each tile has
            bit lines of its own.
        clusters: How faults cluster, a `Clusters`; None: every cell by itself.
        write: Noise of programming, drawn once for each cell: `Lognormal`,
            `Proportional`, `Additive` or `Polynomial`.
        drift: Conductance against time, a `PowerDrift`; needs `time`.
        relaxation: Shift and spread with the logarithm of time, a `Relaxation`; needs
            `time`.
        time: Time since programming, above 0.
        read: Standard deviation of read noise as a share of `g_max`, fresh in each
            product, at least 0.
        dac: `Converter` of the inputs, without noise.
        adc: `Converter` of each column's sum in each tile.
        wire: Resistance of a wire between two cells: IR drop, exact to first order (see
            the notes).
        scheme: How a weight is laid on two cells: `OneSided`, `TwoSided`, `Offset` or
            `HighZero`.

    Raises:
        TypeError: If what should be a number is a string, a bool or a list.
        ValueError: If a concrete number is out of its range, `levels` is not whole,
            `g_max <= g_min`, the stuck rates sum above 1, drift or relaxation has no
            `time`, or the DAC has noise.

    Example:
        >>> device = lrk.rram.Device(p_lrs=0.1, write=lrk.rram.Lognormal(0.2))
        >>> device.replace(p_hrs=0.05).p_hrs
        0.05
        >>> len(jax.tree.leaves(device))  # g_min, g_max, five rates and spreads
        7

    Notes:
        Rates are named by what is stuck. The literature's SA0 and SA1 mean low and high
        resistance in some papers and the reverse in others: see `chen2015_a` and
        `chen2015_b`.
        The default range has a ratio of 10, as CrossSim's.
        IR drop is `G / (1 + d)`, where `d` is about `wire * g_max * (rows^2 +
        columns^2) / 2` at the farthest of cells of `g_max`: with 1 ohm and 100 uS that
        is 0.4 for 64 rows and columns and 1.6 for 128, where it is near a circuit
        solver. Beyond, it only stays positive. `tile` cuts rows and not columns.

    References:
        The device model is described, effect by effect, in the classes of its parts.
    """

    g_min: Any = 10.0
    g_max: Any = 100.0
    levels: Any = None
    p_lrs: Any = 0.0
    p_hrs: Any = 0.0
    g_lrs: Any = None
    g_hrs: Any = None
    p_row: Any = 0.0
    p_column: Any = 0.0
    clusters: Any = None
    write: Any = None
    drift: Any = None
    relaxation: Any = None
    time: Any = None
    read: Any = None
    dac: Any = None
    adc: Any = None
    wire: Any = None
    scheme: Any = dataclasses.field(default_factory=OneSided, metadata={"static": True})

    def __post_init__(self) -> None:
        """Refuse numbers that no device can have, where they are concrete."""
        rates = ("p_lrs", "p_hrs", "p_row", "p_column")
        check("Device", **{name: (getattr(self, name), 0, 1) for name in rates})
        above = {"g_min": self.g_min, "g_max": self.g_max, "time": self.time}
        check("Device", **{n: (v, 0, None, "above") for n, v in above.items()})
        check("Device", levels=(self.levels, 2, None), read=(self.read, 0, None))
        check_whole("Device", levels=self.levels)
        check("Device", wire=(self.wire, 0, None))
        for name in ("g_lrs", "g_hrs"):
            _check_stuck(name, getattr(self, name))
        self._check_together()

    def _check_together(self) -> None:
        low, high = concrete(self.g_min), concrete(self.g_max)
        if low is not None and high is not None and bool((high <= low).any()):
            raise ValueError(
                f"Device: g_max must be above g_min, got g_min={self.g_min} and "
                f"g_max={self.g_max}."
            )
        lrs, hrs = concrete(self.p_lrs), concrete(self.p_hrs)
        # As float32 numbers 0.6 and 0.4 sum above 1.
        if lrs is not None and hrs is not None and bool((lrs + hrs > 1 + 1e-6).any()):
            raise ValueError(
                f"Device: p_lrs + p_hrs must be at most 1, got p_lrs={self.p_lrs} and "
                f"p_hrs={self.p_hrs}."
            )
        # A tree of axes for `vmap` has None for all its numbers.
        if self._ages and self.time is None and low is not None:
            raise ValueError(_NO_TIME)
        if isinstance(self.dac, Converter) and self.dac.noise is not None:
            raise ValueError(
                f"Device: a DAC has no noise of its own, got noise={self.dac.noise}. "
                "Give it to the adc, or use read=."
            )

    @property
    def _ages(self) -> bool:
        return self.drift is not None or self.relaxation is not None

    def replace(self, **changes: Any) -> "Device":
        """The same device with some numbers changed."""
        return dataclasses.replace(self, **changes)

    @property
    def acts_in_product(self) -> bool:
        """Whether converters, read noise or wires act inside the product."""
        parts = (self.dac, self.adc, self.read, self.wire)
        return any(part is not None for part in parts)

    @property
    def stochastic(self) -> bool:
        """Whether products draw random numbers, so that `apply` needs a key."""
        noisy = isinstance(self.adc, Converter) and self.adc.noise is not None
        return noisy or self.read is not None


def _check_stuck(name: str, value: Any) -> None:
    """Refuse stuck conductances below zero and ranges that run backwards.

    Raises:
        ValueError: If there are any.
    """
    if not isinstance(value, (tuple, list)):
        check("Device", **{name: (value, 0, None)})
        return
    if len(value) != 2:
        raise ValueError(
            f"Device: {name} must be a number or a pair (low, high), got {value}."
        )
    check("Device", **{name: (value[0], 0, None)})
    low, high = (concrete(v) for v in value)
    if low is not None and high is not None and bool(np.any(high < low)):
        raise ValueError(f"Device: {name} must run from low to high, got {value}.")


# --- what a transform refuses to build on ---------------------------------------------

_PARTS = {
    "clusters": (Clusters,),
    "write": (Lognormal, Proportional, Additive, Polynomial),
    "drift": (PowerDrift,),
    "relaxation": (Relaxation,),
    "dac": (Converter,),
    "adc": (Converter,),
}
_NEEDED = ("g_min", "g_max", "p_lrs", "p_hrs", "p_row", "p_column")
_PLAIN = (*_NEEDED, "levels", "time", "read", "wire")


def check_parts(who: str, device: Any) -> None:
    """Refuse what is no device that a chip can be drawn from.

    A device that comes out of `jax.tree.map` was not looked at when it was built.

    Raises:
        TypeError: If it is no device, a part is of another kind, or a number is None.
        ValueError: If a number is an array of more than one, or out of its range.
    """
    if not isinstance(device, Device):
        raise TypeError(
            f"{who}: expected a Device, got {type(device).__name__}. Pass "
            "lrk.rram.Device(...)."
        )
    bad = [text for name in _PARTS if (text := _wrong_part(device, name))]
    scheme: object = device.scheme
    if isinstance(scheme, type) or not isinstance(scheme, Scheme):
        bad.append(f"scheme must be one like OneSided(), got {scheme!r}")
    if bad:
        raise TypeError(f"{who}: {'; '.join(bad)}. They are classes of lrk.rram.")
    numbers = {name: getattr(device, name) for name in _PLAIN}
    for name in ("g_lrs", "g_hrs"):
        value = getattr(device, name)
        ends = value if isinstance(value, (tuple, list)) else (value,)
        numbers |= {
            name if len(ends) == 1 else f"{name}[{i}]": v for i, v in enumerate(ends)
        }
    needed = set(_NEEDED)
    for name in _PARTS:
        part = getattr(device, name)
        if part is None:
            continue
        own = {f"{name}.{f.name}": f.name for f in dataclasses.fields(part)}
        numbers |= {label: getattr(part, field) for label, field in own.items()}
        needed |= set() if isinstance(part, Converter) else set(own)
        dataclasses.replace(part)
    if absent := [n for n in numbers if n in needed and numbers[n] is None]:
        raise TypeError(f"{who}: the device has None for {', '.join(absent)}.")
    _check_scalars(who, numbers)
    device.replace()
    if device._ages and device.time is None:
        raise ValueError(_NO_TIME)


def _wrong_part(device: Device, name: str) -> str | None:
    """What is wrong with the class of a part."""
    part, kinds = getattr(device, name), _PARTS[name]
    if part is None or isinstance(part, kinds):
        return None
    want = " or ".join(kind.__name__ for kind in kinds)
    article = "an" if want[0] in "AEIOU" else "a"
    return f"{name} must be {article} {want}, got {type(part).__name__}"


def _check_scalars(who: str, numbers: dict[str, Any]) -> None:
    """Refuse arrays: a chip has one of each number.

    Raises:
        ValueError: If there are any; all are named.
    """
    bad = [
        f"{name} of shape {np.shape(value)}"
        for name, value in numbers.items()
        if name != "write.coefficients" and np.shape(value)
    ]
    if bad:
        raise ValueError(
            f"{who}: a device has one of each number, got {', '.join(bad)}. Map over "
            "devices with jax.vmap or lrk.map_tasks."
        )
