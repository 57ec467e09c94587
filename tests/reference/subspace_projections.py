"""The projections of a subspace in NumPy float64, formed from what was drawn.

Li et al. 2018, arXiv:1804.08838, and Le et al. 2013: `H G Pi H B`; Lotfi et al. 2022,
arXiv:2211.13609: `Pi ((Q1 (x) Q2) (+) R)`. Aghajanyan et al. 2020, arXiv:2012.13255:
SAID. Lotfi et al. 2023, arXiv:2312.17173: SubLoRA.
"""

import numpy as np


def hadamard(length):
    """Entries `(-1)^(number of ones that the bits of row and column share)`."""
    bits = np.arange(length)
    shared = bits[:, None] & bits[None]
    ones = np.array([[bin(int(x)).count("1") for x in row] for row in shared])
    return (-1.0) ** ones


def food(flip, gain, order):
    """`H G Pi H B (z; 0)` of one length, not normalised: `[L, d]`, `d <= L`."""
    length = len(gain)
    h = hadamard(length)
    whole = h @ np.diag(gain) @ h[order]  # Pi takes rows
    return whole[:, : len(flip)] * np.asarray(flip, np.float64)


def fastfood(flip, gain, order, total):
    """One transform for the whole network, normalised as the authors' code does."""
    length = len(gain)
    norm = np.sqrt(length * np.sum(np.square(gain))) * np.sqrt(total / length)
    return food(flip, gain, order)[:total] / norm


def fastfood_blocks(flip, gains, orders, total, outer):
    """Transforms under each other and, for parts of `z`, beside each other.

    `gains` and `orders`: `[parts, transforms, L]`. Each part has columns whose norm is
    one, but for rows that are cut. The rows of all transforms are interleaved: `outer`
    times, `L / outer` rows of each.
    """
    parts, count, length = gains.shape
    rows = np.arange(count * length).reshape(count, outer, -1).swapaxes(0, 1).ravel()
    kept = np.bincount(rows[:total] // length, minlength=count)
    columns = []
    for c in range(parts):
        own = flip[c * length : (c + 1) * length]
        blocks = [food(own, g, o) for g, o in zip(gains[c], orders[c], strict=True)]
        whole = np.concatenate(blocks)[rows[:total]]
        columns.append(whole / np.sqrt(kept @ np.sum(gains[c] ** 2, axis=1)))
    return np.concatenate(columns, axis=1)


def kronecker(q1, q2, rest, order):
    """`Pi ((Q1 (x) Q2) (+) R)`."""
    grid = np.kron(np.asarray(q1, np.float64), np.asarray(q2, np.float64))
    (a, p), (r, s) = grid.shape, rest.shape
    whole = np.zeros((a + r, p + s))
    whole[:a, :p] = grid
    whole[a:, p:] = rest
    return whole[order]


def sparse(rows, signs, sizes):
    """Entries `+-sqrt(1 / density)` in each leaf, then columns by their norms."""
    blocks = []
    for row, sign, size in zip(rows, signs, sizes, strict=True):
        block = np.zeros((size, len(row)))
        for j in range(len(row)):
            for i, s in zip(row[j], sign[j], strict=True):
                block[i, j] += s * size**0.25
        blocks.append(block)
    whole = np.concatenate(blocks)
    return whole / np.linalg.norm(whole, axis=0)


def structured(leaves, p, z, scales):
    """SAID: `theta_i = theta_0,i + lambda_i (P z)_i`, one scale for each leaf."""
    moved, start = [], 0
    for leaf, scale in zip(leaves, scales, strict=True):
        rows = p[start : start + leaf.size]
        moved.append(leaf + scale * (rows @ z).reshape(leaf.shape))
        start += leaf.size
    return moved
