"""Published devices. Each names its source; what a source does not give is left off."""

from lowrank.rram._device import Device
from lowrank.rram._effects import Polynomial, Relaxation

_DAY = 24 * 3600.0
# Coefficients of the spread in uS, for u = G / 40 uS, by the time in s.
_WAN = {
    1.0: (0.348, 16.030, -43.853, 45.393, -16.815),
    _DAY: (0.701, 22.086, -50.773, 47.095, -16.458),
    2 * _DAY: (0.782, 20.274, -43.507, 37.062, -11.934),
}


def chen2015_a() -> Device:
    """Stuck rates of a 4-Mb HfO2 chip, read as mostly stuck at high resistance.

    `p_lrs = 0.0175`, `p_hrs = 0.0904`: SA0 taken as low resistance, as Chen et al.
    (DATE 2017) and PytorX do. The opposite reading is `chen2015_b`.

    Returns:
        A device with these rates and the default range.

    Example:
        >>> device = lrk.rram.chen2015_a()
        >>> device.p_lrs, device.p_hrs
        (0.0175, 0.0904)

    References:
        Chen, C.-Y. et al., RRAM defect modeling and failure analysis, IEEE Trans.
        Computers 64(1), 2015: 1.75 % and 9.04 %, as later work cites them.
    """
    return Device(p_lrs=0.0175, p_hrs=0.0904)


def chen2015_b() -> Device:
    """The rates of `chen2015_a`, read as mostly stuck at low resistance.

    `p_lrs = 0.0904`, `p_hrs = 0.0175`: SA0 taken as high resistance, as
    arXiv:2401.11664 does. Which reading holds decides the result.

    Returns:
        A device with these rates and the default range.

    Example:
        >>> device = lrk.rram.chen2015_b()
        >>> device.p_lrs, device.p_hrs
        (0.0904, 0.0175)

    References:
        As `chen2015_a`.
    """
    return Device(p_lrs=0.0904, p_hrs=0.0175)


def liu2017(p_lrs: float = 0.1, p_hrs: float = 0.1) -> Device:
    """TaOx cells of 64 levels whose stuck conductances lie outside the range.

    1 to 300 uS; stuck on at 300 to 1200 uS, stuck off at 0.01 to 1 uS.

    Args:
        p_lrs: Share of cells stuck on, in [0, 1].
        p_hrs: Share of cells stuck off, in [0, 1].

    Returns:
        The device.

    Raises:
        ValueError: If the rates are out of range or sum above 1.

    Example:
        >>> lrk.rram.liu2017().g_lrs
        (300.0, 1200.0)

    Notes:
        The figures are from notes on the paper, not from its text. How the total rate
        (up to 16 to 20 %) divides is not stated: choose.

    References:
        Liu et al., Rescuing Memristor-based Neuromorphic Design with High Defects, DAC
        2017.
    """
    return Device(
        g_min=1.0,
        g_max=300.0,
        levels=64,
        p_lrs=p_lrs,
        p_hrs=p_hrs,
        g_lrs=(300.0, 1200.0),
        g_hrs=(0.01, 1.0),
    )


def yousuf2025(p_lrs: float = 0.1, p_hrs: float = 0.1) -> Device:
    """Measured cells of 4 levels from 133 to 233 uS, stuck near 10 and 500 uS.

    Args:
        p_lrs: Share of cells stuck on, in [0, 1].
        p_hrs: Share of cells stuck off, in [0, 1].

    Returns:
        The device.

    Raises:
        ValueError: If the rates are out of range or sum above 1.

    Example:
        >>> device = lrk.rram.yousuf2025()
        >>> device.g_lrs > device.g_max, device.g_hrs < device.g_min
        (True, True)

    Notes:
        The figures are from notes on the paper, not from its text.

    References:
        Yousuf et al., layer ensemble averaging, Nature Communications 2025.
    """
    return Device(
        g_min=133.0,
        g_max=233.0,
        levels=4,
        p_lrs=p_lrs,
        p_hrs=p_hrs,
        g_lrs=500.0,
        g_hrs=10.0,
    )


def wan2022(time: float = 1.0) -> Device:
    """NeuRRAM: up to 40 uS, deviating by a spread that depends on the conductance.

    After 1 s `std(G) = 0.348 + 16.030 u - 43.853 u^2 + 45.393 u^3 - 16.815 u^4` uS,
    `u = G / 40`; after 1 and 2 days cells have relaxed, and the fits are wider.

    Args:
        time: Time since programming in s: 1, 86,400 or 172,800. There is no fit between
            them.

    Returns:
        The device; its lowest conductance is set to 1 uS.

    Raises:
        ValueError: If there is no fit for the time.

    Example:
        >>> middle = jnp.asarray(20.0)
        >>> times = 1.0, 24 * 3600.0, 48 * 3600.0
        >>> spreads = [lrk.rram.wan2022(t).write.std(middle) for t in times]
        >>> [round(float(std), 2) for std in spreads]
        [2.02, 3.91, 3.93]

    Notes:
        The range's lower end is not part of the fit. The spread is that of the
        deviation at the time in all, so the device has no `relaxation` beside it.
        aihwkit 1.2.0 uses the same fits without their reference of 40 uS when `g_max`
        is another.

    References:
        Wan et al., A compute-in-memory chip based on resistive random-access memory,
        Nature 2022, DOI 10.1038/s41586-022-04992-8: the fits as in aihwkit's source,
        `ReRamWan2022NoiseModel`.
    """
    if time not in _WAN:
        known = ", ".join(f"{t:g}" for t in _WAN)
        raise ValueError(f"wan2022: time must be one of {known} s, got {time}.")
    return Device(g_min=1.0, g_max=40.0, write=Polynomial(_WAN[time], reference=40.0))


def milo2021() -> Device:
    """Multilevel HfO2 cells from 50 to 225 uS: `std(G) = 4.782 - 0.009107 G` uS.

    Returns:
        The device.

    Example:
        >>> device = lrk.rram.milo2021()
        >>> round(float(device.write.std(jnp.asarray(225.0))), 3)
        2.733

    Notes:
        The fit was read in CrossSim's source, which made it from a figure of the paper;
        the paper itself was not read.

    References:
        Milo et al., Optimized programming algorithms for multilevel RRAM in hardware
        neural networks, IRPS 2021: fig. 4 (the algorithm IGVVA-100), as fitted in
        CrossSim's `RRAMMilo`.
    """
    fit = Polynomial((4.782, -0.009107), reference=1.0)
    return Device(g_min=50.0, g_max=225.0, write=fit)


def cmo_hfox(time: float = 1.0) -> Device:
    """Analog CMO/HfOx cells from 9 to 88.2 uS, 2 % acceptance, relaxing with time.

    Programming `std(G) = 0.01129 G + 0.01122` uS; after `t` seconds a mean shift of
    `-0.089 ln t` uS and a spread of `0.042 ln t + 0.412` uS, whatever the conductance.

    Args:
        time: Time since programming in s, above 0.

    Returns:
        The device.

    Raises:
        ValueError: If `time <= 0`.

    Example:
        >>> lrk.rram.cmo_hfox(3600.0).relaxation.mean
        -0.089

    Notes:
        aihwkit 1.2.0 means to default to 2 % acceptance and takes the 0.2 % fit. The
        figures were read there; the paper behind them was not looked up.
        Its read noise grows with time and with `log10 G`, which `read` cannot say: it
        is left off. A share of about 1 % of `g_max` is what aihwkit advises for a
        constant one: `cmo_hfox().replace(read=0.01)`.

    References:
        aihwkit's documentation and source of `ReRamCMONoiseModel`.
    """
    return Device(
        g_min=9.0,
        g_max=88.2,
        write=Polynomial((0.01122, 0.01129), reference=1.0),
        relaxation=Relaxation(mean=-0.089, spread=0.042, base=0.412),
        time=time,
    )
