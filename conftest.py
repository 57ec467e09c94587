"""Settings for every test and doctest; they must be made before jax starts."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Two devices; and machine code that is compiled quickly, since tests run it once. The
# graph is optimised in full all the same, so FLOPs and memory are those of users.
_XLA_FLAGS = {
    "xla_force_host_platform_device_count": "2",
    "xla_backend_optimization_level": "0",
    "xla_llvm_disable_expensive_passes": "true",
}
_GIVEN = os.environ.get("XLA_FLAGS", "")
_ADDED = (f"--{k}={v}" for k, v in _XLA_FLAGS.items() if k not in _GIVEN)
os.environ["XLA_FLAGS"] = " ".join([_GIVEN, *_ADDED]).strip()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import pytest  # noqa: E402

# A cache for each worker: JAX writes its entries in place, so two would collide.
_CACHE = os.environ.get("JAX_COMPILATION_CACHE_DIR") or ".cache/jax"
_WORKER = os.environ.get("PYTEST_XDIST_WORKER", "main")
jax.config.update(
    "jax_compilation_cache_dir", str(Path(__file__).parent / _CACHE / _WORKER)
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True)
def _names_in_examples(doctest_namespace):
    # Imported here and not above: the shape checks of jaxtyping are woven in
    # at the first import, which must come after pytest has been configured.
    import lowrank

    doctest_namespace.update(jax=jax, jnp=jnp, lowrank=lowrank, lrk=lowrank)
