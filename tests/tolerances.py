"""One table of tolerances; every comparison of the tests reads it."""

from typing import Any

import jax
import numpy as np

# (rtol, atol): the absolute part is in units of the largest expected magnitude.
TOLERANCE = {
    "float64": (1e-12, 1e-12),
    "float32": (2e-5, 2e-5),
    "bfloat16": (2e-2, 2e-2),
    "float16": (3e-3, 3e-3),
}


def assert_close(actual: Any, expected: Any, dtype: str | None = None) -> None:
    """Trees agree within the tolerance of `dtype`, by default each leaf's own."""
    structures = jax.tree.structure(actual), jax.tree.structure(expected)
    assert structures[0] == structures[1], f"{structures[0]} != {structures[1]}"
    flat = jax.tree_util.tree_flatten_with_path(expected)[0]
    for got, (path, want) in zip(jax.tree.leaves(actual), flat, strict=True):
        name = jax.tree_util.keystr(path)
        if jax.dtypes.issubdtype(want.dtype, jax.dtypes.prng_key):
            got, want = jax.random.key_data(got), jax.random.key_data(want)
        assert got.dtype == want.dtype, f"{name}: {got.dtype} != {want.dtype}"
        kind = dtype or str(want.dtype)
        got, want = (np.asarray(v).astype(np.float64) for v in (got, want))
        assert got.shape == want.shape, f"{name}: {got.shape} != {want.shape}"
        rtol, atol = TOLERANCE.get(kind, (0.0, 0.0))
        limit = atol * max(1e-30, np.max(np.abs(want), initial=0.0))
        np.testing.assert_allclose(got, want, rtol, limit, err_msg=name)
