"""Every model pattern runs lifted: same values and gradients, fewer FLOPs."""

import functools

import jax
import numpy as np
import pytest

import lowrank as lrk
from tests.lifting.harness import (
    QUICK,
    Instance,
    Result,
    by_hand,
    compile_and_run,
    instance,
    lifted,
    materialised,
    value_and_grad,
)
from tests.lifting.patterns.pattern import (
    Pattern,
    dense_delta,
    low_rank,
    normal,
    random_factors,
)
from tests.lifting.patterns.table import PATTERNS
from tests.tolerances import assert_close

BY_NAME = {p.name: p for p in PATTERNS}


def _named(*patterns: Pattern) -> list:
    return [pytest.param(p.name, id=p.name) for p in patterns]


@functools.cache
def _instance(name: str) -> Instance:
    return instance(BY_NAME[name])


@functools.cache
def _lifted(name: str) -> Result:
    return compile_and_run(lifted, _instance(name))


@functools.cache
def _dense(name: str) -> Result:
    return compile_and_run(materialised, _instance(name))


def test_names_of_patterns_are_unique():
    assert len(BY_NAME) == len(PATTERNS)


@pytest.mark.parametrize("name", _named(*PATTERNS))
def test_pattern(name):
    pattern, ours, dense = BY_NAME[name], _lifted(name), _dense(name)
    assert_close(ours.out, dense.out, pattern.dtype)
    assert_close(ours.derivatives, dense.derivatives, pattern.dtype)
    zeros = [not np.any(leaf) for leaf in jax.tree.leaves(dense.derivatives)]
    assert not any(zeros), "a gradient of zero shows nothing"
    if pattern.bound is not None:
        ratio = ours.flops / dense.flops
        assert ratio < pattern.bound, f"{ratio:.3f} of the materialised FLOPs"


@pytest.mark.parametrize("name", _named(*(p for p in PATTERNS if p.hand)))
def test_as_cheap_as_by_hand(name):
    hand, ours = compile_and_run(by_hand, _instance(name)), _lifted(name)
    assert_close(hand.out, _dense(name).out)
    assert_close(hand.derivatives, _dense(name).derivatives)
    assert ours.flops < 1.02 * hand.flops, f"{ours.flops / hand.flops:.3f} of by hand"


@pytest.mark.parametrize("name", _named(*(p for p in PATTERNS if p.batched)))
def test_vmap_over_adapters(name):
    inst = _instance(name)
    params, _ = inst.model(inst.arrays)
    adapters = []
    for seed, scale in ((7, 1.0), (70, 0.5), (700, -1.5)):
        factors = random_factors(seed, params, inst.pattern.adapt)
        adapters.append(
            {
                n: f._replace(scale=f.scale * np.float32(scale))
                for n, f in factors.items()
            }
        )
    many = jax.tree.map(lambda *rows: np.stack(rows), *adapters)
    mapped = jax.jit(jax.vmap(value_and_grad(lifted, inst), in_axes=(0, None)))
    got = mapped.lower(many, inst.arrays).compile(QUICK)(many, inst.arrays)
    for i, factors in enumerate(adapters):
        one = jax.tree.map(lambda v, i=i: v[i], got)
        want = _dense(name).run(factors, inst.arrays)
        assert_close(one, want, BY_NAME[name].dtype)


@pytest.mark.parametrize("name", _named(*(p for p in PATTERNS if p.returns_operator)))
def test_a_returned_operator_stays_one(name):
    inst = _instance(name)
    out = jax.eval_shape(lambda f, x: lifted(inst, f, x), inst.factors, inst.arrays)
    is_operator = lambda leaf: isinstance(leaf, lrk.Operator)  # noqa: E731
    found = [x for x in jax.tree.leaves(out, is_leaf=is_operator) if is_operator(x)]
    assert len(found) == len(inst.factors)


def test_materialize_is_the_sum_in_every_layout():
    layouts = sorted({axes for p in PATTERNS for axes in p.adapt.values()})
    for axes in layouts:
        w = normal(0, *range(2, 2 + len({*axes.a, *axes.b})))
        f = random_factors(1, {"w": w}, {"w": axes})["w"]
        got, want = jax.jit(
            lambda w, f, axes=axes: (
                lrk.materialize({"w": low_rank(w, f, axes)})["w"],
                w + dense_delta(f, axes),
            )
        )(w, f)
        assert_close(got, want)
