"""HaLoRA: adapters that are trained beside a noisy chip."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowrank import _check
from lowrank._axes import Axes
from lowrank._base import Path, PyTree
from lowrank._combine import state_parts


def squared_norm(x: Float[Array, "*stack n r"]) -> Float[Array, "*stack"]:
    """The spectral norm of `x^T x`, which is `[r, r]`: that of `x`, squared."""
    return jnp.linalg.eigvalsh(jnp.matrix_transpose(x) @ x)[..., -1]


def adapter_norm_penalty(
    trainable: PyTree, *, axes: Mapping[Path, Axes] | None = None
) -> Array:
    """HaLoRA's regulariser: `sum ||A A^T||_2 + ||B^T B||_2` over all adapters.

    Small adapters move a noisy model and the ideal one alike. The norms are spectral,
    of the `r x r` matrices: HaLoRA's `A` is `[r, in]` and its `B` `[out, r]`, which are
    the transposes of ours. So with `a: [in, r]` and `b: [r, out]` they are
    `||a^T a||_2` and `||b b^T||_2`, the squares of the largest singular values.

    HaLoRA is no transform of its own, but three parts: additive noise on the frozen
    weights, `chain(crossbar(device), lora(r))`; this penalty, times 0.1, added to the
    loss; and a new chip every 400 steps, by `chip_key`. Its page has the whole step.

    Args:
        trainable: The trainable half of a state: dicts by path with `a`, `b` or both,
            in tuples if it is that of a chain. Other leaves do not count.
        axes: Axes by path, for leaves with more than two; what `lora` got. Each matrix
            of a stack counts by itself.

    Returns:
        A scalar. Where the largest singular value repeats its gradient is one of the
        subgradients, finite also at `b = 0`.

    Raises:
        ValueError: If no leaf has `a` or `b`, or such a leaf has more than two axes, or
            one, and `axes` does not speak of it.

    Example:
        >>> own = {"a": 2 * jnp.eye(4, 2), "b": jnp.array([[3.0, 0.0], [0.0, 1.0]])}
        >>> float(lrk.rram.adapter_norm_penalty({"w": own}))
        13.0

    Notes:
        The loss adds it times 0.1 in the paper. No code was found to compare with.

    References:
        Wu et al., HaLoRA, 2025, arXiv:2502.19747: the regularisation loss. Formula and
        weight as cited by later notes.
    """
    total, bad, found = jnp.zeros(()), [], False
    for part in state_parts(trainable):
        for path, leaf in part.items():
            for name in [n for n in ("a", "b") if n in leaf]:
                found, spec = True, (axes or {}).get(path)
                factor = _thin(leaf[name], name, spec)
                if factor is None:
                    bad.append(f"'{path}/{name}' of shape {tuple(leaf[name].shape)}")
                else:
                    total += jnp.sum(squared_norm(factor))
    if bad:
        raise ValueError(
            f"adapter_norm_penalty: no matrix at {', '.join(bad)}. Pass axes=, as to "
            "the adapter; packed factors of a mask are not supported."
        )
    if not found:
        raise ValueError(
            "adapter_norm_penalty: no leaf has 'a' or 'b'. Pass state.trainable of "
            "lrk.lora, or of a chain that holds it."
        )
    return total


def _thin(factor: Any, name: str, spec: Axes | None) -> Array | None:
    """A factor as `[*stack, n, r]`, or None."""
    if spec is None:
        if factor.ndim != 2:
            return None
        return factor if name == "a" else factor.T
    depth, own = len(spec.stack), spec.inputs if name == "a" else spec.outputs
    if factor.ndim != depth + len(own) + 1:
        return None
    stack = factor.shape[:depth]
    if name == "a":
        return factor.reshape(*stack, -1, factor.shape[-1])
    return jnp.matrix_transpose(factor.reshape(*stack, factor.shape[depth], -1))


def chip_key(key: Array, step: Any, every: int) -> Array:
    """The key of the chip of a training step: a new one every few steps.

    Args:
        key: One random key for the run.
        step: The step, from 0; may be traced.
        every: How many steps in a row share a chip, at least 1.

    Returns:
        `fold_in(key, step // every)`: what a crossbar's `init` takes.

    Raises:
        TypeError: If `key` is no key, or `every` no int.
        ValueError: If `every < 1`.

    Example:
        >>> key = jax.random.key(0)
        >>> keys = [lrk.rram.chip_key(key, step, 2) for step in range(4)]
        >>> [bool((k == keys[0]).all()) for k in keys]
        [True, True, False, False]

    References:
        Wu et al., HaLoRA, 2025, arXiv:2502.19747: noise drawn anew every 400 steps.
    """
    _check.check_key("chip_key", key, "chip_key(jax.random.key(0), step, every)")
    if isinstance(every, bool) or not isinstance(every, int | np.integer):
        raise TypeError(f"chip_key: every must be an int, got {every!r}.")
    if every < 1:
        raise ValueError(f"chip_key: every must be at least 1, got {every}.")
    return jax.random.fold_in(key, jnp.asarray(step) // every)
