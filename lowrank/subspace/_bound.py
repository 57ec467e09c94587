"""A bound on the true error from how few bits the trained numbers take."""

import math
from typing import Any, NamedTuple

import numpy as np

from lowrank.subspace._projection import check_dimension, is_real

_SCALE_BITS = 32  # the step, a float32
_WHICH_BITS = 1  # which of the two codes was used


class Quantised(NamedTuple):
    """A vector on uniform levels, and the length of its code.

    Attributes:
        values: `step * (codes - (levels - 1) / 2)`, float32: what the code decodes to.
            Train nothing more, and measure the training error with these.
        codes: Which level each entry takes, int32 in [0, levels).
        step: Distance of neighbouring levels, a float32 number.
        levels: How many there are.
        bits: Length of the code, `step` included.

    Example:
        >>> lrk.subspace.quantise([0.0, 1.0], 3).codes.tolist()
        [1, 2]
    """

    values: np.ndarray
    codes: np.ndarray
    step: float
    levels: int
    bits: float


def quantise(z: Any, levels: int) -> Quantised:
    """Round a trained vector to uniform levels, and count the bits of its code.

    The levels are `step * (k - (levels - 1) / 2)` for `k = 0 .. levels - 1`, with
    `step = 2 max|z| / (levels - 1)`: symmetric, and with a zero if `levels` is odd.

    Args:
        z: Trained numbers `[d]`, concrete and finite; of a masked vector the first `d`.
        levels: How many levels, at least 2.

    Returns:
        The rounded vector; no entry moves by more than half a step. `bits` is the sum
        of 32 for `step`, 1 for the choice between two codes of `codes`, and the shorter
        of them:

        - fixed: `d log2(levels)`;
        - adaptive arithmetic coding with Krichevsky and Trofimov's estimator: entry
          `i + 1` costs `-log2 ((n_k + 1/2) / (i + levels / 2))`, where `n_k` of the
          `i` entries before it took the same level. No table of frequencies is sent.
          In closed form `2^-bits = Gamma(levels / 2) / Gamma(d + levels / 2) *
          prod_k Gamma(n_k + 1/2) / Gamma(1/2)`.

        Each is the negative logarithm of a probability over all `levels^d` vectors of
        codes, so that `sum 2^-bits <= 1` over all `(step, codes)` of one `d` and one
        `levels` (Kraft). Those two are taken as known: `compression_bound` has them
        paid for by `choices`.

    Raises:
        TypeError: If `z` is no real array or `levels` no int.
        ValueError: If `z` is no vector, is empty or not finite, or `levels < 2`.

    Example:
        >>> found = lrk.subspace.quantise([-1.0, 0.1, 0.0, 0.9], 3)
        >>> found.values.tolist()
        [-1.0, 0.0, 0.0, 1.0]
        >>> round(found.bits, 2)  # 33, and 4 log2(3)
        39.34

    References:
        Krichevsky and Trofimov, The performance of universal encoding, 1981.
        Lotfi et al., PAC-Bayes compression bounds so tight that they can explain
        generalization, 2022, arXiv:2211.13609: quantised subspaces and arithmetic
        coding; there levels are learned and a table of frequencies is sent.
    """
    own = np.asarray(z)
    if not is_real(own):
        raise TypeError(
            f"subspace.quantise: expected z as an array of real numbers, got "
            f"{type(z).__name__}. Pass state.trainable['subspace']['z']."
        )
    levels = check_dimension("subspace.quantise", levels, "levels")
    if own.ndim != 1 or own.size == 0 or not np.isfinite(own).all():
        raise ValueError(
            f"subspace.quantise: expected a finite vector, not empty, got shape "
            f"{own.shape} with {int((~np.isfinite(own)).sum())} entries that are not "
            "finite. Pass the trained z of one run."
        )
    if isinstance(levels, bool) or not hasattr(levels, "__index__"):
        raise TypeError(f"subspace.quantise: levels must be an int, got {levels!r}.")
    if levels < 2:
        raise ValueError(f"subspace.quantise: levels must be at least 2, got {levels}.")
    middle = (levels - 1) / 2
    exact = own.astype(np.float64)
    step = np.float32(2 * np.abs(exact).max() / (levels - 1))
    scaled = exact / float(step) if step > 0 else np.zeros_like(exact)
    codes = np.clip(np.rint(scaled + middle), 0, levels - 1).astype(np.int32)
    values = (float(step) * (codes - middle)).astype(np.float32)
    bits = _SCALE_BITS + _WHICH_BITS + _code_bits(codes, levels)
    return Quantised(values, codes, float(step), levels, bits)


def _code_bits(codes: np.ndarray, levels: int) -> float:
    """The shorter of the fixed and the adaptive code of integers in [0, levels)."""
    counts = np.bincount(codes, minlength=levels)
    used = [int(n) for n in counts if n]  # a level that is not used contributes 1
    adaptive = math.lgamma(codes.size + levels / 2) - math.lgamma(levels / 2)
    adaptive -= sum(math.lgamma(n + 0.5) - math.lgamma(0.5) for n in used)
    return min(codes.size * math.log2(levels), adaptive / math.log(2))


class CompressionBound(NamedTuple):
    """Bounds on the true error that hold with one probability, each of them alone.

    Attributes:
        bound: The bound by the inverse of the binary relative entropy.
        square_root: `error + sqrt(budget / 2)`, at most 1: never below `bound`; with
            `bits` in proportion to `d` it is the form `O(sqrt(d / m))`.
        budget: `((bits + log2(choices)) ln 2 + ln(1 / delta)) / m`, in nats.
        error: The training error that went in.

    Example:
        >>> lrk.subspace.CompressionBound(0.2, 0.25, 0.05, 0.1).bound
        0.2
    """

    bound: float
    square_root: float
    budget: float
    error: float


def compression_bound(
    error: float | int,
    examples: int,
    bits: float | int,
    *,
    delta: float = 0.05,
    choices: int = 1,
) -> CompressionBound:
    """Bound the true error of a model by its training error and its length in bits.

    With probability at least `1 - delta` over `m` training examples,

        `kl(error || R) <= ((bits + log2(choices)) ln 2 + ln(1 / delta)) / m`,

    and so `R` is at most the largest number that satisfies this, where
    `kl(q || p) = q ln(q / p) + (1 - q) ln((1 - q) / (1 - p))`.

    Proof. Fix a model `h` with true error `R`. Its errors on the examples are
    independent, in [0, 1], of mean `R`; by convexity `E exp(s X) <= 1 - R + R exp(s)`,
    and Chernoff's bound with the best `s` gives for `q < R`:
    `P[mean <= q] <= exp(-m kl(q || R))`. So the probability that the training error of
    `h` is below `R` with `kl` above `(ln(1 / pi(h)) + ln(1 / delta)) / m` is at most
    `delta pi(h)`. Summed over all models with `sum pi(h) <= 1`, some model
    breaks its bound with probability at most `delta`. A prefix-free code of `bits` is
    such a prior, `pi(h) = 2^-bits`, and a choice out of a fixed list of `choices` such
    codes divides it by `choices`. The square root is Pinsker's `kl >= 2 (q - p)^2`.

    Args:
        error: Training error of the *quantised* model: the mean over the examples of a
            loss in [0, 1], such as the share of wrong answers.
        examples: How many training examples it is the mean of, at least 1.
        bits: Length of the model's code, as `quantise` counts it, at least 0.
        delta: The probability that the bound fails, in (0, 1).
        choices: How many settings were open: all combinations of dimension, learning
            rate, seed, number of levels and anything else that was tried, also those
            that were thrown away. Chosen out of these freely, paid for by
            `log2(choices)` bits.

    Returns:
        The bound and its parts. A `bound` of 1 says nothing.

    Raises:
        TypeError: If an argument is no number.
        ValueError: If an argument is out of range.

    Example:
        >>> found = lrk.subspace.compression_bound(0.1, 50_000, 2500, choices=54)
        >>> round(found.bound, 3), round(found.square_root, 3)
        (0.197, 0.232)

    Notes:
        Assumptions. The examples are independent draws of one distribution, and `R` is
        the mean loss on it: for one training set that was shuffled, this is the usual
        idealisation. Everything that decodes `bits` into a model was fixed before any
        of these examples was seen: architecture, preprocessing, the projection and its
        key, `theta_0` and its key, the list of settings that `choices` counts. If
        `theta_0` is pretrained, then not on these examples. The error is that of the
        decoded model on all examples that it was trained on; data augmentation,
        dropout or early stopping need no further term, as any way to find `h` is
        allowed. `2^bits` counts models, so the dimension `D` of the weights
        plays no part; a model trained outside of a subspace has no short code.
        The bound is on this model, not on a mean over seeds.

    References:
        Langford, Tutorial on practical prediction theory for classification, 2005:
        Occam's razor bound, and its form by relative entropy.
        Lotfi et al., 2022, arXiv:2211.13609: compression bounds of quantised subspaces.
        Aghajanyan et al., 2020, arXiv:2012.13255: section 6, `O(sqrt(d / m))`.
    """
    given = {"error": error, "examples": examples, "bits": bits}
    given |= {"delta": delta, "choices": choices}
    odd = {name: x for name, x in given.items() if not hasattr(x, "__float__")}
    if odd:
        raise TypeError(
            f"subspace.compression_bound: expected numbers, got {odd}. Of what "
            "quantise returned, pass .bits."
        )
    wrong = [
        f"{name}={value!r}: expected {words}"
        for name, value, fits, words in (
            ("error", error, 0 <= error <= 1, "a mean loss in [0, 1]"),
            ("examples", examples, examples >= 1, "at least 1"),
            ("bits", bits, 0 <= bits < math.inf, "a finite length, at least 0"),
            ("delta", delta, 0 < delta < 1, "a probability in (0, 1)"),
            ("choices", choices, choices >= 1, "at least 1"),
        )
        if not fits
    ]
    if wrong:
        raise ValueError(
            f"subspace.compression_bound: wrong {'; '.join(wrong)}. Correct them."
        )
    nats = (float(bits) + math.log2(choices)) * math.log(2) - math.log(delta)
    budget = nats / examples
    root = min(1.0, float(error) + math.sqrt(budget / 2))
    return CompressionBound(_largest(float(error), budget), root, budget, float(error))


def _largest(q: float, budget: float) -> float:
    """The largest `p` with `kl(q || p) <= budget`, rounded up."""
    low, high = q, 1.0
    while (middle := (low + high) / 2) not in (low, high):
        if _kl(q, middle) <= budget:
            low = middle
        else:
            high = middle
    return high


def _kl(q: float, p: float) -> float:
    """`kl(q || p)` in nats, for `p` in (0, 1)."""
    first = q * (math.log(q) - math.log(p)) if q > 0 else 0.0
    other = 1 - q
    second = other * (math.log(other) - math.log1p(-p)) if other > 0 else 0.0
    return first + second
