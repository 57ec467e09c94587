"""Compression bounds in NumPy float64, each from its definition.

Occam's bound by relative entropy (Langford 2005): with probability `1 - delta` every
model `h` of a prior `pi` has `kl(error || R) <= (ln(1 / pi(h)) + ln(1 / delta)) / m`.
Krichevsky and Trofimov 1981: entry after entry, a symbol that `n` of the `i` before it
were has the probability `(n + 1/2) / (i + levels / 2)`.
"""

import numpy as np
from scipy import optimize, special, stats


def sequential_bits(codes, levels):
    """Code length of the adaptive code, symbol after symbol."""
    seen, bits = np.zeros(levels), 0.0
    for code in codes:
        bits -= np.log2((seen[code] + 0.5) / (seen.sum() + levels / 2))
        seen[code] += 1
    return bits


def rounded(z, levels):
    """The nearest of `levels` evenly spaced numbers from `-max|z|` to `max|z|`."""
    z = np.asarray(z, np.float64)
    ends = np.abs(z).max()
    places = np.linspace(-ends, ends, levels)
    return places[np.abs(z[:, None] - places).argmin(axis=1)]


def relative_entropy(q, p):
    """`kl(q || p)` of two coins."""
    return special.rel_entr(q, p) + special.rel_entr(1 - q, 1 - p)


def largest(q, budget):
    """The largest `p` with `kl(q || p) <= budget`."""
    top = 1 - 1e-15
    if q >= top or relative_entropy(q, top) <= budget:
        return 1.0
    return optimize.brentq(
        lambda p: relative_entropy(q, p) - budget, max(q, 1e-300), top, xtol=1e-15
    )


def budget(bits, choices, delta, m):
    """What one model among `choices` codes has to spend, in nats an example."""
    return (np.log(2.0) * bits + np.log(choices) - np.log(delta)) / m


def exact_binomial(k, m, chance):
    """The largest `R` at which `k` errors or fewer of `m` have that probability."""
    return optimize.brentq(lambda r: stats.binom.cdf(k, m, r) - chance, k / m, 1.0)
