"""Merges that prune and elect signs, in NumPy float64, one entry at a time.

A change is a matrix `[out, in]` or a vector. Random merges take the 0/1 masks.
"""

import numpy as np


def largest(vector, number):
    """Places of the largest entries by magnitude; of equal ones the earlier first."""
    order = sorted(range(len(vector)), key=lambda i: (-abs(float(vector[i])), i))
    return order[:number]


def trim(x, density):
    """Yadav et al. 2023, algorithm 1, step 1: keep the largest share of the entries."""
    flat = np.ravel(np.asarray(x, np.float64))
    kept = np.zeros_like(flat)
    for i in largest(flat, max(1, int(density * flat.size))):
        kept[i] = flat[i]
    return kept.reshape(np.shape(x))


def elect_and_average(vectors, zeros):
    """Steps 2 and 3; `zeros` is the sign where a sum is zero, None for that of most."""
    vectors = np.asarray(vectors, np.float64)
    signs = [np.sign(sum(column)) for column in vectors.T]
    most = np.sign(sum(signs)) if zeros is None else zeros
    merged = []
    for column, sign in zip(vectors.T, signs, strict=True):
        sign = sign or most
        agree = [v for v in column if (v > 0 if sign > 0 else v < 0)]
        merged.append(sum(agree) / max(len(agree), 1))
    return np.array(merged)


def ties(models, weights, density):
    """Of whole models, each a list of arrays; weights scale them beforehand."""
    flat = [
        w * np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in own])
        for w, own in zip(weights, models, strict=True)
    ]
    merged = elect_and_average([trim(v, density) for v in flat], None)
    ends = np.cumsum([np.size(x) for x in models[0]])[:-1]
    parts = np.split(merged, ends)
    return [p.reshape(np.shape(x)) for p, x in zip(parts, models[0], strict=True)]


def ties_of_peft(tensors, weights):
    """Of pruned tensors: the unweighted sum elects, the number that agree divides."""
    merged = np.zeros(np.shape(tensors[0]))
    for i in np.ndindex(merged.shape):
        own = [float(x[i]) for x in tensors]
        sign = 1 if sum(own) >= 0 else -1
        agree = [w * v for w, v in zip(weights, own, strict=True) if v * sign > 0]
        merged[i] = sum(agree) / max(len(agree), 1)
    return merged


def ties_of_mergekit(tensors, weights, normalize):
    """Of pruned tensors: the weighted sum elects, the weights that agree divide."""
    merged = np.zeros(np.shape(tensors[0]))
    for i in np.ndindex(merged.shape):
        own = [(w, w * float(x[i])) for w, x in zip(weights, tensors, strict=True)]
        sign = 1 if sum(v for _, v in own) >= 0 else -1
        agree = [(w, v) for w, v in own if v * sign > 0]
        divisor = sum(w for w, _ in agree) if normalize else 1
        merged[i] = sum(v for _, v in agree) / (divisor or 1)
    return merged


def weighted_sum(tensors, weights):
    """`sum_t w_t x_t`."""
    pairs = zip(weights, tensors, strict=True)
    return sum(w * np.asarray(x, np.float64) for w, x in pairs)


def dare(x, mask, density):
    """Yu et al. 2023, section 3.2: drop, and divide by the share that stays."""
    return np.asarray(x, np.float64) * mask / density


def same_norm(x, kept):
    """What mergekit does in place of a division: restore the sum of magnitudes."""
    before, after = np.abs(x).sum(), np.abs(kept).sum()
    return kept if min(before, after) < 1e-7 else kept * (before / after)


def della_probabilities(x, density, epsilon):
    """Deep et al. 2024, section 3: linear in the rank by magnitude within each row."""
    x = np.atleast_2d(np.asarray(x, np.float64))
    p = np.full(x.shape, float(density))
    n = x.shape[1]
    for row, own in zip(x, p, strict=True):
        for place, i in enumerate(largest(row, n)):
            if n > 1:
                own[i] += epsilon * (2 * (n - 1 - place) / (n - 1) - 1)
    return p


def breadcrumbs(x, density, gamma):
    """Davari and Belilovsky 2023, section 3, on one vector: a band of magnitudes."""
    x = np.asarray(x, np.float64)
    top, kept = int(gamma * x.size), max(1, int(density * x.size))
    own = largest(x, top + kept)[top:]
    return np.array([v if i in own else 0.0 for i, v in enumerate(x)])


def breadcrumbs_of_rows(x, density, gamma):
    """Each row by itself."""
    return np.array([breadcrumbs(row, density, gamma) for row in np.atleast_2d(x)])


def breadcrumbs_of_mergekit(x, density, gamma):
    """The whole tensor; fewer outliers where the density would not fit."""
    size = np.size(x)
    kept = max(1, int(density * size))
    top = min(int(gamma * size), size - kept)
    own = largest(np.ravel(x), top + kept)[top:]
    flat = [v if i in own else 0.0 for i, v in enumerate(np.ravel(x))]
    return np.reshape(flat, np.shape(x))
