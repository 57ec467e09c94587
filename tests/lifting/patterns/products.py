"""Products of a weight with an activation, in every layout that models use."""

import jax
import jax.numpy as jnp

from tests.lifting.patterns.pattern import (
    IN_OUT,
    OUT_IN,
    STACKED,
    Axes,
    Pattern,
    integers,
    normal,
    skinny,
)

D, F, HEADS, HEAD = 48, 64, 4, 12
HEADS_OUT = Axes((0,), (1, 2))
HEADS_IN = Axes((0, 1), (2,))


def _tokens(seed, d=D):
    return normal(seed, 4, 16, d, scale=1.0)


def _build(fn, *w_shape, std=D**-0.5, x=_tokens):
    """A model of one leaf `w` and one activation."""

    def build(seed):
        kw, kx = seed, seed + 1
        return fn, {"w": normal(kw, *w_shape, scale=std)}, (x(kx),)

    return build


def plain(params, x):
    return x @ params["w"]


def plain_hand(params, factors, x):
    return x @ params["w"] + skinny(x, factors["w"])


def transposed(params, x):
    return x @ params["w"].T


def transposed_hand(params, factors, x):
    return x @ params["w"].T + skinny(x, factors["w"])


def on_the_left(params, x):
    return params["w"] @ x


def on_the_left_hand(params, factors, x):
    return params["w"] @ x + skinny(x.T, factors["w"]).T


def inner_vmap(params, x):
    return jax.vmap(jax.vmap(lambda row: row @ params["w"]))(x)


def vmap_over_columns(params, x):
    return jax.vmap(lambda column: jnp.tanh(x) @ column, 1, 2)(params["w"])


def einsum_heads(params, x):
    return jnp.einsum("btd,dhk->bthk", x, params["w"])


def einsum_heads_hand(params, factors, x):
    return einsum_heads(params, x) + skinny(x, factors["w"])


def out_projection(params, x):
    return jnp.einsum("bthk,hkd->btd", x, params["w"])


def out_projection_hand(params, factors, x):
    return out_projection(params, x) + skinny(x, factors["w"], n_in=2)


def _heads(seed):
    return normal(seed, 4, 16, HEADS, HEAD, scale=1.0)


def both_sides(params, x):
    return jnp.einsum("bti,ij,btj->bt", x, params["w"], jnp.tanh(x))


def accumulate_in_float32(params, x):
    w = params["w"].astype(jnp.bfloat16)
    return jnp.dot(x.astype(jnp.bfloat16), w, preferred_element_type=jnp.float32)


def two_uses(params, x):
    return jnp.tanh(x @ params["w"]) @ params["w"].T


def batched_matmul(params, x):
    return jnp.matmul(x[:, None], params["w"][None, None])


EXPERTS, GROUP, DE = 3, 32, 32


def experts(params, x):
    hidden = jax.nn.relu(jnp.einsum("etd,edf->etf", x, params["up"]))
    return jnp.einsum("etf,efd->etd", hidden, params["down"])


def experts_hand(params, factors, x):
    def dense(x, w, f):
        return x @ w + skinny(x, f)

    dense = jax.vmap(dense)
    hidden = jax.nn.relu(dense(x, params["up"], factors["up"]))
    return dense(hidden, params["down"], factors["down"])


def _build_experts(seed):
    k1, k2, k3 = seed, seed + 1, seed + 2
    params = {"up": normal(k1, EXPERTS, D, F), "down": normal(k2, EXPERTS, F, D)}
    return experts, params, (normal(k3, EXPERTS, 64, D, scale=1.0),)


def chosen_experts(params, x, ids):
    return jnp.einsum("td,tdf->tf", x, params["w"][ids])


def chosen_experts_vmap(params, x, ids):
    return jax.vmap(lambda row, i: jnp.tanh(row @ params["w"][i]))(x, ids)


def _build_chosen(fn):
    def build(seed):
        k1, k2, k3 = seed, seed + 1, seed + 2
        x = normal(k2, GROUP, DE, scale=1.0)
        ids = integers(k3, EXPERTS, GROUP)
        return fn, {"w": normal(k1, EXPERTS, DE, DE)}, (x, ids)

    return build


VOCABULARY = 256


def index_rows(params, ids):
    return params["w"][ids]


def index_rows_hand(params, factors, ids):
    f = factors["w"]
    return params["w"][ids] + (f.a[ids] @ (f.b * f.scale))


def take_rows(params, ids):
    return jnp.tanh(jnp.take(params["w"], ids, axis=0))


def take_columns(params, ids):
    return jnp.take(params["w"], ids, axis=1, mode="clip")


def lookup_in_vmap(params, ids):
    return jax.vmap(lambda i: jnp.tanh(params["w"][i]))(ids)


def lookup_one_in_vmap(params, ids):
    return jax.vmap(lambda i: jnp.tanh(params["w"][i]))(ids.reshape(-1))


def tied_embedding(params, ids):
    hidden = jnp.tanh(params["w"][ids])
    return hidden @ params["w"].T


def tied_embedding_hand(params, factors, ids):
    f = factors["w"]
    h = jnp.tanh(index_rows_hand(params, factors, ids))
    flat = h.reshape(-1, h.shape[-1])
    low = (flat @ f.b.T) @ (f.a * f.scale).T
    return h @ params["w"].T + low.reshape(*h.shape[:-1], -1)


def _ids(seed):
    return integers(seed, VOCABULARY, 4, 16)


def _columns_first(seed):
    return normal(seed, D, 64, scale=1.0)


TABLE = (VOCABULARY, D)

PATTERNS = (
    Pattern("plain", _build(plain, D, F), {"w": IN_OUT}, hand=plain_hand, batched=True),
    Pattern(
        "nested",
        _build(plain, D, F),
        {"w": IN_OUT},
        nested=True,
        batched=True,
        bound=0.7,
    ),
    Pattern(
        "transposed",
        _build(transposed, F, D),
        {"w": OUT_IN},
        hand=transposed_hand,
        batched=True,
    ),
    Pattern("transposed_default_axes", _build(transposed, F, D), {"w": IN_OUT}),
    Pattern(
        "on_the_left",
        _build(on_the_left, F, D, x=_columns_first),
        {"w": OUT_IN},
        hand=on_the_left_hand,
    ),
    Pattern("inner_vmap", _build(inner_vmap, D, F), {"w": IN_OUT}, hand=plain_hand),
    Pattern("vmap_over_columns", _build(vmap_over_columns, D, F), {"w": IN_OUT}),
    Pattern(
        "einsum_heads",
        _build(einsum_heads, D, HEADS, HEAD),
        {"w": HEADS_OUT},
        hand=einsum_heads_hand,
        batched=True,
    ),
    Pattern(
        "einsum_heads_one_adapter_each",
        _build(einsum_heads, D, HEADS, HEAD),
        {"w": Axes((1, 0), (1, 2))},
        bound=0.75,
    ),
    Pattern(
        "out_projection",
        _build(out_projection, HEADS, HEAD, D, x=_heads),
        {"w": HEADS_IN},
        hand=out_projection_hand,
    ),
    Pattern("both_sides", _build(both_sides, D, D), {"w": IN_OUT}),
    Pattern(
        "accumulate_in_float32",
        _build(accumulate_in_float32, D, F),
        {"w": IN_OUT},
        dtype="bfloat16",
    ),
    Pattern("two_uses", _build(two_uses, D, F), {"w": IN_OUT}, bound=0.75),
    Pattern("batched_matmul", _build(batched_matmul, D, F), {"w": IN_OUT}),
    Pattern(
        "experts",
        _build_experts,
        {"up": STACKED, "down": STACKED},
        hand=experts_hand,
        batched=True,
        bound=0.7,
    ),
    Pattern("chosen_experts", _build_chosen(chosen_experts), {"w": STACKED}),
    Pattern(
        "chosen_experts_vmap",
        _build_chosen(chosen_experts_vmap),
        {"w": STACKED._replace(one_scale=True)},
        bound=0.7,
    ),
    Pattern(
        "index_rows",
        _build(index_rows, *TABLE, x=_ids),
        {"w": IN_OUT},
        hand=index_rows_hand,
        batched=True,
    ),
    Pattern("take_rows", _build(take_rows, *TABLE, x=_ids), {"w": IN_OUT}),
    Pattern("take_columns", _build(take_columns, D, VOCABULARY, x=_ids), {"w": IN_OUT}),
    Pattern("lookup_in_vmap", _build(lookup_in_vmap, *TABLE, x=_ids), {"w": IN_OUT}),
    Pattern(
        "lookup_one_in_vmap", _build(lookup_one_in_vmap, *TABLE, x=_ids), {"w": IN_OUT}
    ),
    Pattern(
        "tied_embedding",
        _build(tied_embedding, *TABLE, x=_ids),
        {"w": IN_OUT},
        hand=tied_embedding_hand,
        bound=0.75,
    ),
)
