"""One optimiser step of many adapters over one frozen base, as a pure function."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from lowrank import _tree
from lowrank._base import (
    Array,
    PyTree,
    State,
    Transform,
    is_floating,
    is_operator,
)
from lowrank._many import map_tasks, stack
from lowrank.lifting import lift as lift_fn
from lowrank.operators import _dispatch as ask
from lowrank.training._checks import (
    check_batch,
    check_loss,
    check_parts,
    check_step,
    hyper_of,
)
from lowrank.training._loss_scale import LossScale, Scale, checked_loss_scale

Loss = Callable[[PyTree, Any, Any], Any]
Optimizer = optax.GradientTransformation | Callable[..., optax.GradientTransformation]

_WHO = "training.step"


class Carry(NamedTuple):
    """What a step changes, with the adapters in front: donate it, and save it.

    Attributes:
        trainable: Trained parts of the states.
        optimizer: The optimiser's state of each adapter.
        step: Steps that each adapter has taken, int32 `[adapters]`.
        scale: The loss scale of each adapter, or None.
    """

    trainable: PyTree
    optimizer: PyTree
    step: Array
    scale: Scale | None


class Given(NamedTuple):
    """What a step only reads, with the adapters in front.

    Attributes:
        fixed: Fixed parts of the states.
        hyper: Hyperparameters of the optimiser by name, each `[adapters]`.
        limit: Steps after which each adapter changes no more, int32 `[adapters]`.
        key: A random key for each adapter, or None.
    """

    fixed: PyTree
    hyper: dict[str, Array]
    limit: Array
    key: Array | None


class Step(NamedTuple):
    """What `step` returns: two pure functions.

    Attributes:
        init: `init(states, *, steps, hyper=None, key=None) -> (given, carry)`.
        update: `update(params, given, carry, batch) -> (carry, metrics)`.
    """

    init: Callable[..., tuple[Given, Carry]]
    update: Callable[[PyTree, Given, Carry, Any], tuple[Carry, dict[str, Array]]]


class _Options(NamedTuple):
    """What one adapter's step is made of."""

    loss: Loss
    tx: Transform
    optimizer: Optimizer
    accumulate: int
    dtype: Any
    loss_scale: LossScale | None


def step(
    loss: Loss,
    tx: Transform,
    optimizer: Optimizer,
    *,
    batch_axis: int | None = 0,
    accumulate: int = 1,
    method: str = "auto",
    lift: Callable[[Loss], Loss] = lift_fn,
    dtype: Any = None,
    remat: Callable[..., Any] | None = None,
    loss_scale: LossScale | None = None,
) -> Step:
    """One step of many adapters at once, as pure functions to be jitted.

    For each adapter `i`, on its own: `loss(tx.apply(params, state_i), batch_i, key_i)`
    is differentiated in the trainable part of `state_i`, and an optimiser of its own
    updates it, unless the adapter has taken its steps already: then nothing about it
    changes. The base is an argument, shared by all. `fit` is this in a loop.

    Args:
        loss: `loss(params, batch, key)`, a scalar or `(scalar, metrics)` with a dict of
            arrays. It is lifted here, so it is the loss of the plain model, unmodified.
        tx: The transform that the states belong to.
        optimizer: An Optax transformation, or a function that makes one from the
            numbers `hyper` of one adapter: `optax.adam` with `{"learning_rate": ...}`.
            It is given the extra arguments `value` (the loss) and `fixed`.
        batch_axis: 0 if every leaf of a batch has a leading axis of adapters, None if
            all adapters see the same batch.
        accumulate: Batches whose gradients are averaged into one step, at least 1.
            Above 1, each leaf has them in an axis of its own, before the examples (and
            behind the adapters).
        method: How adapters run side by side, as for `map_tasks`.
        lift: What lifts the loss, such as `functools.partial(lrk.lift, plan=...)`. With
            `lambda loss: loss` the loss meets the operators, and lifts what it calls.
        dtype: What the base and the floating leaves of a batch are cast to, such as
            `jnp.bfloat16`. Adapters and optimiser states keep their own dtype.
        remat: A policy of `jax.checkpoint_policies`, for the whole loss: what is kept
            for the way back. A block of a model is better wrapped in the model.
        loss_scale: For float16, how the loss is scaled so that gradients do not
            underflow; None: it is not.

    Returns:
        A `Step`. `init` stacks the states, pads nothing, and looks at no value.
        `update` gives metrics by name, each `[adapters]`: `loss`, `grad_norm`, those of
        the loss and, with `loss_scale`, `loss_scale` and `finite`; NaN for an adapter
        that has taken its steps. Under `vmap` such an adapter is computed and dropped,
        in the loop of `map` it costs nothing.

    Raises:
        TypeError: If `loss`, `tx` or `optimizer` are of the wrong kind.
        ValueError: If `accumulate < 1`, or `batch_axis` is neither 0 nor None. When
            called, if numbers of adapters disagree, the loss is no scalar, or the base
            has no other dtype.

    Example:
        >>> import optax
        >>> params, tx = {"w": jnp.ones((4, 3))}, lrk.lora(2)
        >>> def loss(params, batch, key):
        ...     x, y = batch
        ...     return jnp.mean((x @ params["w"] - y) ** 2)
        >>> one = lrk.training.step(loss, tx, optax.adam, batch_axis=None)
        >>> states = [tx.init(jax.random.key(i), params) for i in range(3)]
        >>> rates = {"learning_rate": jnp.asarray([1e-3, 1e-2, 1e-1])}
        >>> given, carry = one.init(states, steps=10, hyper=rates)
        >>> batch = jnp.ones((5, 4)), jnp.zeros((5, 3))
        >>> carry, metrics = jax.jit(one.update)(params, given, carry, batch)
        >>> metrics["loss"].shape, carry.step.tolist()
        ((3,), [1, 1, 1])

    Notes:
        With `loss_scale`, a step whose gradients are not finite is counted but changes
        nothing, as in PyTorch's GradScaler.
    """
    check_step(loss, tx, optimizer, batch_axis, accumulate)
    objective = lift(loss)
    if remat is not None:
        objective = jax.checkpoint(objective, policy=remat)
    scaling = checked_loss_scale(_WHO, loss_scale)
    options = _Options(objective, tx, optimizer, accumulate, dtype, scaling)

    def init(
        states: State | Sequence[State],
        *,
        steps: Any,
        hyper: Mapping[str, Any] | None = None,
        key: Array | None = None,
    ) -> tuple[Given, Carry]:
        state = states if isinstance(states, State) else stack(states)
        number = adapters(state)
        numbers = hyper_of(hyper or {}, number)
        keys = None
        if key is not None:
            keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(number))
        limit = jnp.broadcast_to(jnp.asarray(steps, jnp.int32), (number,))

        def start(trainable: PyTree, numbers: dict[str, Array]) -> PyTree:
            return made(optimizer, numbers).init(trainable)

        memory = jax.vmap(start, axis_size=number)(state.trainable, numbers)
        scale = None if scaling is None else scaling.start(number)
        zero = jnp.zeros(number, jnp.int32)
        carry = Carry(state.trainable, memory, zero, scale)
        return Given(state.fixed, numbers, limit, keys), carry

    def update(
        params: PyTree, given: Given, carry: Carry, batch: Any
    ) -> tuple[Carry, dict[str, Array]]:
        if batch_axis == 0:
            check_batch(batch, given.limit.shape[0])

        def one(params: PyTree, given: Given, carry: Carry, batch: Any) -> Any:
            return _one(options, params, given, carry, batch, looped(method))

        axes = (None, 0, 0, batch_axis)
        return map_tasks(one, method=method, in_axes=axes)(params, given, carry, batch)

    return Step(init, update)


def looped(method: str) -> bool:
    """Whether `map_tasks` runs adapters one after another, and none in vain."""
    return method == "map" or (method == "auto" and jax.default_backend() == "cpu")


def _one(
    options: _Options,
    params: PyTree,
    given: Given,
    carry: Carry,
    batch: Any,
    in_loop: bool,
) -> tuple[Carry, dict[str, Array]]:
    """The step of one adapter, or nothing if it has taken all of its steps."""
    params, batch = (cast(tree, options.dtype) for tree in (params, batch))

    def advance(carry: Carry) -> tuple[Carry, dict[str, Array]]:
        return _advance(options, params, given, carry, batch)

    def rest(carry: Carry) -> tuple[Carry, dict[str, Array]]:
        _, shapes = jax.eval_shape(advance, carry)
        none = {k: jnp.full(x.shape, jnp.nan, x.dtype) for k, x in shapes.items()}
        return carry, none

    running = carry.step < given.limit
    if in_loop:
        return lax.cond(running, advance, rest, carry)
    # A `cond` under `vmap` gives every adapter a copy of the base.
    both = advance(carry), rest(carry)
    return jax.tree.map(lambda new, old: jnp.where(running, new, old), *both)


def _advance(
    options: _Options, params: PyTree, given: Given, carry: Carry, batch: Any
) -> tuple[Carry, dict[str, Array]]:
    factor = None if carry.scale is None else carry.scale.scale
    key = None if given.key is None else jax.random.fold_in(given.key, carry.step)
    objective = _objective(options, params, given.fixed, factor)
    metrics, slope = _gradient(
        objective, carry.trainable, batch, key, options.accumulate
    )
    if factor is not None:
        slope = jax.tree.map(lambda g: g / factor.astype(g.dtype), slope)
    metrics["grad_norm"] = optax.tree.norm(slope).astype(jnp.float32)
    optimizer = optax.with_extra_args_support(made(options.optimizer, given.hyper))
    extra = {"value": metrics["loss"], "fixed": given.fixed}
    change, memory = optimizer.update(slope, carry.optimizer, carry.trainable, **extra)
    trainable = optax.apply_updates(carry.trainable, change)
    scale = None
    if options.loss_scale is not None and carry.scale is not None:
        finite = jnp.isfinite(metrics["grad_norm"])
        trainable, memory = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (trainable, memory),
            (carry.trainable, carry.optimizer),
        )
        scale = options.loss_scale.after(carry.scale, finite)
        metrics |= {"loss_scale": scale.scale, "finite": finite.astype(jnp.float32)}
    return Carry(trainable, memory, carry.step + 1, scale), metrics


def _objective(
    options: _Options, params: PyTree, fixed: PyTree, factor: Array | None
) -> Callable[..., tuple[Array, dict[str, Array]]]:
    """The scaled loss of a batch as a function of what is trained, and its metrics."""

    def objective(trainable: PyTree, batch: Any, key: Array | None) -> Any:
        for_apply, for_loss = (None, None) if key is None else jax.random.split(key)
        adapted = options.tx.apply(params, State(trainable, fixed), key=for_apply)
        out = options.loss(adapted, batch, for_loss)
        value, metrics = out if isinstance(out, tuple) else (out, {})
        check_loss(value, metrics)
        value = jnp.asarray(value, jnp.float32)
        named = {k: jnp.asarray(x, jnp.float32) for k, x in metrics.items()}
        return value if factor is None else value * factor, {"loss": value, **named}

    return objective


def _gradient(
    objective: Callable[..., Any],
    trainable: PyTree,
    batch: Any,
    key: Array | None,
    accumulate: int,
) -> tuple[dict[str, Array], PyTree]:
    """Metrics and gradient, averaged over the batches of a step."""
    slope = jax.grad(objective, has_aux=True)
    if accumulate == 1:
        grads, metrics = slope(trainable, batch, key)
        return metrics, grads

    def add(total: Any, own: Any) -> tuple[Any, None]:
        i, part = own
        mine = None if key is None else jax.random.fold_in(key, i)
        return jax.tree.map(jnp.add, total, slope(trainable, part, mine)), None

    check_parts(batch, accumulate)
    first = jax.tree.map(lambda x: x[0], batch)
    shapes = jax.eval_shape(slope, trainable, first, key)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = lax.scan(add, zero, (jnp.arange(accumulate), batch))
    grads, metrics = jax.tree.map(lambda x: x / accumulate, total)
    return metrics, grads


def made(optimizer: Optimizer, hyper: Mapping[str, Array]) -> Any:
    """The optimiser of one adapter."""
    if isinstance(optimizer, optax.GradientTransformation):
        return optimizer
    return optimizer(**hyper)


def cast(tree: PyTree, dtype: Any) -> PyTree:
    """Floating arrays and operators in another dtype; None changes nothing.

    Raises:
        ValueError: If an operator has no other dtype; all are named.
    """
    if dtype is None:
        return tree
    flat, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_operator)
    new = [ask.cast(x, dtype) if is_floating(x) else x for _, x in flat]
    bad = [
        f"'{_tree.join(keys)}' ({type(x).__name__})"
        for (keys, x), made in zip(flat, new, strict=True)
        if ask.declined(made)
    ]
    if bad:
        raise ValueError(
            f"{_WHO}: cannot cast {', '.join(bad)}. Leave dtype out, and make the base "
            "of arrays in that dtype."
        )
    return jax.tree.unflatten(treedef, new)


def adapters(state: State) -> int:
    """How many adapters a stacked state holds.

    Raises:
        ValueError: If its arrays do not share a leading axis.
    """
    sizes = {x.shape[:1] for x in jax.tree.leaves(state)}
    if len(sizes) != 1 or sizes == {()}:
        raise ValueError(
            f"{_WHO}: expected states with one leading axis of adapters, got "
            f"{sorted(sizes)}. Pass a list of states, or what lrk.stack returned."
        )
    return sizes.pop()[0]
