"""Trainable tokens: a few rows of an embedding table, and nothing else of it."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowrank._axes import Axes
from lowrank._base import Array, Operator, Path, Transform
from lowrank._select import Select
from lowrank.adapters._leafwise import (
    Arrays,
    Reason,
    Rules,
    leafwise,
)
from lowrank.adapters._lora import Initializer
from lowrank.operators import RowDelta


def trainable_tokens(
    index: Sequence[int] | np.ndarray,
    *,
    select: Select,
    axes: Mapping[Path, Axes] | None = None,
    init: Initializer = jax.nn.initializers.zeros,
) -> Transform:
    """Train some rows of an embedding table: new tokens, say, and no others.

    Row `index[i]` of a table `W: [tokens, width]` becomes `W[index[i]] + D[i]` with
    `D: [k, width]` zero at init. A look-up adds the rows that it meets, and a tied
    output layer the logits of `k` tokens: neither the table nor its gradient is formed.

    Args:
        index: Which tokens, as Python or NumPy integers, each at most once.
        select: Which leaves; called once, in `init`, as `select(path, leaf)`. Other
            tokens for other leaves are another member of a `chain`.
        axes: Axes by path, where the tokens are not the first of two axes: those of
            the tokens are the `inputs`, as `trace_axes` has it for a look-up.
        init: Initializer of `D`, called as `init(key, (k, width), float32)`.

    Returns:
        A transform that is the identity at init (with the default `init`). Trainable:
        `d`, float32. Fixed: `index`, int32. `stack` pads states of unequal length.

    Raises:
        TypeError: If `index` does not hold integers.
        ValueError: If `index` is empty, negative or names a token twice; in `init`, if
            a selected leaf is not floating or too short; in `apply`, if the state is of
            another tree.

    Example:
        >>> tx = lrk.trainable_tokens([5, 2], select=lrk.matching("embedding"))
        >>> params = {"embedding": jnp.zeros((6, 3))}
        >>> state = tx.init(jax.random.key(0), params)
        >>> state.trainable["embedding"]["d"].shape
        (2, 3)

    Notes:
        PEFT trains the new row itself and puts it in place of the old one: the same
        function and the same gradient, with `D` measured from another point.
    """
    rows = _rows(index)

    def fits(sizes: Axes) -> Reason | None:
        if sizes.stack or len(sizes.inputs) != 1:
            return Reason(
                "needs one axis of tokens and no stack", "name one as inputs in axes="
            )
        tokens = sizes.inputs[0]
        if max(rows) < tokens:
            return None
        return Reason(f"token {max(rows)} of {tokens}", "pass tokens below {}", tokens)

    def draw(key: Array, sizes: Axes) -> tuple[Arrays, Arrays]:
        d = init(key, (len(rows), int(np.prod(sizes.outputs))), jnp.float32)
        own = {"d": d.reshape(len(rows), *sizes.outputs)}
        return own, {"index": jnp.asarray(rows, jnp.int32)}

    def build(w: Any, own: Arrays, axes: Axes) -> Operator:
        order = sorted(range(len(axes.outputs)), key=lambda i: axes.outputs[i])
        d = jnp.transpose(own["d"], [0, *(1 + i for i in order)])
        (axis,) = axes.inputs
        static = {"axis": axis, "size_of_axis": w.shape[axis]}
        return RowDelta._make(w=w, d=d, index=own["index"], **static)

    rules = Rules(fits, draw, build, ("d",), ("index",))
    return leafwise("trainable_tokens", rules, select, axes)


def _rows(index: Any) -> tuple[int, ...]:
    """The tokens as Python integers.

    Raises:
        TypeError: If they are no integers.
        ValueError: If there is none, or one is negative or named twice.
    """
    if not all(hasattr(i, "__index__") and not isinstance(i, bool) for i in index):
        raise TypeError(f"trainable_tokens: index must hold integers, got {index!r}.")
    rows = tuple(int(i) for i in index)
    if not rows or min(rows) < 0 or len(set(rows)) < len(rows):
        raise ValueError(
            "trainable_tokens: index must name at least one token, none below 0 and "
            f"none twice, got {list(rows)}."
        )
    return rows
