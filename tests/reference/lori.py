"""LoRI in NumPy float64, from Zhang et al. 2025: `h = x W + s (x A) (B * M)`.

`A` is random and frozen, `B` starts at zero, and the 0/1 mask `M` keeps the largest
entries of a `B` that was trained before. Matrices are dicts from a name to an array.
"""

import numpy as np


def forward(x, w, a, b, mask, scale):
    """`x W + scale (x A) (B * M)`."""
    x, w, a, b, mask = (np.asarray(v, np.float64) for v in (x, w, a, b, mask))
    return x @ w + scale * ((x @ a) @ (b * mask))


def gradient_of_b(x, a, mask, scale, g):
    """Of `sum(g * forward)` with respect to `B`, by the chain rule."""
    x, a, mask, g = (np.asarray(v, np.float64) for v in (x, a, mask, g))
    return scale * ((x @ a).T @ g) * mask


def masks(matrices, density, group):
    """Keep the `max(1, int(density * N))` largest `|B|` of the `N` in each group.

    `group(name, index)` names the group of one entry. Of equal entries the one that
    comes first, in the order of the matrices and then row by row, is kept.
    """
    entries = {}
    for order, (name, b) in enumerate(matrices.items()):
        for index in np.ndindex(np.shape(b)):
            where = (-abs(float(b[index])), order, index, name)
            entries.setdefault(group(name, index), []).append(where)
    found = {name: np.zeros(np.shape(b), bool) for name, b in matrices.items()}
    for members in entries.values():
        for _, _, index, name in sorted(members)[: max(1, int(density * len(members)))]:
            found[name][index] = True
    return found


def pack(b, mask):
    """The kept entries, row by row, and their places in the flattened matrix."""
    places = [i for i, kept in enumerate(np.ravel(mask)) if kept]
    return np.ravel(b)[places], np.array(places, np.int64)


def unpack(values, places, shape):
    """The matrix of kept entries; places beyond its end hold nothing."""
    flat = np.zeros(int(np.prod(shape)))
    for value, place in zip(values, places, strict=True):
        if place < flat.size:
            flat[place] = value
    return flat.reshape(shape)


def adam(parameters, gradient, steps, rate, beta1=0.9, beta2=0.999, eps=1e-8):
    """Kingma and Ba 2015, algorithm 1, on one array; yields it after each step."""
    first = second = np.zeros_like(parameters)
    for step in range(1, steps + 1):
        g = gradient(parameters)
        first = beta1 * first + (1 - beta1) * g
        second = beta2 * second + (1 - beta2) * g**2
        mean, spread = first / (1 - beta1**step), second / (1 - beta2**step)
        parameters = parameters - rate * mean / (np.sqrt(spread) + eps)
        yield parameters
