"""`Premerged`: the values and gradients of the factored form, at one product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank.operators import Contraction
from lowrank.operators._premerged import Premerged, premerged
from tests.network import numbers
from tests.reference import lora as reference
from tests.tolerances import assert_close

PRODUCT = Contraction((((1,), (0,)), ((), ())), False)


def array(seed, *shape):
    return jnp.asarray(numbers(seed, *shape))


def matrix(scale=0.5):
    return lrk.LowRank(array(1, 6, 4), array(2, 6, 2), array(3, 2, 4), scale)


def stacked():
    scale = jnp.array([0.5, 1.0, 2.0])
    return lrk.LowRank(array(1, 3, 6, 4), array(2, 3, 6, 2), array(3, 3, 2, 4), scale)


CASES = {
    "x w": (matrix, (5, 6), PRODUCT),
    "x w.T": (matrix, (5, 4), Contraction((((1,), (1,)), ((), ())), False)),
    "w x": (matrix, (4, 5), Contraction((((1,), (0,)), ((), ())), True)),
    "three axes": (matrix, (2, 3, 6), Contraction((((2,), (0,)), ((), ())), False)),
    "batched": (stacked, (3, 5, 6), Contraction((((2,), (1,)), ((0,), (0,))), False)),
}


@pytest.mark.parametrize(("make", "shape", "spec"), CASES.values(), ids=CASES)
def test_values_and_gradients_are_those_of_the_factored_form(make, shape, spec):
    x = array(9, *shape)

    def run(premerge):
        def objective(op, x):
            own = premerged(op) if premerge else op
            out = own.contract(x, spec)
            ramp = np.linspace(-1, 1, out.size, dtype=np.float32).reshape(out.shape)
            return jnp.sum(out * out * ramp), out

        grads, out = jax.grad(objective, argnums=(0, 1), has_aux=True)(make(), x)
        return out, grads[1], (grads[0].a, grads[0].b, grads[0].scale), grads[0].w

    merged, factored = run(True), run(False)
    assert_close(merged[:3], factored[:3])
    assert not merged[3].any()


def test_gradients_follow_the_equations():
    op, x, g = matrix(), array(9, 5, 6), numbers(4, 5, 4)

    def total(op, x):
        return jnp.sum(premerged(op).contract(x, PRODUCT) * g)

    grads, dx = jax.grad(total, argnums=(0, 1))(op, x)
    want = reference.gradients(x, op.w, op.a, op.b, 0.5, g)
    got = (dx, grads.a, grads.b)
    assert_close(got, tuple(np.asarray(v, np.float32) for v in want))


def test_second_order_is_exact():
    x = array(9, 5, 6)

    def slope(premerge):
        def total(a, x):
            op = matrix().replace(a=a)
            own = premerged(op) if premerge else op
            return jnp.sum(jnp.tanh(own.contract(x, PRODUCT)))

        def norm(a):
            da, dx = jax.grad(total, argnums=(0, 1))(a, x)
            return jnp.sum(da**2) + jnp.sum(dx**3)

        return jax.grad(norm)(matrix().a)

    assert_close(slope(True), slope(False))


def test_forward_mode_is_refused():
    def run(a):
        return premerged(matrix().replace(a=a)).contract(array(9, 5, 6), PRODUCT)

    a = matrix().a
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(run, (a,), (a,))


def test_the_gradient_of_the_weight_is_never_formed():
    x = array(9, 5, 6)

    def total(a):
        op = matrix().replace(a=a)
        return premerged(op).contract(x, PRODUCT).sum()

    jaxpr = jax.make_jaxpr(jax.grad(total))(matrix().a)
    dots = [e for e in _equations(jaxpr.jaxpr) if e.primitive.name == "dot_general"]
    formed = [e for e in dots if e.outvars[0].aval.shape in ((6, 4), (4, 6))]
    # Once: the merge itself, with the rank as its inner size.
    summed = [
        e.invars[0].aval.shape[e.params["dimension_numbers"][0][0][0]] for e in formed
    ]
    assert summed == [2]


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            yield from _equations(inner)


def test_structure_acts_on_both_forms():
    own = premerged(matrix())
    pairs = [
        (own.transpose((1, 0)), lambda w: w.T),
        (own.reshape((2, 3, 4)), lambda w: w.reshape(2, 3, 4)),
        (own.slice((1, 0), (5, 4), (2, 1)), lambda w: w[1:5:2]),
        (own.dynamic_slice([1, 0], [2, 4]), lambda w: w[1:3]),
        (own.reverse((0,)), lambda w: w[::-1]),
    ]
    for changed, same in pairs:
        assert isinstance(changed, Premerged)
        assert_close((changed.m, changed.dense()), (same(own.m), same(own.dense())))
    half = own.cast(jnp.bfloat16)
    assert (half.m.dtype, half.dtype) == (jnp.bfloat16, jnp.bfloat16)
    assert own.reshape((24,)) is NotImplemented


def test_slices_of_a_stack_keep_both_forms():
    own = premerged(stacked())
    parts, rebuild = own.unstack()
    one = rebuild(jax.tree.map(lambda x: x[2], parts))
    assert_close((one.m, one.dense()), (own.m[2], own.dense()[2]))


def test_what_may_need_a_gradient_falls_back_to_the_factors():
    assert isinstance(premerged(matrix()).scaled(2.0), lrk.LowRank)
    assert isinstance(premerged(matrix()).add(array(5, 6, 4)), lrk.LowRank)


def test_every_additive_term_gets_its_gradient_and_the_base_none():
    x, g = array(9, 5, 6), array(4, 5, 4)

    def grads(form):
        def total(op):
            return jnp.sum(jnp.tanh(form(op).contract(x, PRODUCT)) * g)

        return jax.grad(total)(lrk.Delta(matrix(), array(5, 6, 4)))

    merged, factored = grads(premerged), grads(lambda op: op)
    assert isinstance(merged, lrk.Delta)
    assert_close(merged.d, factored.d)
    own, want = merged.w, factored.w
    assert_close((own.a, own.b, own.scale), (want.a, want.b, want.scale))
    assert not own.w.any()


class Frozen(lrk.Operator):
    """A base with nothing to train, such as a quantised one."""

    fields = ("codes",)
    own_trained = False

    @property
    def aval(self):
        return self.codes

    def dense(self):
        return self.codes / 2

    def contract(self, x, spec):
        return spec(x, self.dense())


def test_a_frozen_operator_may_be_the_base():
    op = matrix().replace(w=Frozen._make(codes=array(1, 6, 4)))
    x = array(9, 5, 6)

    def grads(form):
        own = jax.grad(lambda op: jnp.sum(form(op).contract(x, PRODUCT) ** 2))(op)
        return own.a, own.b

    assert_close(grads(premerged), grads(lambda op: op))


def test_a_base_with_trained_parts_is_refused_by_path():
    params = {"one": array(1, 6, 4), "two": array(2, 6, 4)}
    tx = lrk.chain(lrk.dora(2), lrk.lora(2))
    state = tx.init(jax.random.key(0), params)
    adapted = tx.apply(params, state)
    # One that is frozen itself, over a term that is trained.
    adapted["three"] = matrix().replace(w=Frozen._make(codes=matrix()))

    def model(p, x):
        return x @ p["one"] + x @ p["two"] + x @ p["three"]

    message = (
        r"'one' \(LowRank\) cannot be premerged: what Magnitude holds .* no gradient; "
        r"'three' \(LowRank\) .* Frozen holds .*; 'two' .*Leave it factored"
    )
    with pytest.raises(ValueError, match=message):
        lrk.lift(model, plan={".": "premerged"})(adapted, array(9, 5, 6))


def test_a_plan_that_needs_a_dense_form_is_refused_by_path():
    zeros = jnp.zeros((6, 2))
    op = lrk.operators.Routed(zeros, zeros, jnp.zeros((3, 2, 2)), jnp.zeros((6, 3)))
    over = {"w": lrk.LowRank(op, zeros, jnp.zeros((2, 2)))}
    for plan in ("premerged", "dense"):
        message = rf"'w' \(LowRank\) cannot be {plan}: it has no dense form"
        with pytest.raises(ValueError, match=message):
            lrk.lift(lambda p, x: x @ p["w"], plan={"w": plan})(over, array(9, 5, 6))


def test_additive_operators_offer_it():
    delta = lrk.Delta(array(1, 6, 4), array(2, 6, 4))
    for op in (matrix(), delta):
        assert isinstance(op.premerge(), Premerged)
        assert_close(op.premerge().m, op.dense())


def test_lift_takes_the_plan_by_path():
    params = {"one": matrix(), "two": matrix(2.0)}
    x = array(9, 5, 6)

    def model(p, x):
        return x @ p["one"] + x @ p["two"]

    run = lrk.lift(model, plan={"one": "premerged"})
    assert_close(run(params, x), lrk.lift(model)(params, x))
    calls = str(jax.make_jaxpr(run)(params, x)).count("custom_vjp_call")
    assert calls == 1
