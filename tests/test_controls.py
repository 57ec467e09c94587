"""Deliberately broken transforms: each must be caught by the law named for it.

Every control is one mistake in a copy of `lora` or `full`; its sound twin obeys the
same law. A law that lets its control pass proves nothing.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lowrank as lrk
from tests import laws
from tests.instances import Instance
from tests.network import BIASES, KERNELS, STACKED, numbers

LORA = Instance(
    "lora", lambda: lrk.lora(2), rank=2, random=("a",), alive=("a", "b"), flops=0.85
)
DROPOUT = dataclasses.replace(
    LORA, build=lambda: lrk.lora(2, dropout=0.5), has_dense=False, stochastic=True
)


class Control(NamedTuple):
    """A broken transform, the law that must catch it, and how the law fails."""

    name: str
    law: laws.Law
    broken: Instance
    sound: Instance = LORA
    error: type[Exception] = AssertionError


def edited(tx: lrk.Transform, init: Any = None, apply: Any = None) -> lrk.Transform:
    """A transform whose state or adapted tree is changed afterwards.

    `init(state, key, params) -> state`, `apply(adapted, params, key) -> adapted`.
    """

    def new_init(key, params):
        state = tx.init(key, params)
        return init(state, key, params) if init else state

    def new_apply(params, state, *, key=None):
        adapted = tx.apply(params, state, key=key)
        return apply(adapted, params, key) if apply else adapted

    return lrk.Transform(new_init, new_apply)


def control(name: str, law: laws.Law, *, sound: Instance = LORA, **edits: Any):
    """A control made by an edit of the sound instance."""
    error = edits.pop("error", AssertionError)

    def build():
        return edited(sound.build(), **edits)

    return Control(name, law, dataclasses.replace(sound, build=build), sound, error)


def with_factor(state: lrk.State, name: str, new: Any) -> lrk.State:
    """The state with `new(path, array)` for the factor of that name at each path."""
    trainable = {
        path: {**leaf, name: new(path, leaf[name])}
        for path, leaf in state.trainable.items()
    }
    return state._replace(trainable=trainable)


def with_operators(adapted: Any, make: Any) -> Any:
    """The adapted tree with `make(op)` in place of each operator."""

    def one(leaf):
        return make(leaf) if isinstance(leaf, lrk.Operator) else leaf

    return jax.tree.map(one, adapted, is_leaf=lambda x: isinstance(x, lrk.Operator))


# --- operators with one mistake ------------------------------------------------------


class WrongValue(lrk.LowRank):
    """Its products count the factors twice."""

    fields, static = lrk.LowRank.fields, lrk.LowRank.static

    def factors(self, dtype):
        return self.a.astype(dtype), self.b.astype(dtype) * 2


class WrongGradient(lrk.LowRank):
    """Right values; half of the gradient of `a` is lost."""

    fields, static = lrk.LowRank.fields, lrk.LowRank.static

    def factors(self, dtype):
        a, b = super().factors(dtype)
        return (a + lax.stop_gradient(a)) / 2, b


class Densified(lrk.LowRank):
    """Right in all but cost: every product forms the weight."""

    fields, static = lrk.LowRank.fields, lrk.LowRank.static

    def contract(self, x, spec):
        return spec(x, self.dense())


class Unequal(lrk.LowRank):
    """A static field that is compared by identity: each call is traced anew."""

    fields = lrk.LowRank.fields
    static = (*lrk.LowRank.static, "tag")


class WrongDtype(lrk.LowRank):
    """Says float32 of a bf16 weight."""

    fields, static = lrk.LowRank.fields, lrk.LowRank.static

    @property
    def dtype(self):
        return jnp.dtype("float32")


def remade(cls: type, **extra: Any):
    """An edit of `apply`: operators of another class with the same parts."""

    def make(op):
        names = (*op.fields, *op.static)
        own = {name: extra[name]() for name in extra}
        return cls._make(**{n: getattr(op, n) for n in names}, **own)

    return lambda adapted, _params, _key: with_operators(adapted, make)


# --- edits of init -------------------------------------------------------------------


def one_key(state, key, _params):
    """The same key for all leaves."""
    return with_factor(state, "a", lambda _, a: jax.random.normal(key, a.shape))


def one_key_for_all_layers(state, _key, _params):
    return with_factor(
        state,
        "a",
        lambda _, a: jnp.broadcast_to(a[:1], a.shape) if a.ndim == 3 else a,
    )


def numpy_draws(state, _key, _params):
    """Draws from NumPy's global generator."""

    def draw(_, a):
        values = np.random.normal(size=a.shape)  # noqa: NPY002, TID251
        return jnp.asarray(values, a.dtype)

    return with_factor(state, "a", draw)


def ignored_key(state, _key, _params):
    return with_factor(state, "a", lambda _, a: jnp.asarray(numbers(1, *a.shape)))


def traversal_order(state, key, _params):
    """Keys are split in the order of the tree."""
    keys = iter(jax.random.split(key, len(state.trainable)))
    return with_factor(state, "a", lambda _, a: jax.random.normal(next(keys), a.shape))


def counted_apart(state, key, _params):
    """Right keys by path, but one draw depends on how many leaves there are."""
    total = len(state.trainable)
    return with_factor(
        state,
        "a",
        lambda path, a: (
            a
            if "first" not in path
            else jax.random.normal(jax.random.fold_in(key, total), a.shape)
        ),
    )


def b_not_zero(state, key, _params):
    return with_factor(state, "b", lambda _, b: jax.random.normal(key, b.shape))


def looks_at_values(state, _key, params):
    bias = params["first"]["bias"]
    return state if (bias > -2).all() else state._replace(fixed={})


def other_under_jit(state, _key, params):
    """A dtype that depends on whether `init` is traced."""
    traced = isinstance(params["first"]["bias"], jax.core.Tracer)
    dtype = jnp.bfloat16 if traced else jnp.float32
    return with_factor(state, "b", lambda _, b: b.astype(dtype))


def scales(value: Any):
    """An edit of `init`: every fixed scale becomes `value(key)`."""

    def edit(state, key, _params):
        return state._replace(fixed={p: {"scale": value(key)} for p in state.fixed})

    return edit


# --- edits of apply ------------------------------------------------------------------


def casts(adapted, _params, _key):
    half = adapted["half"]["kernel"]
    return {**adapted, "half": {"kernel": half.replace(w=half.w.astype("float32"))}}


def drops_a_leaf(adapted, _params, _key):
    return {name: leaf for name, leaf in adapted.items() if name != "norm"}


def copies_the_bias(adapted, _params, _key):
    first = {**adapted["first"], "bias": adapted["first"]["bias"] + 0}
    return {**adapted, "first": first}


def edits_its_input(adapted, params, _key):
    params["order"] = jnp.array(params["order"])
    return adapted


def differs_under_jit(adapted, _params, _key):
    def make(op):
        traced = isinstance(op.a, jax.core.Tracer)
        return op.replace(a=1.01 * op.a) if traced else op

    return with_operators(adapted, make)


def factor_edit(name: str, change: Any):
    """An edit of `apply` that passes one factor of each operator through `change`."""
    return lambda adapted, _params, _key: with_operators(
        adapted, lambda op: op.replace(**{name: change(getattr(op, name))})
    )


def root_of_zero(b):
    """The value of `b`, with a gradient of 0/0 wherever `b - b` is rooted."""
    return b + jnp.sqrt(jnp.abs(b - lax.stop_gradient(b)))


@jax.custom_batching.custom_vmap
def blind(b):
    return b


@blind.def_vmap
def _first_task_for_all(size, batched, b):
    del size
    return jnp.broadcast_to(b[:1], b.shape) if batched[0] else b, batched[0]


def raises_the_rank(adapted, _params, _key):
    def make(op):
        if op.ndim != 2:
            return op
        return lrk.LowRank(op, op.a[::-1], op.b[:, ::-1])

    return with_operators(adapted, make)


def without_key():
    """Dropout that falls back to a key of its own."""
    tx = lrk.lora(2, dropout=0.5)

    def apply(params, state, *, key=None):
        key = jax.random.key(0) if key is None else key
        return tx.apply(params, state, key=key)

    return lrk.Transform(tx.init, apply)


def same_mask_always():
    """Dropout that ignores its key."""
    tx = lrk.lora(2, dropout=0.5)

    def apply(params, state, *, key=None):
        key = key if key is None else jax.random.key(0)
        return tx.apply(params, state, key=key)

    return lrk.Transform(tx.init, apply)


def task_in_closure(number: float) -> lrk.Transform:
    """What tells the tasks apart sits in the closure, not in the state."""
    return edited(lrk.lora(2), apply=factor_edit("b", lambda b: number * b))


TASKS = tuple(functools.partial(task_in_closure, n) for n in (1.0, 2.0, 3.0))
STACK = dataclasses.replace(
    LORA, build=lambda: lrk.lora(2, select=KERNELS, axes=STACKED)
)
BIAS = Instance("bias", lambda: lrk.full(select=BIASES), alive=("d",), flops=1.05)

CONTROLS = (
    control("cast", laws.law_structure_shape_dtype_kept, apply=casts),
    control("dropped-leaf", laws.law_structure_shape_dtype_kept, apply=drops_a_leaf),
    control(
        "wrong-dtype", laws.law_structure_shape_dtype_kept, apply=remade(WrongDtype)
    ),
    control("mutated-input", laws.law_inputs_unchanged, apply=edits_its_input),
    control(
        "copied-bias",
        laws.law_unselected_leaves_are_the_same_object,
        apply=copies_the_bias,
    ),
    control(
        "implicit-promotion",
        laws.law_dtypes_never_promote_implicitly,
        sound=BIAS,
        apply=lambda adapted, *_: {
            **adapted,
            "half": {"kernel": adapted["half"]["kernel"] + jnp.zeros((32, 32))},
        },
        error=jax.dtypes.TypePromotionError,
    ),
    control("numpy-draws", laws.law_same_key_same_state, init=numpy_draws),
    control("ignored-key", laws.law_different_keys_different_draws, init=ignored_key),
    control("one-key", laws.law_equal_shapes_different_draws, init=one_key),
    control(
        "one-key-for-all-layers",
        laws.law_equal_shapes_different_draws,
        sound=STACK,
        init=one_key_for_all_layers,
    ),
    control("b-not-zero", laws.law_identity_at_init, init=b_not_zero),
    control("differs-under-jit", laws.law_jit_is_eager, apply=differs_under_jit),
    control(
        "blind-to-vmap",
        laws.law_vmap_over_states_is_a_loop,
        apply=factor_edit("b", blind),
    ),
    Control(
        "task-in-closure",
        laws.law_vmap_over_states_is_a_loop,
        dataclasses.replace(LORA, tasks=TASKS),
    ),
    control("wrong-value", laws.law_lift_is_materialize, apply=remade(WrongValue)),
    control(
        "wrong-gradient", laws.law_lift_is_materialize, apply=remade(WrongGradient)
    ),
    control(
        "densified",
        laws.law_flops_of_the_gradient_are_bounded,
        apply=remade(Densified),
    ),
    control(
        "gradient-nan",
        laws.law_gradients_finite_and_alive,
        apply=factor_edit("b", root_of_zero),
    ),
    control(
        "gradient-zero",
        laws.law_gradients_finite_and_alive,
        apply=factor_edit("b", lax.stop_gradient),
    ),
    control(
        "static-by-identity",
        laws.law_two_calls_one_trace,
        apply=remade(Unequal, tag=object),
    ),
    control(
        "weak-scale",
        laws.law_two_calls_one_trace,
        init=scales(
            lambda key: (
                jnp.asarray(1.0)
                if (jax.random.key_data(key) == 0).all()
                else jnp.ones(())
            )
        ),
    ),
    control(
        "looks-at-values",
        laws.law_init_under_jit_and_eval_shape,
        init=looks_at_values,
        error=jax.errors.TracerBoolConversionError,
    ),
    control(
        "other-under-jit", laws.law_init_under_jit_and_eval_shape, init=other_under_jit
    ),
    control(
        "traversal-order",
        laws.law_an_unrelated_leaf_changes_no_draw,
        init=traversal_order,
    ),
    control(
        "counted-leaves",
        laws.law_an_unrelated_leaf_changes_no_draw,
        init=counted_apart,
    ),
    control(
        "python-float",
        laws.law_state_round_trips_through_flatten,
        init=scales(lambda _: 0.5),
    ),
    control(
        "weak-type",
        laws.law_state_round_trips_through_flatten,
        init=scales(lambda _: jnp.asarray(0.5)),
    ),
    control(
        "typed-key",
        laws.law_state_round_trips_through_flatten,
        init=scales(lambda key: key),
    ),
    control(
        "shape-of-the-moment",
        laws.law_state_round_trips_through_orbax,
        init=lambda state, _key, params: (
            state
            if isinstance(params["first"]["bias"], jax.core.Tracer)
            else state._replace(fixed={})
        ),
        error=ValueError,
    ),
    control(
        "rank-exceeded", laws.law_rank_of_the_change_is_bounded, apply=raises_the_rank
    ),
    Control(
        "invents-a-key",
        laws.law_randomness_comes_from_the_key,
        dataclasses.replace(DROPOUT, build=without_key),
        DROPOUT,
        pytest.fail.Exception,
    ),
    Control(
        "ignores-its-key",
        laws.law_randomness_comes_from_the_key,
        dataclasses.replace(DROPOUT, build=same_mask_always),
        DROPOUT,
    ),
)


@pytest.mark.parametrize("case", CONTROLS, ids=lambda case: case.name)
def test_a_broken_transform_is_caught(case):
    with pytest.raises(case.error):
        case.law(case.broken)
    case.law(case.sound)


def averaging_chain(*transforms):
    """Applies every member to the same base and keeps the mean: not associative."""
    tx = lrk.chain(*transforms)

    def apply(params, state, *, key=None):
        parts = [
            member.apply(params, lrk.State(t, f), key=key)
            for member, t, f in zip(transforms, *state, strict=True)
        ]
        formed = [lrk.materialize(part) for part in parts]

        def mean(*xs):
            return sum(xs[1:], xs[0]) / len(xs) if xs[0].dtype != "int32" else xs[0]

        return jax.tree.map(mean, *formed)

    return lrk.Transform(tx.init, apply)


def rounding_identity():
    """Passes every number through bfloat16."""

    def apply(params, state, *, key=None):
        del state, key
        return jax.tree.map(
            lambda x: x.astype(jnp.bfloat16).astype(x.dtype) if x.ndim == 3 else x,
            params,
        )

    return lrk.Transform(lrk.identity().init, apply)


def copying_identity():
    """Copies the leaves that nothing touches."""

    def apply(params, state, *, key=None):
        del state, key
        return {**params, "order": params["order"] + 0}

    return lrk.Transform(lrk.identity().init, apply)


def test_a_chain_that_is_not_associative_is_caught():
    with pytest.raises(AssertionError):
        laws.law_chain_is_associative(LORA, chain=averaging_chain)


@pytest.mark.parametrize("broken", [rounding_identity, copying_identity])
def test_an_identity_that_is_not_neutral_is_caught(broken):
    with pytest.raises(AssertionError):
        laws.law_identity_is_neutral(LORA, identity=broken)


def test_every_law_has_a_control():
    named = {case.law for case in CONTROLS}
    named |= {laws.law_chain_is_associative, laws.law_identity_is_neutral}
    assert set(laws.LAWS) == named


@pytest.mark.parametrize(
    "law",
    [laws.law_different_keys_different_draws, laws.law_gradients_finite_and_alive],
)
def test_a_row_that_claims_a_leaf_it_lacks_is_caught(law):
    with pytest.raises(AssertionError):
        law(dataclasses.replace(LORA, random=("m",), alive=("m",)))
