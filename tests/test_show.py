"""Tables of states, operators and trees, as text and as HTML."""

import jax
import jax.numpy as jnp
import pytest

import lowrank as lrk
from lowrank import _show

PARAMS = {"w": jnp.ones((6, 4)), "bias": jnp.ones(4, jnp.bfloat16)}
OP = lrk.LowRank(PARAMS["w"], jnp.ones((6, 2)), jnp.ones((2, 4)))


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (3 * 2**20, "3.0 MiB"),
        (2**45, "32.0 TiB"),
        (2**52, "4096.0 TiB"),
    ],
)
def test_bytes_are_told_in_binary_units(count, text):
    assert _show.bytes_text(count) == text


def test_arrays_are_told_by_dtype_and_shape():
    assert _show.array_text(jnp.ones((2, 3), jnp.bfloat16)) == "bfloat16[2,3]"
    assert _show.array_text(jax.ShapeDtypeStruct((), jnp.int32)) == "int32[]"
    assert _show.array_text(3) == "int"


def test_an_operator_is_one_line_without_numbers():
    nested = lrk.Delta(OP, jnp.ones((6, 4)))
    inner = "LowRank(w=float32[6,4], a=float32[6,2], b=float32[2,4], scale=float32[])"
    assert repr(nested) == f"Delta(w={inner}, d=float32[6,4])"
    assert "a=None" in repr(OP.replace(a=None))


def test_a_state_is_one_line_for_each_leaf_with_totals():
    tx = lrk.chain(lrk.lora(2), lrk.full(select=lrk.matching("bias")))
    lines = repr(tx.init(jax.random.key(0), PARAMS)).splitlines()
    assert lines[0] == "State"
    assert lines[1].split() == ["path", "leaf", "role", "count", "size"]
    assert lines[2].split() == ["0/w/a", "float32[6,2]", "trainable", "12", "48", "B"]
    assert lines[5].split() == ["0/w/scale", "float32[]", "fixed", "1", "4", "B"]
    assert lines[6].strip() == "4 leaves: trainable 24 (96 B), fixed 1 (4 B)"
    assert lines[1].index("leaf") == lines[2].index("float32")


def test_an_empty_state_says_so():
    assert repr(lrk.State({}, {})).endswith("0 leaves: empty")


def test_the_state_of_shapes_prints_too():
    shapes = jax.eval_shape(lrk.lora(2).init, jax.random.key(0), PARAMS)
    assert "w/a" in repr(shapes)
    assert "48 B" in repr(shapes)


def test_a_tree_counts_an_operator_as_one_leaf():
    rows = _show.tree_rows({"w": OP, "bias": PARAMS["bias"]})
    assert [(r.path, r.role, r.count, r.nbytes) for r in rows] == [
        ("bias", "array", 4, 8),
        ("w", "operator", 24 + 12 + 8 + 1, 4 * 45),
    ]


def test_random_keys_count_their_data():
    row = _show.tree_rows({"key": jax.random.key(0)})[0]
    assert (row.count, row.nbytes) == (1, 8)


def test_html_is_escaped():
    text = _show.grid_html("<t>", ["a"], [["<b>"]], "1 & 2")
    assert "<b>" not in text
    assert "&lt;b&gt;" in text
    assert "&lt;t&gt;" in text
    assert "1 &amp; 2" in text


def test_notebooks_get_a_table():
    state = lrk.lora(2).init(jax.random.key(0), PARAMS)
    assert state._repr_html_().count("<tr>") == 1 + 3
    assert "float32[6,2]" in OP._repr_html_()
