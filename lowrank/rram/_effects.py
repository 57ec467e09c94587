"""What makes a cell's conductance differ from the one that was asked for.

Each effect is a small pytree: its numbers are leaves, so they can be swept by `vmap` or
differentiated without compiling again. Conductances are in uS, times in s.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowrank.rram._numbers import check, check_whole, node

Cells = Float[Array, "*cells"]


@node
@dataclasses.dataclass(frozen=True)
class Lognormal:
    """Write noise `G exp(sigma theta)`, `theta ~ N(0, 1)` once for each cell.

    Args:
        sigma: Standard deviation of `ln G`, at least 0.
        preserve_mean: Whether `G exp(sigma theta - sigma^2 / 2)` is meant, whose mean
            is `G`.

    Raises:
        ValueError: If `sigma < 0`.

    Example:
        >>> lrk.rram.Lognormal(0.5).linear(jnp.zeros(2), 100.0)[0].tolist()
        [1.0, 1.0]

    References:
        Chen et al., Accelerator-friendly Neural-network Training, DATE 2017 (as cited
        by later work): `w' = w exp(theta)`, `theta ~ N(0, sigma^2)`.
    """

    sigma: Any
    preserve_mean: bool = dataclasses.field(default=False, metadata={"static": True})

    def __post_init__(self) -> None:
        """Refuse a negative spread."""
        check("Lognormal", sigma=(self.sigma, 0, None))

    def linear(self, theta: Cells, g_max: Any) -> tuple[Cells, Cells | None]:
        """`(gain, shift)` of the cells: `G -> gain G + shift`."""
        del g_max
        mean = 0.5 * self.sigma**2 if self.preserve_mean else 0.0
        return jnp.exp(self.sigma * theta - mean), None


@node
@dataclasses.dataclass(frozen=True)
class Proportional:
    """Write noise `G (1 + sigma theta)`, not below 0.

    Args:
        sigma: Standard deviation as a share of `G`, at least 0.

    Raises:
        ValueError: If `sigma < 0`.

    Example:
        >>> lrk.rram.Proportional(0.5).linear(jnp.ones(1), 100.0)[0].tolist()
        [1.5]

    References:
        CrossSim 3.2, `NormalProportionalDevice`; NeuroSim 1.4, `vari`.
    """

    sigma: Any

    def __post_init__(self) -> None:
        """Refuse a negative spread."""
        check("Proportional", sigma=(self.sigma, 0, None))

    def linear(self, theta: Cells, g_max: Any) -> tuple[Cells, Cells | None]:
        """`(gain, shift)` of the cells: `G -> gain G + shift`."""
        del g_max
        return jnp.maximum(1.0 + self.sigma * theta, 0.0), None


@node
@dataclasses.dataclass(frozen=True)
class Additive:
    """Write noise `G + sigma g_max theta`, the same for every conductance.

    Args:
        sigma: Standard deviation as a share of `g_max`, at least 0.

    Raises:
        ValueError: If `sigma < 0`.

    Example:
        >>> lrk.rram.Additive(0.1).linear(jnp.ones(1), 100.0)[1].tolist()
        [10.0]

    References:
        CrossSim 3.2, `NormalIndependentDevice`.
    """

    sigma: Any

    def __post_init__(self) -> None:
        """Refuse a negative spread."""
        check("Additive", sigma=(self.sigma, 0, None))

    def linear(self, theta: Cells, g_max: Any) -> tuple[Cells, Cells | None]:
        """`(gain, shift)` of the cells: `G -> gain G + shift`."""
        return jnp.ones_like(theta), self.sigma * g_max * theta


@node
@dataclasses.dataclass(frozen=True)
class Polynomial:
    """Write noise whose spread depends on the conductance: `G + std(G) theta`.

    `std(G) = sum_k coefficients[k] (G / reference)^k` uS, not below 0. The reference is
    the conductance that the fit was made with, which need not be this device's
    `g_max`.

    Args:
        coefficients: `[K]`, in uS, constant term first.
        reference: Conductance in uS that the fit's argument is relative to, above 0.

    Raises:
        TypeError: If a coefficient is no number.
        ValueError: If there is no coefficient, one is not finite, or `reference <= 0`.

    Example:
        >>> noise = lrk.rram.Polynomial((1.0, 2.0), reference=40.0)
        >>> float(noise.std(jnp.asarray(20.0)))
        2.0

    Notes:
        A fit holds in the range that it was made in: beyond, a polynomial may fall to
        zero (that of `wan2022` does so above 48 uS), and cells are then without noise.
        aihwkit 1.2.0 scales the fit of Wan et al. by its own `g_max`, without its
        reference of 40 uS; here the reference is always given.

    References:
        Wan et al., A compute-in-memory chip based on RRAM, Nature 2022, and
        Milo et al., 2021: fits as in aihwkit's and CrossSim's sources.
    """

    coefficients: Any
    reference: Any

    def __post_init__(self) -> None:
        """Refuse a fit without terms or reference."""
        check("Polynomial", reference=(self.reference, 0, None, "above"))
        given = self.coefficients
        listed = isinstance(given, (tuple, list))
        shape = (len(given),) if listed else np.shape(given)
        if len(shape) != 1 or not shape[0]:
            raise ValueError(
                f"Polynomial: expected at least one coefficient, [K], got {given!r}."
            )
        for each in given if listed else (given,):
            check("Polynomial", coefficients=(each, None, None))
        if listed:
            object.__setattr__(self, "coefficients", tuple(given))

    def std(self, g: Cells) -> Cells:
        """Standard deviation in uS at conductances in uS."""
        return polynomial_std(g, jnp.asarray(self.coefficients, float), self.reference)


def polynomial_std(g: Cells, coefficients: Float[Array, " k"], reference: Any) -> Cells:
    """`sum_k c_k (g / reference)^k`, not below 0, by Horner's rule."""
    u = g / reference
    total = jnp.zeros_like(u)
    for k in reversed(range(coefficients.shape[0])):
        total = total * u + coefficients[k]
    return jnp.maximum(total, 0.0)


@node
@dataclasses.dataclass(frozen=True)
class PowerDrift:
    """Drift of conductance with time: `G (t / start)^-nu`.

    Args:
        exponent: Mean of `nu` over cells, at least 0.
        spread: Standard deviation of `nu` over cells, at least 0; `nu` is not below 0.
        start: Time in s from which cells drift; before it they stay as they were.

    Raises:
        ValueError: If `exponent < 0`, `spread < 0` or `start <= 0`.

    Example:
        >>> drift = lrk.rram.PowerDrift(0.1)
        >>> round(float(drift.gain(jnp.zeros(()), 1e10)), 3)
        0.1

    References:
        MemTorch 1.1.6 (`nu` of 0.1); aihwkit's phase-change model (start of 20 s).
    """

    exponent: Any
    spread: Any = 0.0
    start: Any = 1.0

    def __post_init__(self) -> None:
        """Refuse negative exponents, spreads and times."""
        check("PowerDrift", exponent=(self.exponent, 0, None))
        check("PowerDrift", spread=(self.spread, 0, None))
        check("PowerDrift", start=(self.start, 0, None, "above"))

    def gain(self, phi: Cells, time: Any) -> Cells:
        """Factor of each cell at a time, `phi ~ N(0, 1)`."""
        nu = jnp.maximum(self.exponent + self.spread * phi, 0.0)
        return jnp.maximum(time / self.start, 1.0) ** -nu


@node
@dataclasses.dataclass(frozen=True)
class Relaxation:
    """Relaxation of filaments: `G + mean ln t + (spread ln t + base) phi` uS.

    Args:
        mean: Mean shift for each e-fold of time, in uS.
        spread: Growth of the standard deviation for each e-fold of time, in uS.
        base: Standard deviation at 1 s, in uS; the total is not below 0.

    Raises:
        ValueError: If `base < 0`.

    Example:
        >>> float(lrk.rram.Relaxation(-1.0).offset(jnp.zeros(()), jnp.e).round(3))
        -1.0

    References:
        aihwkit's documentation of its CMO/HfOx model: mean -0.089 ln t uS, standard
        deviation 0.042 ln t + 0.412 uS, whatever the conductance.
    """

    mean: Any
    spread: Any = 0.0
    base: Any = 0.0

    def __post_init__(self) -> None:
        """Refuse a negative spread."""
        check("Relaxation", base=(self.base, 0, None))
        check("Relaxation", mean=(self.mean, None, None))
        check("Relaxation", spread=(self.spread, None, None))

    def offset(self, phi: Cells, time: Any) -> Cells:
        """Shift of each cell at a time, `phi ~ N(0, 1)`, in uS."""
        log = jnp.log(jnp.asarray(time, jnp.float32))
        std = jnp.maximum(self.spread * log + self.base, 0.0)
        return self.mean * log + std * phi


@node
@dataclasses.dataclass(frozen=True)
class Clusters:
    """Faults that come in patches, at exact rates.

    The uniform number that decides a cell is `Phi(sqrt(share) z_s + sqrt(1-share) z_w)`
    with `z_w` white and `z_s` a Gaussian field smoothed over `length` cells, both
    standard normal: so it is uniform at every cell, and only neighbours depend on each
    other. Fields wrap round at the edges of a matrix.

    Args:
        length: Standard deviation of the smoothing in cells, above 0. The columns of a
            pair are neighbours.
        share: Share of the smooth field, in [0, 1].

    Raises:
        ValueError: If a number is out of its range.

    Example:
        >>> lrk.rram.Clusters(length=8.0).share
        0.9

    References:
        Stapper's law has such patches, in the use of Xia et al., 2017; its loop over
        random centres is replaced by a field that can be drawn under `jit`.
    """

    length: Any
    share: Any = 0.9

    def __post_init__(self) -> None:
        """Refuse what is no length or share."""
        check("Clusters", length=(self.length, 0, None, "above"))
        check("Clusters", share=(self.share, 0, 1))


@node
@dataclasses.dataclass(frozen=True)
class Converter:
    """A digital-to-analog or analog-to-digital converter.

    Args:
        bits: Resolution, a whole number of at least 2: `2^(bits - 1) - 1` steps on each
            side of zero. None: no rounding, only `limit` and `noise`.
        limit: Largest value that it converts; larger ones are clipped. None: the
            largest entry of each vector, for an ADC of each tile. A DAC's is in units
            of the activations; an ADC's in those of the sum `u x` with inputs `u` in
            [-1, 1] and weights `x` in [-1, 1].
        noise: Standard deviation of what an ADC adds before it rounds, in the units of
            its `limit`; None for none. A DAC has none.

    Raises:
        ValueError: If `bits < 2` or is not whole, `limit <= 0` or `noise < 0`.

    Example:
        >>> lrk.rram.Converter(8, limit=12.0).bits
        8

    References:
        aihwkit's `IOParameters`: defaults of 7 and 9 bits, output bound 12, output
        noise 0.06.
    """

    bits: Any
    limit: Any = None
    noise: Any = None

    def __post_init__(self) -> None:
        """Refuse what cannot convert."""
        check("Converter", bits=(self.bits, 2, None))
        check_whole("Converter", bits=self.bits)
        check("Converter", limit=(self.limit, 0, None, "above"))
        check("Converter", noise=(self.noise, 0, None))
