"""KnOTS, Core Space, TSV-M, Iso-C and Iso-CTS in NumPy float64, from dense matrices.

Everything here is in the papers' layout: a change `D = B A` is `[out, in]` with
`B: [out, r]` and `A: [r, in]`. A model is a dict from a name to a matrix, or a list of
matrices, one for each index of its stack.
"""

import numpy as np


def svd(x, support=True):
    """The thin SVD; with `support` without the directions that `x` lacks."""
    u, s, vt = np.linalg.svd(np.asarray(x, np.float64), full_matrices=False)
    kept = s > 1e-6 * s.max(initial=0.0) if support else np.ones(len(s), bool)
    return u[:, kept], s[kept], vt[kept]


def polar(x):
    """The orthonormal matrix nearest to `x`."""
    u, _, vt = svd(x)
    return u @ vt


def ties(vectors, density):
    """Yadav et al. 2023, algorithm 1, on one vector for each task."""
    x = np.stack([np.asarray(v, np.float64) for v in vectors])
    keep = max(1, int(density * x.shape[1]))
    for row in x:
        row[np.argsort(-abs(row), kind="stable")[keep:]] = 0
    sign = np.sign(x.sum(0))
    sign[sign == 0] = np.sign(sign.sum())
    agree = (np.sign(x) == sign) & (x != 0)
    return (x * agree).sum(0) / np.maximum(agree.sum(0), 1)


def task_sum(vectors):
    return np.sum(vectors, axis=0)


def knots(changes, weights, merge):
    """Stoica et al. 2024: `[D_1 ... D_T] = U S [V_1 ... V_T]^T`; merge the `S V_t^T`.

    `changes` has one list of matrices for each task; `merge` takes the tasks' vectors
    over all matrices.
    """
    tasks, joint = len(changes), [svd(np.hstack(x)) for x in zip(*changes, strict=True)]
    parts = [np.split(s[:, None] * vt, tasks, axis=1) for _, s, vt in joint]
    vectors = [
        np.concatenate([w * p[t].ravel() for p in parts]) for t, w in enumerate(weights)
    ]
    merged, out = merge(vectors), []
    for (u, _, _), p in zip(joint, parts, strict=True):
        own, merged = merged[: p[0].size], merged[p[0].size :]
        out.append(u @ own.reshape(p[0].shape))
    return out


def core_space(factors, weights, merge):
    """Panariello et al. 2025: merge `M_t = U^T B_t A_t V`, map back by `U M V^T`.

    `factors` has one list of pairs `(A, B)` for each task.
    """
    out, frames, cores = [], [], []
    for own in zip(*factors, strict=True):
        v = svd(np.vstack([a for a, _ in own]))[2]
        u = svd(np.hstack([b for _, b in own]))[0]
        frames.append((u, v))
        cores.append([u.T @ b @ a @ v.T for a, b in own])
    vectors = [
        np.concatenate([w * m[t].ravel() for m in cores]) for t, w in enumerate(weights)
    ]
    merged = merge(vectors)
    for (u, v), m in zip(frames, cores, strict=True):
        own, merged = merged[: m[0].size], merged[m[0].size :]
        out.append(u @ own.reshape(m[0].shape) @ v)
    return out


def tsv(changes, weights, rank=None, published=False):
    """Gargiulo et al. 2024: `polar([U_t]) diag(s_t) polar([V_t])^T` of one matrix.

    Of each task the leading `rank` directions, all that it has, or the published
    `min(out, in) // T`.
    """
    if published:
        rank = min(changes[0].shape) // len(changes)
    found = [[x[:rank] for x in (u.T, s, vt)] for u, s, vt in map(svd, changes)]
    u = np.concatenate([u for u, _, _ in found]).T
    s = np.concatenate([w * s for w, (_, s, _) in zip(weights, found, strict=True)])
    vt = np.concatenate([vt for _, _, vt in found])
    return polar(u) * s @ polar(vt)


def iso(changes, weights, published=False):
    """Marczak et al. 2025, Iso-C of one matrix: all singular values at their mean."""
    both = zip(weights, changes, strict=True)
    u, s, vt = svd(sum(w * d for w, d in both), support=not published)
    return s.mean() * u @ vt


def iso_cts(changes, weights, common, published=False):
    """Marczak et al. 2025, Iso-CTS of one matrix."""
    changes = [w * d for w, d in zip(weights, changes, strict=True)]
    u, s, vt = svd(sum(changes), support=not published)
    own = round((len(s) - int(len(s) * common)) / len(changes))
    k = len(s) - own * len(changes)
    us, ss, vs = [u[:, :k]], [s[:k]], [vt[:k]]
    for d in changes:
        left, values, right = svd(d - u[:, :k] @ u[:, :k].T @ d)
        us.append(left[:, :own])
        ss.append(values[:own])
        vs.append(right[:own])
    return np.concatenate(ss).mean() * polar(np.hstack(us)) @ polar(np.vstack(vs))
