"""`functional`, and the two small networks."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lowrank.models import MLP, LeNet5, functional


@pytest.fixture
def mlp():
    return MLP((3, 4, 2), rngs=nnx.Rngs(0))


def paths(tree):
    """The `/`-joined paths of a tree."""
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree.leaves_with_path(tree)
    ]


def count(model):
    return sum(leaf.size for leaf in jax.tree.leaves(functional(model)[1]))


def test_params_are_nested_dicts_of_plain_arrays(mlp):
    _, params = functional(mlp)
    assert paths(params) == [
        f"layers/{i}/{leaf}" for i in (0, 1) for leaf in ("bias", "kernel")
    ]
    assert all(type(leaf) is type(jnp.ones(1)) for leaf in jax.tree.leaves(params))
    assert params["layers"]["1"]["kernel"] is mlp.layers[1].kernel.get_value()


def test_apply_uses_the_given_parameters_and_keeps_the_model(mlp):
    apply, params = functional(mlp)
    x = jnp.ones((5, 3))
    before = mlp(x)
    np.testing.assert_array_equal(apply(params, x), before)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, params)
    # Biases are 0 and relu is positively homogeneous: two layers give 4.
    np.testing.assert_allclose(apply(doubled, x), 4 * before, rtol=1e-6)
    np.testing.assert_array_equal(mlp(x), before)


def test_the_mlp_is_its_equation(mlp):
    apply, params = functional(mlp)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    x = jax.random.normal(jax.random.key(1), (5, 3))
    first, last = params["layers"]["0"], params["layers"]["1"]
    hidden = np.maximum(np.asarray(x) @ first["kernel"] + first["bias"][None], 0)
    expected = hidden @ last["kernel"] + last["bias"][None]
    np.testing.assert_allclose(apply(params, x), expected, rtol=1e-5, atol=1e-6)


def test_jit_grad_and_make_jaxpr(mlp):
    apply, params = functional(mlp)
    x = jnp.ones((5, 3))
    np.testing.assert_allclose(jax.jit(apply)(params, x), apply(params, x), rtol=1e-6)
    grads = jax.jit(jax.grad(lambda p: apply(p, x).sum()))(params)
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, params)
    np.testing.assert_array_equal(grads["layers"]["1"]["bias"], [5.0, 5.0])
    abstract = jax.eval_shape(lambda: params)
    jaxpr = jax.make_jaxpr(apply)(abstract, x)
    assert not jaxpr.consts
    assert [out.shape for out in jaxpr.out_avals] == [(5, 2)]


def test_vmap_over_stacked_parameters_is_a_loop(mlp):
    apply, params = functional(mlp)
    x = jax.random.normal(jax.random.key(1), (5, 3))
    trees = [jax.tree.map(lambda leaf, s=s: s * (leaf + 1), params) for s in (1, 2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    out = jax.vmap(apply, in_axes=(0, None))(stacked, x)
    np.testing.assert_allclose(out[0], apply(trees[0], x), rtol=1e-6)
    np.testing.assert_allclose(out[1], apply(trees[1], x), rtol=1e-6)


def test_a_leaf_that_is_another_pytree_node_reaches_the_model_unopened(mlp):
    @jax.tree_util.register_pytree_node_class
    class Scaled:
        def __init__(self, w):
            self.w = w

        def tree_flatten(self):
            return (self.w,), None

        @classmethod
        def tree_unflatten(cls, _, children):
            return cls(*children)

    def first_kernel(model):
        return model.layers[0].kernel.get_value().w

    apply, params = functional(mlp, first_kernel)
    params["layers"]["0"]["kernel"] = Scaled(params["layers"]["0"]["kernel"])
    params = jax.tree.map(lambda leaf: leaf + 1, params)
    out = jax.jit(apply)(params)
    np.testing.assert_array_equal(out, params["layers"]["0"]["kernel"].w)


def test_method_runs_any_function_of_the_model(mlp):
    apply, params = functional(mlp, lambda model, x, *, scale: scale * model(x))
    x = jnp.ones((1, 3))
    np.testing.assert_array_equal(apply(params, x, scale=3), 3 * mlp(x))


def test_wrong_trees_are_refused_with_every_path(mlp):
    apply, params = functional(mlp)
    layers = params["layers"]
    wrong = {"layers": {"1": layers["1"], "2": {"kernel": jnp.ones(1)}}}
    with pytest.raises(
        ValueError,
        match=r"apply: parameters do not fit.*missing 'layers/0/bias', "
        r"'layers/0/kernel'; unexpected 'layers/2/kernel'\. Pass a tree",
    ):
        apply(wrong, jnp.ones((1, 3)))


def test_what_is_no_pure_module_is_refused():
    with pytest.raises(TypeError, match=r"functional: cannot split a dict.*nnx.Module"):
        functional({"w": jnp.ones(1)})
    norm = nnx.BatchNorm(2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"no nnx.Param at 'mean', 'var'"):
        functional(norm)


def test_counts_of_the_papers_networks():
    assert count(MLP((784, 200, 200, 10), rngs=nnx.Rngs(0))) == 199_210
    assert count(LeNet5(rngs=nnx.Rngs(0))) == 44_426
    assert count(LeNet5(classes=3, rngs=nnx.Rngs(0))) == 44_426 - 7 * 85


def test_mlp_takes_an_activation_and_dtypes():
    kwargs = {"activation": jnp.sin, "param_dtype": jnp.float16, "rngs": nnx.Rngs(0)}
    model = MLP((3, 4, 2), dtype=jnp.bfloat16, **kwargs)
    assert model(jnp.ones((1, 3))).dtype == jnp.bfloat16
    assert model.layers[0].kernel.dtype == jnp.float16
    same = MLP((3, 4, 2), activation=jax.nn.relu, rngs=nnx.Rngs(0))
    odd = MLP((3, 4, 2), activation=jnp.sin, rngs=nnx.Rngs(0))
    assert not np.allclose(odd(jnp.ones((1, 3))), same(jnp.ones((1, 3))))


def test_lenet_is_its_equation():
    apply, params = functional(LeNet5(rngs=nnx.Rngs(0)))
    images = jax.random.normal(jax.random.key(1), (2, 28, 28, 1))
    w = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def conv_pool(x, kernel, bias):
        side = x.shape[1] - 4
        out = np.zeros((len(x), side, side, kernel.shape[-1])) + bias
        for i, j in itertools.product(range(5), repeat=2):
            out += x[:, i : i + side, j : j + side] @ kernel[i, j]
        blocks = np.maximum(out, 0).reshape(len(x), side // 2, 2, side // 2, 2, -1)
        return blocks.max((2, 4))

    x = np.asarray(images, np.float64)
    for name in ("conv1", "conv2"):
        x = conv_pool(x, **w[name])
    x = x.reshape(2, -1)
    for name in ("fc1", "fc2", "fc3"):
        x = np.maximum(x, 0) @ w[name]["kernel"] + w[name]["bias"]
    out = jax.jit(apply)(params, images)
    np.testing.assert_allclose(out, x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes", [(3,), (3, 0), ()])
def test_mlp_refuses_wrong_sizes(sizes):
    with pytest.raises(ValueError, match=r"MLP: wrong sizes: expected two or more"):
        MLP(sizes, rngs=nnx.Rngs(0))


def test_lenet_refuses_wrong_classes_and_images():
    with pytest.raises(ValueError, match=r"LeNet5: wrong classes.*got 0"):
        LeNet5(classes=0, rngs=nnx.Rngs(0))
    model = LeNet5(rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"expected shape \(batch, 28, 28, 1\), got"):
        model(jnp.ones((2, 28, 28)))
