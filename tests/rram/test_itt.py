"""The recipe of ITT-RNA, end to end on small nets."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lowrank as lrk
from lowrank import rram
from tests.untyped import untyped

INPUTS, HIDDEN, CLASSES = 16, 16, 4
KERNELS = ("first/kernel", "second/kernel")
STAGES = (lrk.matching("^first"), lrk.matching("^second"))
FAULTY = rram.Device(p_lrs=0.1, p_hrs=0.1)
ADAM = optax.adam(1e-2)


def apply(params, x):
    h = jax.nn.relu(x @ params["first"]["kernel"] + params["first"]["bias"][None])
    return h @ params["second"]["kernel"] + params["second"]["bias"][None]


def loss(params, batch):
    x, labels = batch
    logits = apply(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def blobs(seed, *shape):
    """Examples of four classes about fixed centres, and their classes."""
    centres = jax.random.normal(jax.random.key(99), (CLASSES, INPUTS))
    labels = jax.random.randint(jax.random.key(seed), shape, 0, CLASSES)
    noise = jax.random.normal(jax.random.key(seed + 1000), (*shape, INPUTS))
    return centres[labels] + 0.9 * noise, labels


TEST = blobs(7, 1000)


@jax.jit
def accuracy(params):
    return 100 * (apply(params, TEST[0]).argmax(-1) == TEST[1]).mean()


@pytest.fixture(scope="module")
def clean():
    """A net that is trained on ideal hardware."""
    first, second = jax.random.split(jax.random.key(0))
    start = {
        "first": {
            "kernel": 0.3 * jax.random.normal(first, (INPUTS, HIDDEN)),
            "bias": jnp.zeros(HIDDEN),
        },
        "second": {
            "kernel": 0.3 * jax.random.normal(second, (HIDDEN, CLASSES)),
            "bias": jnp.zeros(CLASSES),
        },
    }
    train = jax.jit(lambda p, b: rram.retrain(loss, p, lambda p: p, b, ADAM))
    return train(start, blobs(1, 300, 64)).params


def test_a_net_recovers_from_a_fifth_of_stuck_cells(clean):
    """10 % stuck at low and 10 % at high resistance, in one compiled call."""
    tx = rram.crossbar(FAULTY)
    batches = blobs(3, 200, 64)
    importance = rram.loss_importance(loss, clean, batches)

    def one(key, clean, importance, batches):
        chip = tx.init(key, clean)
        out = rram.itt_train(
            loss, clean, tx, chip, batches, ADAM, importance=importance,
            per_step=1, penalty=1e-3, stages=STAGES,
        )  # fmt: skip
        return accuracy(tx.apply(clean, chip)), accuracy(tx.apply(out.params, chip))

    many = lrk.map_tasks(one, method="map", in_axes=(0, None, None, None))
    before, after = jax.jit(many)(
        jax.random.split(jax.random.key(5), 4), clean, importance, batches
    )
    ideal = float(accuracy(clean))
    assert ideal > 97
    assert float(before.mean()) < ideal - 10
    assert float(after.min()) > ideal - 2


@pytest.fixture(scope="module")
def healed(clean):
    """All parts at once: spare rows, flips, freezing, penalty, stages, the device."""
    return rram.itt(
        loss, clean, FAULTY, blobs(3, 204, 64), ADAM, jax.random.key(11),
        spare=2, per_step=1, penalty=1e-3, stages=STAGES, device_steps=4,
        device_optimizer=optax.sgd(0.1),
    )  # fmt: skip


def test_the_whole_recipe_recovers(clean, healed):
    deployed = healed.transform.apply(healed.params, healed.state)
    assert float(accuracy(deployed)) > float(accuracy(clean)) - 2
    unhealed = healed.transform.apply(clean, healed.state)
    assert float(accuracy(unhealed)) < float(accuracy(deployed))


def test_the_report_says_what_was_done(healed):
    report = healed.report
    assert report["seconds"] > 0
    assert set(report["cost"]) == set(KERNELS)
    assert all(after < before for before, after in report["cost"].values())
    for path, rows in ((KERNELS[0], INPUTS), (KERNELS[1], HIDDEN)):
        places = np.asarray(report["rows"][path])
        assert len(set(places.tolist())) == rows
        assert places.max() < rows + 2
        assert set(np.unique(np.asarray(report["signs"][path]))) <= {-1, 1}
    assert report["losses"].shape == (204,)
    assert report["writes"].shape == (4,)
    cells = 2 * (INPUTS * HIDDEN + HIDDEN * CLASSES)
    assert (report["writes"] > 0).all()
    assert (report["writes"] < 0.8 * cells).all()  # a fifth is stuck


def test_every_part_can_be_off(clean):
    """Nothing but the chip: the same as the jitted half alone."""
    told = {"assign": False, "flips": False, "compensate": False, "per_step": 0}
    batches, key = blobs(3, 3, 8), jax.random.key(2)
    tx = rram.crossbar(FAULTY)
    chip = tx.init(jax.random.key(4), clean)
    run = rram.itt(loss, clean, FAULTY, batches, ADAM, key, chip=chip, **told)
    alone = rram.retrain(loss, clean, lambda p: tx.apply(p, chip), batches, ADAM)
    np.testing.assert_allclose(run.report["losses"], alone.losses, rtol=1e-4)
    assert (run.report["rows"], run.report["signs"]) == (None, None)
    assert run.report["writes"].shape == (0,)
    assert list(run.state.fixed[0]) == list(KERNELS)


# --- wiring --------------------------------------------------------------------------

SMALL = {"w": jnp.asarray([[1.0, -2.0], [0.5, 1.0]])}
WIRED = rram.placed(
    rram.Device(read=0.01), {"w": [2, 0]}, {"w": [1, -1]}, spare=1
)  # fmt: skip


def small_state(device=FAULTY):
    tall = {"w": jnp.zeros((3, 2))}
    chip = rram.crossbar(device).init(jax.random.key(0), tall)
    more = {"read": jnp.float32(0.01)}
    return WIRED.state(SMALL, chip._replace(fixed={"w": chip.fixed["w"] | more}))


def test_both_transforms_of_a_wiring_take_one_state():
    state = small_state(rram.Device())
    off = WIRED.off_device.apply(SMALL, state)
    np.testing.assert_allclose(off["w"], SMALL["w"], atol=1e-5)
    noisy = WIRED.transform.apply(SMALL, state, key=jax.random.key(0))
    x = jnp.eye(2)
    out = lrk.lift(lambda p, x: x @ p["w"])(noisy, x)
    assert 0 < float(jnp.abs(out - SMALL["w"]).max()) < 0.2


def test_cells_of_a_wiring_are_those_of_the_weights():
    cells = WIRED.cells(SMALL, small_state(rram.Device(g_min=10.0, g_max=110.0)))["w"]
    # The second column is turned: its minus cells hold what is positive.
    np.testing.assert_allclose(cells[0], [[110.0, 110.0], [60.0, 10.0]], atol=1e-3)
    np.testing.assert_allclose(cells[1], [[10.0, 10.0], [10.0, 60.0]], atol=1e-3)


def test_importance_is_a_mean_over_batches_of_magnitudes():
    one = lambda p, x: jnp.sum(x @ p["w"])  # noqa: E731
    batches = jnp.asarray([[[1.0, 0.0]], [[-1.0, 0.0]], [[5.0, 5.0]]])
    found = rram.loss_importance(one, SMALL, batches, count=2)["w"]
    assert found.tolist() == [[1.0, 2.0], [0.0, 0.0]]
    with pytest.raises(ValueError, match=r"loss_importance: count must be at least 1"):
        rram.loss_importance(one, SMALL, batches, count=0)


def test_bad_input_is_refused_by_name(clean):
    tx, batches = rram.crossbar(FAULTY), blobs(3, 3, 8)
    chip = tx.init(jax.random.key(0), clean)
    for steps in (-1, 3):
        with pytest.raises(ValueError, match=r"itt_train: device_steps must be at lea"):
            rram.itt_train(loss, clean, tx, chip, batches, ADAM, device_steps=steps)
    with pytest.raises(ValueError, match=r"itt_train: steps on the device need cells"):
        rram.itt_train(loss, clean, tx, chip, batches, ADAM, device_steps=1)
    key = jax.random.key(0)
    with untyped(), pytest.raises(TypeError, match=r"itt: expected a Device, got dict"):
        rram.itt(loss, clean, {}, batches, ADAM, key)
    with untyped(), pytest.raises(TypeError, match=r"itt: expected one random key"):
        rram.itt(loss, clean, FAULTY, batches, ADAM, 0)
    with pytest.raises(TypeError, match=r"itt: called under jit"):
        jax.jit(lambda b: rram.itt(loss, clean, FAULTY, b, ADAM, key).params)(batches)
    with pytest.raises(ValueError, match=r"permute: spare must be at least 0"):
        rram.itt(loss, clean, FAULTY, batches, ADAM, key, spare=-1)


def test_chips_with_their_own_wiring_are_stacked():
    """The wiring is in the state: one transform serves all."""
    other = rram.placed(FAULTY, {"w": [1, 2]}, {"w": [-1, 1]}, spare=1)
    tall = {"w": jnp.zeros((3, 2))}
    chip = rram.crossbar(FAULTY).init(jax.random.key(1), tall)
    mine = rram.placed(FAULTY, {"w": [2, 0]}, {"w": [1, -1]}, spare=1)
    pairs = [(mine, mine.state(SMALL, chip)), (other, other.state(SMALL, chip))]
    alone = jnp.stack([own.transform.apply(SMALL, s)["w"] for own, s in pairs])
    states = lrk.stack([state for _, state in pairs])
    together = jax.vmap(lambda state: mine.transform.apply(SMALL, state)["w"])(states)
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert not np.allclose(alone[0], alone[1])
