"""`Crossbar`: which products it makes, in which layouts, and where noise is fresh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec

import lowrank as lrk
from lowrank._axes import Axes
from lowrank.operators import Contraction, Convolution, Crossbar
from tests.network import numbers
from tests.reference import crossbar as reference
from tests.tolerances import assert_close

KEY = jax.random.key(4)
UNIT = 90.0
PRODUCT = Contraction((((1,), (0,)), ((), ())), False)
NOISE = {"read": 4.0}


def array(seed, *shape):
    return jnp.asarray(numbers(seed, *shape))


def cells(*shape):
    return 55 + 45 * array(1, *shape)


def matrix(effects=None, key=KEY, tile=None, **layout):
    tiles = 1 if tile is None else -(-6 // tile)
    scale = 1.5 + array(2, tiles, 4)
    return Crossbar(cells(2, 6, 4), scale, UNIT, effects, key, tile=tile, **layout)


def stacked(effects=None, same=False):
    """Three layers; with `same` they differ in their draws alone."""
    pair, scale = cells(3, 2, 6, 4), 1.5 + array(2, 3, 1, 4)
    if same:
        pair, scale = (jnp.broadcast_to(v[:1], v.shape) for v in (pair, scale))
    return Crossbar(pair, scale, UNIT, effects, KEY)


def heads(effects=None):
    """`[d, D, H]`: columns `H, d`, rows `D`."""
    axes = Axes((), (1,), (2, 0))
    return matrix(effects, shape=(2, 6, 2), axes=axes)


LAYOUTS = {
    "matrix": matrix,
    "tiles": lambda: matrix(tile=4),
    "flipped": lambda: matrix(shape=(4, 6), axes=Axes((), (1,), (0,))),
    "stacked": stacked,
    "heads": heads,
    "two inputs": lambda: matrix(shape=(3, 4, 2), axes=Axes((), (2, 0), (1,))),
}


@pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS)
def op(request):
    return request.param()


def differ(rows):
    rows = np.asarray(rows)
    return all(
        np.abs(rows[i] - rows[j]).min() > 0 for i in range(len(rows)) for j in range(i)
    )


def test_it_declares_what_it_is():
    kinds = {
        (): (False, False, True),
        ("wire",): (False, False, True),
        ("dac_bits",): (False, False, False),
        ("adc_bits",): (False, False, False),
        ("adc_noise",): (False, True, False),
        ("read",): (False, True, False),
    }
    for names, want in kinds.items():
        op = matrix(dict.fromkeys(names, 4.0))
        assert (op.has_dense, op.stochastic, op.exact_grad) == want
        assert op.settle() is op
        assert op.trained
    assert op.gather(jnp.array([[0]]), None) is NotImplemented
    assert op.describe_axes() == "rows[0] cols[1]"


def test_it_is_one_node_of_a_tree():
    op = matrix(NOISE, tile=4)
    leaves, treedef = jax.tree.flatten(op)
    assert len(leaves) == 5
    again = jax.tree.unflatten(treedef, leaves)
    assert (again.tile, again.shape, again.dtype) == (4, (6, 4), jnp.float32)
    assert treedef == jax.tree.structure(matrix(NOISE, tile=4))
    assert treedef != jax.tree.structure(matrix(tile=4))


def test_the_programmed_weight_is_in_the_layout_of_the_weight():
    pair, scale = (np.asarray(v, np.float64) for v in (cells(2, 6, 4), matrix().scale))
    want = scale * (pair[0] - pair[1]) / UNIT
    three = want.reshape(2, 3, 4).transpose(1, 2, 0)
    made = {"matrix": want, "flipped": want.T, "two inputs": three}
    made["heads"] = want.reshape(6, 2, 2).transpose(2, 0, 1)
    for name, weight in made.items():
        got = LAYOUTS[name]().programmed_weight()
        assert_close(got, np.ascontiguousarray(weight, np.float32))
    assert matrix(dtype=jnp.bfloat16).programmed_weight().dtype == jnp.bfloat16


# Products.


def contraction(op, weight_first):
    """A spec that sums the inputs, with stacks as batch; and an activation for it."""
    stack, inputs, _ = op.axes
    sizes = op.axes.sizes(op.shape)
    x = array(9, *sizes.inputs, 5, *sizes.stack)
    xs, depth = tuple(range(len(inputs))), len(inputs) + 1
    xb = tuple(range(depth, depth + len(stack)))
    pairs = (xs, inputs), (xb, stack)
    if weight_first:
        pairs = tuple((w, x) for x, w in pairs)
    return Contraction(pairs, weight_first), x


@pytest.mark.parametrize("weight_first", [False, True])
def test_without_effects_it_multiplies_as_its_weight(op, weight_first):
    spec, x = contraction(op, weight_first)
    assert_close(op.contract(x, spec), spec(x, op.programmed_weight()))


def test_members_that_see_the_same_vectors():
    op, x = stacked(), array(9, 5, 6)
    spec = Contraction((((1,), (1,)), ((), ())), False)
    assert_close(op.contract(x, spec), spec(x, op.programmed_weight()))


def test_the_result_has_the_dtype_of_the_product():
    x = array(9, 5, 6).astype(jnp.bfloat16)
    wide = Contraction((((1,), (0,)), ((), ())), False, None, jnp.float32)
    op = matrix().cast(jnp.bfloat16)
    assert op.contract(x, PRODUCT).dtype == jnp.bfloat16
    assert op.contract(x, wide).dtype == jnp.float32


def test_converters_are_those_of_the_reference():
    op = matrix({"dac_bits": 5, "adc_bits": 6, "adc_limit": 1.5}, tile=4)
    x = array(9, 2, 5, 6)
    args = x.reshape(10, 6), op.pair, op.scale, UNIT
    want = reference.mvm(*args, tile=4, dac=(5, None), adc=(6, 1.5))
    got = lrk.lift(lambda w, x: x @ w)(op, x)
    assert_close(got, np.asarray(want, np.float32).reshape(2, 5, 4))


def test_products_over_other_axes_are_declined():
    backwards = Contraction((((1,), (1,)), ((), ())), False)
    assert matrix().contract(array(9, 5, 4), backwards) is NotImplemented
    some = Contraction((((1,), (0,)), ((), ())), False)
    two = LAYOUTS["two inputs"]()
    assert two.contract(array(9, 5, 3), some) is NotImplemented
    batched = Contraction((((), ()), ((1,), (0,))), False)
    assert matrix().contract(array(9, 5, 6), batched) is NotImplemented


def test_lift_refuses_a_tied_embedding_by_name():
    def tied(p, x):
        return (x @ p["table"]) @ p["table"].T

    with pytest.raises(lrk.LiftError, match=r"'table' \(Crossbar\) at dot_general"):
        lrk.lift(tied)({"table": matrix()}, array(9, 5, 6))


# Convolutions.


FILTER = Axes((), (0, 1, 2), (3,))


def kernel(effects=None, tile=None, columns=True, axes=FILTER):
    """`[kh, kw, in, out]` of sizes 3, 2, 2, 4."""
    tiles = 1 if tile is None else -(-12 // tile)
    scale = 1.5 + array(2, tiles, 4 if columns else 1)
    layout = {"tile": tile, "shape": (3, 2, 2, 4), "axes": axes}
    return Crossbar(cells(2, 12, 4), scale, UNIT, effects, KEY, **layout)


def convolution(**changes):
    values = {
        "window_strides": (2, 2),
        "padding": ((1, 0), (0, 0)),
        "lhs_dilation": (1, 1),
        "rhs_dilation": (1, 1),
        "dimension_numbers": lax.conv_dimension_numbers(
            (1, 5, 6, 2), (3, 2, 2, 4), ("NHWC", "HWIO", "NHWC")
        ),
    }
    return Convolution(**values | changes)


# A limit that clips nothing makes it multiply patches, and round nothing.
WIDE = {"adc_limit": 1e3}


@pytest.mark.parametrize("effects", [None, WIDE])
@pytest.mark.parametrize("inputs", [(0, 1, 2), (2, 0, 1)])
def test_an_ideal_convolution_is_that_of_its_weight(effects, inputs):
    op, x = kernel(effects, 5, axes=Axes((), inputs, (3,))), array(9, 2, 5, 6, 2)
    for spec in (convolution(), convolution(rhs_dilation=(1, 2), lhs_dilation=(2, 1))):
        assert_close(op.conv(x, spec), spec(x, op.programmed_weight()))


def test_kernels_of_other_layouts():
    """`[out, kw, in, kh]` on features first, transposed from the usual kernel."""
    op = kernel(WIDE).transpose((3, 1, 2, 0))
    numbers = lax.ConvDimensionNumbers((1, 0, 3, 2), (0, 2, 3, 1), (2, 1, 0, 3))
    spec = convolution(dimension_numbers=numbers)
    x = array(9, 2, 3, 6, 5)
    assert_close(op.conv(x, spec), spec(x, op.programmed_weight()))


@pytest.mark.parametrize("tile", [None, 5])
def test_patches_are_converted_as_vectors(tile):
    op, x = kernel({"dac_bits": 6, "adc_bits": 7}, tile), array(9, 2, 5, 6, 2)
    rows = reference.patches(x, (3, 2), 2, (1, 0))
    got = op.conv(x, convolution(padding=((1, 0), (1, 0))))
    args = rows.reshape(-1, 12), op.pair, op.scale, UNIT
    want = reference.mvm(*args, tile=tile, dac=(6, None), adc=(7, None))
    assert_close(got, np.asarray(want.reshape(got.shape), np.float32))


@pytest.mark.parametrize("columns", [True, False])
def test_noise_of_a_convolution_is_that_of_its_patches(columns):
    """With features last both ways draw the same numbers."""
    x, spec = array(9, 2, 5, 6, 2), convolution()
    direct = kernel(NOISE, columns=columns)
    by_patch = kernel(NOISE | WIDE, columns=columns)
    assert_close(direct.conv(x, spec), by_patch.conv(x, spec))
    quiet = spec(x, direct.programmed_weight())
    assert np.abs(np.asarray(direct.conv(x, spec) - quiet)).min() > 0


def test_grouped_and_foreign_convolutions_are_declined():
    x = array(9, 2, 5, 6, 2)
    assert kernel().conv(x, convolution(feature_group_count=2)) is NotImplemented
    assert kernel().conv(x, convolution(batch_group_count=2)) is NotImplemented
    axes = Axes((), (0, 1, 3), (2,))
    swapped = kernel().replace(pair=cells(2, 24, 2), scale=jnp.ones((1, 2)), axes=axes)
    assert swapped.mismatch() is None
    assert swapped.conv(x, convolution()) is NotImplemented


# Structure.


def test_transposes_and_reshapes_keep_the_weight(op):
    weight = op.programmed_weight()
    turned = tuple(reversed(range(op.ndim)))
    assert_close(op.transpose(turned).programmed_weight(), weight.transpose(turned))
    shape = [m for n in op.shape for m in ((n // 2, 2) if n % 2 == 0 else (1, n))]
    apart = op.reshape(tuple(shape))
    assert apart.mismatch() is None
    assert_close(apart.programmed_weight(), weight.reshape(shape))
    assert_close(apart.reshape(op.shape).programmed_weight(), weight)


def test_axes_of_two_kinds_do_not_merge():
    assert matrix().reshape((24,)) is NotImplemented
    assert heads().reshape((12, 2)) is NotImplemented
    turned = LAYOUTS["two inputs"]().transpose((0, 2, 1))  # rows are axis 1, then 0
    assert turned.reshape((6, 4)) is NotImplemented
    assert turned.transpose((1, 0, 2)).reshape((6, 4)).axes == Axes((), (0,), (1,))


def test_axes_of_size_one_take_the_role_of_the_product():
    op, x = matrix().reshape((1, 6, 1, 4)), array(9, 1, 5, 6)
    spec = Contraction((((2,), (1,)), ((0,), (0,))), False)
    assert_close(op.contract(x, spec), spec(x, op.programmed_weight()))


def test_stacks_are_cut_and_rows_are_not():
    op = stacked()
    weight, turned = op.programmed_weight(), op.transpose((1, 0, 2))
    cut = op.slice((1, 0, 0), (3, 6, 4), None)
    assert_close(cut.programmed_weight(), weight[1:])
    strided = turned.slice((0, 0, 0), (6, 3, 4), (1, 2, 1))
    assert_close(strided.programmed_weight(), weight.transpose(1, 0, 2)[:, ::2])
    one = turned.dynamic_slice([0, jnp.int32(2), 0], (6, 1, 4))
    assert_close(one.programmed_weight(), weight.transpose(1, 0, 2)[:, 2:])
    assert op.slice((0, 1, 0), (3, 6, 4), None) is NotImplemented
    assert op.dynamic_slice([0, 0, 0], (3, 6, 2)) is NotImplemented
    assert matrix().unstack() is NotImplemented


def test_layers_of_a_scan():
    op, x = stacked({"adc_bits": 6}), array(9, 5, 6)

    def model(p, x):
        def layer(h, w):
            return jnp.tanh(h @ w)[:, :1] + x, h @ w

        return lax.scan(layer, x, p)[1]

    got, h = lrk.lift(model)(op, x), x
    for i, out in enumerate(got):
        one = op.slice((i, 0, 0), (i + 1, 6, 4), None).reshape((6, 4))
        assert_close(out, one.contract(h, PRODUCT))
        h = jnp.tanh(out)[:, :1] + x


def test_what_is_around_an_array_is_digital():
    op, x, d = matrix({"adc_bits": 6}), array(9, 5, 6), array(8, 6, 4)
    y = op.contract(x, PRODUCT)
    assert_close(op.scaled(-2.0).contract(x, PRODUCT), -2.0 * y)
    assert_close(lrk.lift(lambda w: x @ (w + d))(op), y + x @ d)
    low = lrk.LowRank(op, array(5, 6, 2), array(6, 2, 4), 0.5)
    assert_close(lrk.lift(jnp.matmul)(x, low), y + 0.5 * (x @ low.a) @ low.b)
    grads = jax.grad(lambda a: lrk.lift(jnp.matmul)(x, low.replace(a=a)).sum())(low.a)
    assert_close(grads, 0.5 * x.T @ jnp.broadcast_to(low.b.sum(1), (5, 2)))


def test_it_has_no_dense_form():
    with pytest.raises(ValueError, match=r"no dense form at 'w' \(Crossbar\)"):
        lrk.materialize({"w": matrix()})


def test_it_is_whole_on_every_device():
    parts = matrix(NOISE).partition(PartitionSpec())
    assert jax.tree.leaves(parts) == [PartitionSpec()] * 5
    assert matrix().partition(PartitionSpec("data")) is NotImplemented
    mesh = jax.make_mesh((2,), ("data",))
    whole = jax.sharding.NamedSharding(mesh, PartitionSpec())
    split = jax.sharding.NamedSharding(mesh, PartitionSpec("data"))
    assert matrix().constrain(split) is NotImplemented
    placed = jax.jit(lambda op: op.constrain(whole))(matrix(NOISE))
    assert_close(placed.pair, matrix().pair)


# Noise is fresh wherever a product is.


def test_products_of_one_weight_draw_apart():
    x = array(9, 5, 6)
    one, two = lrk.lift(lambda w, x: (x @ w, x @ w))(matrix(NOISE), x)
    assert differ([one, two])
    again = lrk.lift(lambda w, x: (x @ w, x @ w))(matrix(NOISE), x)
    assert_close(again, (one, two))


def test_steps_of_a_scan_draw_apart():
    def model(w, x):
        return lax.scan(lambda c, _: (c, x @ w), 0, length=3)[1]

    assert differ(lrk.lift(model)(matrix(NOISE), array(9, 5, 6)))


def test_layers_of_a_stack_draw_apart():
    op, x = stacked(NOISE, same=True), array(9, 5, 6)
    parts, rebuild = op.unstack()
    run = lax.scan(lambda c, p: (c, rebuild(p).contract(x, PRODUCT)), 0, parts)[1]
    cut = [op.slice((i, 0, 0), (i + 1, 6, 4), None).reshape((6, 4)) for i in range(3)]
    spec = Contraction((((1,), (1,)), ((), ())), False)
    members = jnp.moveaxis(op.contract(x, spec), 1, 0)
    for rows in (run, [one.contract(x, PRODUCT) for one in cut], members):
        assert differ(rows)


def test_chips_of_a_vmap_draw_apart():
    keys, x = jax.random.split(KEY, 3), array(9, 5, 6)
    got = jax.vmap(lambda key: lrk.lift(jnp.matmul)(x, matrix(NOISE, key)))(keys)
    assert differ(got)
    assert_close(got[1], lrk.lift(jnp.matmul)(x, matrix(NOISE, keys[1])))


def test_devices_with_vectors_of_their_own_draw_apart():
    mesh = jax.sharding.Mesh(jax.devices(), ("data",))
    here, split = PartitionSpec(), PartitionSpec("data")
    run = jax.shard_map(
        lrk.lift(jnp.matmul), mesh=mesh, in_specs=(split, here), out_specs=split
    )
    x = jnp.concatenate([array(9, 5, 6)] * 2)
    got = run(x, matrix(NOISE))
    assert differ([got[:5], got[5:]])


def test_dtypes_are_cast_and_not_promoted():
    x = array(9, 5, 6).astype(jnp.bfloat16)
    op = matrix(NOISE | {"dac_bits": 6, "adc_bits": 6, "wire": 1.0}, tile=4)
    with jax.numpy_dtype_promotion("strict"):
        y = op.cast(jnp.bfloat16).scaled(2.0).contract(x, PRODUCT)
        weight = op.programmed_weight()
    assert (y.dtype, weight.dtype) == (jnp.bfloat16, jnp.float32)


def test_what_is_computed_again_draws_the_same():
    x = array(9, 5, 6)

    def layer(w, x):
        return jnp.tanh(x @ w)

    run = lrk.lift(jax.checkpoint(layer))
    out, pull = jax.vjp(lambda x: run(matrix(NOISE), x), x)
    want = (1 - out**2) @ matrix().programmed_weight().T
    assert_close(pull(jnp.ones((5, 4)))[0], want)


def test_compiled_and_eager_agree():
    op, x = matrix(NOISE | {"dac_bits": 8}, tile=4), array(9, 5, 6)
    run = lrk.lift(lambda w, x: jnp.tanh(x @ w) @ jnp.ones((4, 1)))
    assert_close(jax.jit(run)(op, x), run(op, x))


# Refusals.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pair": cells(2, 5, 4)}, r"conductances \(2, 5, 4\).*expected \(2, 6, 4\)"),
        ({"pair": cells(6, 4)}, r"conductances \(6, 4\)"),
        ({"scale": jnp.ones((2, 4))}, r".*scale \(2, 4\).*\(1, 4\) or \(1, 1\)"),
        ({"tile": 4}, r".*in tiles of 4.*\(2, 4\) or \(2, 1\)"),
        ({"tile": 7}, "tile must be from 1 to the 6 rows, got 7"),
        ({"tile": 0}, "tile must be from 1 to the 6 rows, got 0"),
        ({"axes": Axes((), (0,), (0,))}, r"axes .* are not those of a weight"),
        ({"numbers": {"adc": 3}}, r"unknown numbers \['adc'\]. Use \('dac_bits'"),
        ({"numbers": NOISE}, "read or ADC noise needs key="),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, words):
    values = {"pair": cells(2, 6, 4), "scale": jnp.ones((1, 4)), "unit": UNIT}
    values |= {"shape": (6, 4), "numbers": None} | changes
    with pytest.raises(ValueError, match=f"Crossbar: {words}"):
        Crossbar(**values)


def test_stacked_chips_are_refused_whole():
    op = matrix()
    many = op.replace(pair=jnp.stack([op.pair] * 3), scale=jnp.stack([op.scale] * 3))
    with pytest.raises(lrk.LiftError, match="'1': conductances"):
        lrk.lift(jnp.matmul)(array(9, 5, 6), many)
