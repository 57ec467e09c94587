"""Starts of low-rank factors in NumPy float64; kernels are `[in, out]`.

PiSSA (Meng et al., 2024) splits the SVD of a weight, OLoRA (Büyükakyüz, 2024) its QR.
Both leave `W - s A_0 B_0` frozen and train `A` and `B` from there.
"""

import numpy as np


def pissa(w, rank, scale):
    """`A_0 = U_r S_r^(1/2)`, `B_0 = S_r^(1/2) V_r^T`, with `S / s` for `S`."""
    u, s, vt = np.linalg.svd(np.asarray(w, np.float64), full_matrices=False)
    a, b = np.zeros((w.shape[0], rank)), np.zeros((rank, w.shape[1]))
    for i in range(rank):
        root = np.sqrt(s[i] / scale)
        a[:, i] = u[:, i] * root
        b[i] = root * vt[i]
    return a, b


def olora(w, rank, scale):
    """`W^T = Q R`: `A_0 = R_r^T`, `B_0 = Q_r^T`."""
    del scale
    q, r = np.linalg.qr(np.asarray(w, np.float64).T)
    return r[:rank].T, q[:, :rank].T


def weight(w, a, b, a0, b0, scale):
    """`(W - s A_0 B_0) + s A B`."""
    residual = np.asarray(w, np.float64) - scale * (a0 @ b0)
    return residual + scale * (np.asarray(a, np.float64) @ np.asarray(b, np.float64))
