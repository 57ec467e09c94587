"""An operator whose rows sit elsewhere, or are negated."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lowrank import _compat
from lowrank._base import Array, Operator
from lowrank.operators import _dispatch as ask
from lowrank.operators._delta import Delta


class Rewired(Operator):
    """A weight with its rows wired to other rows of an operator, and signs.

    It stands for `W[r, c] = row_signs[r] * column_signs[c] * w[rows[r], c]`, with zeros
    where `rows[r]` is no row of `w`. In a product the inputs are put where their rows
    are, and the outputs are multiplied by their signs, so that what acts inside the
    product of `w`, such as a converter, sees what the hardware sees.

    Args:
        w: The operator or array that is wired to, of two axes.
        rows: For each row of the weight, the row of `w`; no row twice. None: the rows
            are where they are.
        row_signs: One sign for each row of the weight; None: all positive.
        column_signs: One sign for each column; None: all positive.
        axis: Which axis of `w` the rows are.

    Returns:
        An operator: a pytree node with children `w, rows, row_signs, column_signs`.

    Raises:
        ValueError: If the parts do not fit each other.

    Example:
        >>> w = jnp.asarray([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
        >>> op = lrk.operators.Rewired(w, [2, 0], column_signs=[1, -1])
        >>> lrk.lift(jnp.matmul)(jnp.asarray([[1.0, 10.0]]), op).tolist()
        [[15.0, -26.0]]
    """

    fields = ("w", "rows", "row_signs", "column_signs")
    static = ("axis",)
    own_trained = False

    w: Any
    rows: Array | None
    row_signs: Array | None
    column_signs: Array | None
    axis: int

    def __init__(
        self,
        w: Any,
        rows: Any = None,
        *,
        row_signs: Any = None,
        column_signs: Any = None,
        axis: int = 0,
    ) -> None:
        values: dict[str, Any] = {
            "rows": rows,
            "row_signs": row_signs,
            "column_signs": column_signs,
        }
        own = {n: v if v is None else jnp.asarray(v) for n, v in values.items()}
        for name, value in ({"w": w, "axis": axis} | own).items():
            object.__setattr__(self, name, value)
        if (reason := self.mismatch()) is not None:
            raise ValueError(f"Rewired: {reason}.")

    def mismatch(self) -> str | None:
        """Why the parts do not fit each other, or None."""
        inner = tuple(self.w.shape)
        if len(inner) != 2 or self.axis not in (0, 1):
            return f"expected a weight of 2 axes, got {inner} with axis={self.axis}"
        bad = []
        if self.rows is not None and self.rows.ndim != 1:
            bad.append(f"rows of {tuple(self.rows.shape)}")
        else:
            sizes = self.shape[self.axis], self.shape[1 - self.axis]
            for name, size in zip(("row_signs", "column_signs"), sizes, strict=True):
                signs = getattr(self, name)
                if signs is not None and tuple(signs.shape) != (size,):
                    bad.append(f"{name} of {tuple(signs.shape)}, expected ({size},)")
        if bad:
            return f"a weight of {inner} does not fit {', '.join(bad)}"
        return self.w.mismatch() if isinstance(self.w, Operator) else None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self._resized(tuple(self.w.shape))

    @property
    def dtype(self) -> Any:
        """Dtype of the weight."""
        return self.w.dtype

    @property
    def aval(self) -> Any:
        """Abstract value of the weight, varying as the parts vary."""
        inner = ask.aval(self.w)
        parts = (self.rows, self.row_signs, self.column_signs)
        own = [x for x in parts if x is not None]
        if self.shape != tuple(inner.shape):
            inner = jax.make_jaxpr(self._cut)(inner).out_avals[0]
        return _compat.join_varying(inner, own)

    def _resized(self, inner: tuple[int, ...]) -> tuple[int, ...]:
        """A shape with as many rows as the weight has."""
        count = inner[self.axis] if self.rows is None else self.rows.shape[0]
        return (count, inner[1]) if self.axis == 0 else (inner[0], count)

    def _cut(self, w: Array) -> Array:
        """An array of the weight's shape, laid out as `w` is."""
        grown = [
            (0, n - m if n > m else 0, 0)
            for n, m in zip(self.shape, w.shape, strict=True)
        ]
        return lax.slice(lax.pad(w, jnp.zeros((), w.dtype), grown), (0, 0), self.shape)

    def dense(self) -> Array:
        """The weight, if `w` has a dense form."""
        w = ask.dense(self.w)
        w = w if self.rows is None else taken(w, self.rows, self.axis)
        w = signed(w, self.row_signs, self.axis)
        return signed(w, self.column_signs, 1 - self.axis)

    def settle(self) -> Operator | Array:
        """An array, unless `w` stays an operator."""
        w = ask.settle(self.w)
        op = self.replace(w=w)
        return op if isinstance(w, Operator) else op.dense()

    def describe_axes(self) -> str:
        """Which axis the rows are."""
        return f"rows[{self.axis}]"

    def contract(self, x: Array, spec: Any) -> Any:
        """The product with `w`, between the wires of its inputs and its outputs."""
        xl, wl, out = spec.labels(x.ndim, 2)
        row, column = wl[self.axis], wl[1 - self.axis]
        if any(n in xl and n in out for n in wl):
            return NotImplemented  # one product for each row or column
        if row in xl:
            at = xl.index(row)
            x = signed(x, self.row_signs, at)
            x = x if self.rows is None else taken(x, self._places(), at)
        if column in xl:
            x = signed(x, self.column_signs, xl.index(column))
        y = ask.contract(self.w, x, spec)
        if ask.declined(y):
            return y
        if row in out:
            at = out.index(row)
            y = y if self.rows is None else taken(y, self.rows, at)
            y = signed(y, self.row_signs, at)
        return signed(y, self.column_signs, out.index(column)) if column in out else y

    def _places(self) -> Array:
        """For each row of `w` the row of the weight; one that is none where none is."""
        rows = jnp.asarray(self.rows)
        count = rows.shape[0]
        empty = jnp.full((self.w.shape[self.axis],), count, jnp.int32)
        return empty.at[rows].set(jnp.arange(count, dtype=jnp.int32), mode="drop")

    def transpose(self, permutation: tuple[int, ...]) -> Any:
        """Rows and columns change places."""
        w = ask.transpose(self.w, permutation)
        return w if ask.declined(w) else self.replace(w=w, axis=permutation[self.axis])

    def cast(self, dtype: Any) -> Any:
        """Cast what is wired to."""
        return self._with(ask.cast(self.w, dtype))

    def scaled(self, factor: Any) -> Any:
        """Scale what is wired to."""
        return self._with(ask.scaled(self.w, factor))

    def add(self, other: Array) -> Any:
        """A term beside the rewired weight."""
        return Delta._make(w=self, d=other)

    def _with(self, w: Any) -> Any:
        return w if ask.declined(w) else self.replace(w=w)


def taken(x: Array, index: Array, axis: int) -> Array:
    """Entries along an axis; zeros where the index is out of range."""
    return jnp.take(x, index, axis=axis, mode="fill", fill_value=0)


def signed(x: Array, signs: Array | None, axis: int) -> Array:
    """`x` times signs along an axis, in its own dtype."""
    if signs is None:
        return x
    shape = [1] * x.ndim
    shape[axis] = -1
    return x * signs.astype(x.dtype).reshape(shape)
