"""What the compiled program of a small step holds, on eight devices of the host."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import lowrank as lrk
from benchmarks.tables._scaling_cost import Sizes
from lowrank import training

DEVICES = 8
HEAD = 32  # width of a head
NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_SIZES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1}
_COLLECTIVE = re.compile(
    r"= (.*?) (all-gather|all-reduce|all-to-all|reduce-scatter|"
    r"collective-permute)\("
)


def measure(sizes: list[int], rank: int, batch: int, length: int, way: str) -> Any:
    """Compiles one step for shapes alone, and reads the program.

    Args:
        sizes: The fields of `Sizes`.
        rank: Rank of the adapter.
        batch: Texts in a batch.
        length: Tokens in a text.
        way: What is split, and what is pinned: a key of `WAYS`.

    Returns:
        Bytes of the base and the adapter on one device, bytes that collectives put out,
        and the program's temporary memory, on one device.
    """
    jax.config.update("jax_num_cpu_devices", DEVICES)
    axis, pinned = WAYS[way]
    mesh = jax.make_mesh((DEVICES,), (axis,), axis_types=(AxisType.Auto,))
    rules = training.fsdp(axis) if axis == "data" else training.tensor_parallel(axis)
    whole = NamedSharding(mesh, P())
    params = training.shard(_shapes(Sizes(*sizes)), mesh, rules)
    tx = lrk.lora(rank, select=lrk.matching(r"^layers.*kernel$"))
    if pinned == "gathered":
        tx = lrk.chain(training.gather(params, axis), tx)
    state = _at(jax.eval_shape(tx.init, jax.random.key(0), params), whole)
    split = NamedSharding(mesh, P("data")) if axis == "data" else whole
    ids = jax.ShapeDtypeStruct((batch, length), jnp.int32, sharding=split)
    pin = split if pinned == "activations" else None

    def loss(trainable: Any, fixed: Any, params: Any, ids: Any) -> Any:
        if pinned == "weights":
            params = jax.lax.with_sharding_constraint(params, whole)
        adapted = tx.apply(params, lrk.State(trainable, fixed))
        logits = lrk.lift(lambda p, x: _model(p, x, pin))(adapted, ids)
        return jax.nn.logsumexp(logits, axis=-1).mean()

    step = jax.jit(jax.grad(loss), out_shardings=whole)
    program = step.lower(state.trainable, state.fixed, params, ids).compile()
    return {
        "base": _held(params),
        "adapter": _held(state.trainable),
        "temporary": getattr(program.memory_analysis(), "temp_size_in_bytes", None),
        **collectives(program.as_text() or ""),
    }


WAYS = {
    "fsdp": ("data", ""),
    "fsdp-weights": ("data", "weights"),
    "fsdp-gathered": ("data", "gathered"),
    "fsdp-activations": ("data", "activations"),
    "tensor": ("model", "activations"),
}


def _shapes(sizes: Sizes) -> dict[str, Any]:
    """Shapes of the decoder, in float32: a CPU computes in it anyway."""
    d = sizes.width

    def kernel(*shape: int) -> dict[str, Any]:
        return {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}

    def scale() -> dict[str, Any]:
        return {"scale": jax.ShapeDtypeStruct((d,), jnp.float32)}

    layer = {n: kernel(*s) for n, s in zip(NAMES, sizes.kernels, strict=True)}
    layer |= {"input_norm": scale(), "output_norm": scale()}
    tokens = {"embedding": jax.ShapeDtypeStruct((sizes.vocab, d), jnp.float32)}
    return {
        "embed_tokens": tokens,
        "layers": {str(i): layer for i in range(sizes.layers)},
        "norm": scale(),
        "lm_head": kernel(d, sizes.vocab),
    }


def _norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Root mean square norm."""
    size = jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-5)
    return x * size * scale[None, None]


def _layer(p: Any, h: jax.Array) -> jax.Array:
    """One layer; positions are left out, they move no bytes."""
    x = _norm(h, p["input_norm"]["scale"])
    q, k, v = (x @ p[name]["kernel"] for name in NAMES[:3])
    q, k, v = (y.reshape(*y.shape[:2], -1, HEAD) for y in (q, k, v))
    mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    h = h + mixed.reshape(h.shape) @ p["o_proj"]["kernel"]
    x = _norm(h, p["output_norm"]["scale"])
    gate, up = (x @ p[name]["kernel"] for name in ("gate_proj", "up_proj"))
    return h + (jax.nn.silu(gate) * up) @ p["down_proj"]["kernel"]


def _model(params: Any, ids: jax.Array, pin: Any) -> jax.Array:
    """The decoder, rematerialised by layers, pinned between them where asked."""

    def fix(h: jax.Array) -> jax.Array:
        return h if pin is None else jax.lax.with_sharding_constraint(h, pin)

    h = fix(params["embed_tokens"]["embedding"][ids])
    for layer in params["layers"].values():
        h = fix(jax.checkpoint(_layer)(layer, h))
    return _norm(h, params["norm"]["scale"]) @ params["lm_head"]["kernel"]


def _at(tree: Any, where: NamedSharding) -> Any:
    """Shapes with a sharding."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree
    )


def _held(tree: Any) -> int:
    """Bytes of a tree of shapes on one device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )


def collectives(text: str) -> dict[str, int]:
    """Bytes that each kind of collective puts out on one device."""
    found = dict.fromkeys(("all-gather", "all-reduce", "other"), 0)
    for shapes, kind in _COLLECTIVE.findall(text):
        size = sum(
            _SIZES[dtype] * math.prod(int(n) for n in dims.split(",") if n)
            for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
        )
        found[kind if kind in found else "other"] += size
    return found
