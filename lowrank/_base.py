"""The protocol: transforms of parameter trees, their state, and operators."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from lowrank import _show

PyTree = Any
Array = jax.Array
Path = str
LeafState = Mapping[str, Any]


class State(NamedTuple):
    """What a transform keeps about a parameter tree, and nothing else.

    A leaf-wise transform holds two dicts `{path: {name: array}}`; `chain` holds tuples
    of its members' dicts. A path's presence records that the leaf was selected.

    Attributes:
        trainable: What the optimizer sees.
        fixed: What it never sees: frozen factors, scales, indices, random seeds.
    """

    trainable: PyTree
    fixed: PyTree

    def __repr__(self) -> str:
        """One line per leaf, with totals."""
        return _show.table_text("State", _show.state_rows(self))

    def _repr_html_(self) -> str:
        return _show.table_html("State", _show.state_rows(self))


class InitFn(Protocol):
    """`init(key, params) -> State`: never looks at the values of `params`."""

    def __call__(self, key: Array, params: PyTree) -> State:
        """Draw the state; runs under `jit` and `eval_shape`."""
        ...


class ApplyFn(Protocol):
    """`apply(params, state, *, key=None) -> params`: pure, never in place."""

    def __call__(
        self, params: PyTree, state: State, *, key: Array | None = None
    ) -> PyTree:
        """Put an array or an operator where each selected leaf stood."""
        ...


class Transform(NamedTuple):
    """A pair of pure functions, as optax has for gradients.

    Attributes:
        init: `init(key, params) -> State`.
        apply: `apply(params, state, *, key=None) -> params`, the same tree with the
            selected leaves replaced; all other leaves are the same objects.
    """

    init: InitFn
    apply: ApplyFn


class Operator:
    """A value that stands where a weight stood and knows how to multiply.

    Subclasses declare `fields` (children, in order) and `static` (hashable, compared by
    value), and are registered as pytree nodes. Unflattening never validates. A rule of
    `lift` asks an operator for one of the methods below; an operator that has no answer
    returns `NotImplemented` and is then refused, or formed where the user allows it.
    `w`, where there is one, may be an operator itself: ask it through the functions of
    `lowrank.operators`, which take arrays too.

    - `aval`: shape, dtype, sharding and varying axes, as an abstract array.
    - `dense()`: the weight itself, an array.
    - `contract(x, spec)`, `conv(x, spec)`: `spec(x, W)`, an array.
    - `gather(indices, spec)`: `spec(W, indices)`, an array or an operator.
    - `transpose`, `reshape`, `slice`, `dynamic_slice`, `reverse`: the same of `W`.
    - `cast(dtype)`, `scaled(factor)`, `add(array)`: `W.astype`, `c W`, `W + d`.
    - `unstack()`: arrays with axis 0 in front, and what makes a slice an operator.
    - `partition(spec)`, `constrain(sharding)`: how the children are split over a mesh.
    - `at(site, step)`: a random operator with a key of its own for one product.
    - `premerge()`: the weight formed once, with gradients for the additive terms alone;
      declined over a base that is `trained`.
    - `settle()`: an array, once the factored form gains nothing.
    - `mismatch()`: why the children do not fit each other, or None.
    """

    fields: ClassVar[tuple[str, ...]] = ()
    static: ClassVar[tuple[str, ...]] = ()
    base_fields: ClassVar[tuple[str, ...]] = ("w",)
    own_dense: ClassVar[bool] = True
    own_exact: ClassVar[bool] = True
    own_stochastic: ClassVar[bool] = False
    own_trained: ClassVar[bool] = True
    additive: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Register each subclass that declares its fields as a pytree node."""
        super().__init_subclass__(**kwargs)
        if not cls.fields:
            return
        fields, static = cls.fields, cls.static

        def keyed(op: "Operator") -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
            key = jax.tree_util.GetAttrKey
            children = [(key(name), getattr(op, name)) for name in fields]
            return children, tuple(getattr(op, name) for name in static)

        def plain(op: "Operator") -> tuple[list[Any], tuple[Any, ...]]:
            children = [getattr(op, name) for name in fields]
            return children, tuple(getattr(op, name) for name in static)

        def unflatten(aux: tuple[Any, ...], children: Any) -> "Operator":
            return cls._make(
                **dict(zip(static, aux, strict=True)),
                **dict(zip(fields, children, strict=True)),
            )

        jax.tree_util.register_pytree_with_keys(cls, keyed, unflatten, plain)

    @classmethod
    def _make(cls, **values: Any) -> "Operator":
        """Build without any check: children may be specs, axes or abstract values."""
        op = object.__new__(cls)
        for name, value in values.items():
            object.__setattr__(op, name, value)
        return op

    def replace(self, **changes: Any) -> "Operator":
        """The same operator with some fields changed, unchecked."""
        names = (*self.fields, *self.static)
        return self._make(**{n: getattr(self, n) for n in names} | changes)

    def __setattr__(self, name: str, value: Any) -> None:
        """Operators are immutable."""
        who = type(self).__name__
        raise AttributeError(f"{who}.{name} is read-only. Use .replace({name}=...).")

    # What an instance declares; a nested base has its say.

    def _children(self) -> "list[Operator]":
        values = (getattr(self, name) for name in self.fields)
        return [value for value in values if isinstance(value, Operator)]

    @property
    def has_dense(self) -> bool:
        """Whether a plain array stands for the same thing."""
        return self.own_dense and all(op.has_dense for op in self._children())

    @property
    def exact_grad(self) -> bool:
        """Whether gradients are those of the dense form (not straight-through)."""
        return self.own_exact and all(op.exact_grad for op in self._children())

    @property
    def stochastic(self) -> bool:
        """Whether a product draws random numbers."""
        return self.own_stochastic or any(op.stochastic for op in self._children())

    @property
    def trained(self) -> bool:
        """Whether it holds parts that may be trained: not a frozen base alone."""
        return self.own_trained or any(op.trained for op in self._children())

    # The algebra. The default is to decline.

    @property
    def aval(self) -> Any:
        """Abstract value of the weight that this operator stands for."""
        raise NotImplementedError(f"{type(self).__name__} must define aval.")

    def dense(self) -> Array:
        """The weight as a plain array."""
        raise TypeError(f"{type(self).__name__} has no dense form.")

    def contract(self, x: Array, spec: Any) -> Any:
        """`spec(x, W)` for a `Contraction` spec."""
        return NotImplemented

    def conv(self, x: Array, spec: Any) -> Any:
        """`spec(x, W)` for a `Convolution` spec."""
        return NotImplemented

    def gather(self, indices: Array, spec: Any) -> Any:
        """`spec(W, indices)` for a `Gather` spec."""
        return NotImplemented

    def transpose(self, permutation: tuple[int, ...]) -> Any:
        """`lax.transpose(W, permutation)`."""
        return NotImplemented

    def reshape(self, shape: tuple[int, ...]) -> Any:
        """`lax.reshape(W, shape)`."""
        return NotImplemented

    def slice(self, start: Any, limit: Any, strides: Any) -> Any:
        """`lax.slice(W, start, limit, strides)`."""
        return NotImplemented

    def dynamic_slice(self, starts: Any, sizes: Any) -> Any:
        """`lax.dynamic_slice(W, starts, sizes)`."""
        return NotImplemented

    def reverse(self, dims: tuple[int, ...]) -> Any:
        """`lax.rev(W, dims)`."""
        return NotImplemented

    def cast(self, dtype: Any) -> Any:
        """`W.astype(dtype)`, for a floating dtype."""
        return NotImplemented

    def scaled(self, factor: Any) -> Any:
        """`factor * W` for a scalar."""
        return NotImplemented

    def add(self, other: Array) -> Any:
        """`W + other` for an array of the same shape."""
        return NotImplemented

    def unstack(self) -> Any:
        """Arrays with axis 0 of `W` in front, and what rebuilds one slice."""
        return NotImplemented

    def partition(self, spec: Any) -> Any:
        """The operator of PartitionSpecs that follows from that of `W`."""
        return NotImplemented

    def constrain(self, sharding: Any) -> Any:
        """`lax.with_sharding_constraint(W, sharding)`."""
        return NotImplemented

    def at(self, site: int, step: Any = 0) -> "Operator":
        """The operator for one product: equation `site`, iteration `step`."""
        inner = {n: getattr(self, n) for n in self.fields}
        nested = {n: v.at(site, step) for n, v in inner.items() if _random(v)}
        return self.replace(**nested) if nested else self

    def premerge(self) -> Any:
        """The operator of the plan `premerged`: the weight formed once."""
        return NotImplemented

    def describe_axes(self) -> str:
        """Which axes of the weight the parts hold, for tables."""
        return "-"

    def settle(self) -> "Operator | Array":
        """An array, where staying an operator gains nothing; otherwise itself."""
        return self

    def mismatch(self) -> str | None:
        """Why the children do not fit each other, or None."""
        return None

    # What an array would answer.

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return tuple(self.aval.shape)

    @property
    def dtype(self) -> Any:
        """Dtype of the weight."""
        return self.aval.dtype

    @property
    def ndim(self) -> int:
        """Number of axes of the weight."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of entries of the weight."""
        return int(self.aval.size)

    def __repr__(self) -> str:
        """One line: no numbers."""
        return _show.operator_line(self)

    def _repr_html_(self) -> str:
        return _show.table_html(type(self).__name__, _show.tree_rows({"": self}))


def _random(value: Any) -> bool:
    return isinstance(value, Operator) and value.stochastic


def is_operator(leaf: Any) -> bool:
    """Whether `leaf` is an operator; operators count as leaves of a tree."""
    return isinstance(leaf, Operator)


_UNLIFTED = (
    "an operator ({op}) reached a function that is not lifted ({use}). Call "
    "lrk.lift(fn)(adapted, ...) in place of fn(adapted, ...), or form plain arrays "
    "with lrk.materialize(adapted)."
)


class UnliftedError(TypeError, AttributeError):
    """An operator was used as if it were an array, outside `lift`."""


def _unlifted(use: str) -> Callable[..., Any]:
    def refuse(self: Operator, *_: Any, **__: Any) -> Any:
        raise UnliftedError(_UNLIFTED.format(op=self, use=use))

    refuse.__doc__ = "Raise: operators multiply only inside `lift`."
    return refuse


_DUNDERS = (
    "__jax_array__ __array__ __getitem__ __iter__ __len__ __float__ __int__ __bool__ "
    "__index__ __neg__ __pos__ __abs__ __add__ __radd__ __sub__ __rsub__ __mul__ "
    "__rmul__ __matmul__ __rmatmul__ __truediv__ __rtruediv__ __floordiv__ "
    "__rfloordiv__ __mod__ __rmod__ __pow__ __rpow__ __lt__ __le__ __gt__ __ge__ "
    "__eq__ __ne__"
)
for _name in _DUNDERS.split():
    setattr(Operator, _name, _unlifted(_name))
Operator.__hash__ = object.__hash__


def _missing(self: Operator, name: str) -> Any:
    """Attributes that an array would have."""
    if hasattr(jax.Array, name) and not name.startswith("_"):
        raise UnliftedError(_UNLIFTED.format(op=self, use=f".{name}"))
    raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")


setattr(Operator, "__getattr__", _missing)  # noqa: B010


def as_struct(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of an array, an operator or an abstract value."""
    return jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype)


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array, an abstract array or an operator."""
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def is_floating(leaf: Any) -> bool:
    """Whether a leaf is an array (or operator) of a floating dtype."""
    return is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)
