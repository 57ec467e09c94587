"""`truncated_svd`: against NumPy, over a stack, some of too low a rank."""

import numpy as np

from lowrank.linalg import truncated_svd
from tests.network import numbers
from tests.tolerances import assert_close


def test_agrees_with_numpy_for_each_of_a_stack():
    low = numbers(2, 5, 1) * numbers(3, 1, 7)
    w = np.stack([numbers(1, 5, 7), low, np.zeros((5, 7), np.float32)])
    u, s, vt = (np.asarray(x) for x in truncated_svd(w, 3))
    assert (u.shape, s.shape, vt.shape) == ((3, 5, 3), (3, 3), (3, 3, 7))
    want_u, want_s, want_v = np.linalg.svd(w.astype(np.float64), full_matrices=False)
    part = (want_u[:, :, :3] * want_s[:, None, :3]) @ want_v[:, :3]
    assert_close(s, want_s[:, :3].astype(np.float32))
    assert_close((u * s[:, None]) @ vt, part.astype(np.float32))
    assert_close(vt[0] @ vt[0].T, np.eye(3, dtype=np.float32))
    assert np.isfinite(vt).all()
    assert not vt[2].any()
