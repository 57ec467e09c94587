"""Diagnostics of adapters in NumPy float64, from formed matrices.

Matrices are as ours, `[in, out]`, unless a function says that it has a paper's layout.
"""

import numpy as np


def values(x):
    return np.linalg.svd(np.asarray(x, np.float64), compute_uv=False)


def effective_rank(x):
    """Roy and Vetterli 2007, definition 1."""
    p = values(x) / values(x).sum()
    p = p[p > 1e-12]
    return np.exp(-np.sum(p * np.log(p)))


def stable_rank(x):
    return np.sum(np.square(x)) / np.linalg.norm(x, 2) ** 2


def participation_ratio(x):
    s = values(x)
    return np.sum(s**2) ** 2 / np.sum(s**4)


def energy_at_rank(x, rank):
    """One minus the squared relative error of the best approximation."""
    u, s, vt = np.linalg.svd(np.asarray(x, np.float64), full_matrices=False)
    rest = x - (u[:, :rank] * s[:rank]) @ vt[:rank]
    return 1 - np.sum(rest**2) / np.sum(np.square(x))


def rank_at_energy(x, energy):
    full = np.linalg.matrix_rank(x)
    return next(
        r
        for r in range(1, full + 1)
        if energy_at_rank(x, r) >= energy - 1e-9 or r == full
    )


def similarity(a1, a2, i, j):
    """Hu et al. 2021, eq. 4, in their layout: `A: [r, in]`, `U` its right vectors."""
    one, two = (np.linalg.svd(np.asarray(a, np.float64))[2] for a in (a1, a2))
    return np.linalg.norm(one[:i] @ two[:j].T) ** 2 / min(i, j)


def angles(x, y):
    """Principal angles from the projectors on both column spaces."""
    one, two = (a @ np.linalg.pinv(np.asarray(a, np.float64)) for a in (x, y))
    cosines = np.linalg.svd(one @ two, compute_uv=False)[: min(x.shape[1], y.shape[1])]
    return np.arccos(np.clip(cosines, 0, 1))


def amplification(w, delta, rank):
    """Hu et al. 2021, section 7.3: `|D| / |U^T W V|`."""
    u, _, vt = np.linalg.svd(np.asarray(delta, np.float64))
    inside = u[:, :rank].T @ np.asarray(w, np.float64) @ vt[:rank].T
    return np.linalg.norm(delta) / np.linalg.norm(inside)


def cosine(x, y):
    return np.sum(x * y) / (np.linalg.norm(x) * np.linalg.norm(y))


def intruder_cosines(w, delta, k):
    """Shuttleworth et al. 2024 in their layout, `[out, in]`: left singular vectors."""
    w, delta = (np.asarray(x, np.float64) for x in (w, delta))
    new = np.linalg.svd(w + delta)[0]
    old = np.linalg.svd(w, full_matrices=False)[0]
    return np.array([max(abs(new[:, i] @ u) for u in old.T) for i in range(k)])


def mitigated(w, delta, k, epsilon, scale):
    """`W + D + (scale - 1) sum_I s_i u_i v_i^T`, in the paper's layout."""
    x = np.asarray(w, np.float64) + delta
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    cosines = intruder_cosines(w, delta, k)
    for i in np.nonzero(cosines < epsilon)[0]:
        x = x + (scale - 1) * s[i] * np.outer(u[:, i], vt[i])
    return x


def sign_conflicts(deltas):
    """Entry by entry: changed by two or more, and in both directions."""
    common = opposed = 0
    for entries in zip(*(d.ravel() for d in deltas), strict=True):
        signs = [np.sign(x) for x in entries if x != 0]
        common += len(signs) > 1
        opposed += len(signs) > 1 and len(set(signs)) > 1
    return opposed / max(common, 1)


def alignment_ratio(delta, merged, error):
    """Marczak et al. 2025, SAR, in their layout, `[out, in]`: left singular vectors."""
    u, _, _ = np.linalg.svd(np.asarray(merged, np.float64), full_matrices=False)
    for k in range(u.shape[1] + 1):
        projector = u[:, :k] @ u[:, :k].T
        rest = np.linalg.norm(merged - projector @ merged)
        if rest <= error * np.linalg.norm(merged):
            break
    return np.linalg.norm(projector @ delta) / np.linalg.norm(delta)


def task_interference(deltas, ranks):
    """Gargiulo et al. 2024, STI: `|(U^T U - 1) S (V^T V - 1)|_1` over entries.

    Each task has as many directions as `ranks` says, at most its rank.
    """
    us, ss, vs = [], [], []
    for d, rank in zip(deltas, ranks, strict=True):
        u, s, vt = np.linalg.svd(np.asarray(d, np.float64))
        us.append(u[:, :rank])
        ss.append(s[:rank])
        vs.append(vt[:rank].T)
    u, s, v = np.hstack(us), np.concatenate(ss), np.hstack(vs)
    eye = np.eye(len(s))
    return np.abs((u.T @ u - eye) @ np.diag(s) @ (v.T @ v - eye)).sum()


def jacobian(fn, at, step=1e-6):
    """Central differences: `[outputs, numbers]`."""
    at = np.asarray(at, np.float64)
    ends = [(fn(at + step * e), fn(at - step * e)) for e in np.eye(len(at))]
    return np.stack([(up - down) / (2 * step) for up, down in ends], axis=-1)


def kernel_alignment(k1, k2):
    """Cortes et al. 2012, definition 4, with `H` written out."""
    h = np.eye(len(k1)) - 1 / len(k1)
    return cosine(h @ k1 @ h, h @ k2 @ h)
