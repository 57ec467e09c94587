"""A base over a mesh by rules on its paths; states that lie where their weights lie."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lowrank import _tree
from lowrank._base import Path, PyTree, State, Transform, is_array, is_operator

Rules = Mapping[str, PartitionSpec]
Axis = str | tuple[str, ...]

# The parts of a transformer by the names of the public checkpoints (BERT and ViT;
# Llama; GPT-2; T5). A column kernel `[in, out]` is split over `out` and feeds a row
# kernel, which is split over `in`, so only the second product needs a sum over devices.
_NAME = r"(?<![^/])"  # here a name begins
_COLUMN = (
    _NAME + r"(query|key|value|intermediate/dense|[qkv]_proj|gate_proj|up_proj"
    r"|c_attn|c_fc|q|k|v|wi(_\d)?|lm_head|layers/\d*[02468])"
)
_ROW = _NAME + r"(output/dense|o_proj|down_proj|c_proj|o|wo|layers/\d*[13579])"
_TOKENS = _NAME + r"(word_embeddings|embed_tokens|wte|shared)/embedding$"
_CONVOLUTION = _NAME + r"(conv\w*|patch_embeddings/projection)/kernel$"
_SMALL = _NAME + r"(bias|scale|cls_token|position_embeddings)$"
# Layers that a scan runs through: no number follows, and the layers are the first axis.
_SCANNED = _NAME + r"(layers?|block|h)/(?!\d).*"


def _also_scanned(rules: dict[str, PartitionSpec]) -> dict[str, PartitionSpec]:
    """The rules, after the same for leaves with an axis of layers in front."""
    scanned = {
        _SCANNED + regex: PartitionSpec(None, *spec) for regex, spec in rules.items()
    }
    return scanned | rules


def fsdp(axis: Axis) -> dict[str, PartitionSpec]:
    """Rules that split every matrix over one mesh axis, whatever it does.

    A kernel `[in, ...]` is split over its inputs and an embedding `[tokens, width]`
    over its width; biases, scales and convolutions are whole on every device. Layers
    that are stacked for a scan (no number in their path) have their axis in front,
    which is not split. With a batch over the same axis this is fully sharded data
    parallelism.

    Args:
        axis: Name of the mesh axis, or several names.

    Returns:
        A dict from regular expression to PartitionSpec, for `shard`. The first
        expression that is found in a path decides.

    Example:
        >>> from lowrank import training
        >>> tuple(training.fsdp("data")["kernel$"])
        ('data',)

    References:
        Rajbhandari et al., ZeRO, 2020, arXiv:1910.02054: section 5.3 (its third stage).
    """
    rules = {
        _CONVOLUTION: PartitionSpec(),
        r"kernel$": PartitionSpec(axis),
        r"embedding$": PartitionSpec(None, axis),
        _SMALL: PartitionSpec(),
    }
    return _also_scanned(rules)


def tensor_parallel(axis: Axis) -> dict[str, PartitionSpec]:
    """Rules that split the products themselves: heads, hidden units, vocabulary.

    Query, key, value and the first feed-forward kernel are split over their outputs,
    the kernels that follow them over their inputs, the token embedding and the output
    head over the vocabulary; all else is whole on every device. Names are those of the
    reference models, which are those of the public checkpoints of BERT, ViT, Llama,
    GPT-2 and T5, in a list or stacked for a scan; layers of an `MLP` alternate.

    Args:
        axis: Name of the mesh axis, or several names.

    Returns:
        A dict from regular expression to PartitionSpec, for `shard`. The first
        expression that is found in a path decides.

    Example:
        >>> from lowrank import training
        >>> from jax.sharding import AxisType
        >>> mesh = jax.make_mesh((1,), ("model",), axis_types=(AxisType.Auto,))
        >>> params = {"down_proj": {"kernel": jnp.ones((4, 2))}}
        >>> placed = training.shard(params, mesh, training.tensor_parallel("model"))
        >>> tuple(placed["down_proj"]["kernel"].sharding.spec)
        ('model', None)

    References:
        Shoeybi et al., Megatron-LM, 2019, arXiv:1909.08053: section 3.
    """
    rules = {
        _TOKENS: PartitionSpec(axis, None),
        _NAME + r"(pooler/dense|classifier)/kernel$": PartitionSpec(),
        _CONVOLUTION: PartitionSpec(),
        _COLUMN + r"/kernel$": PartitionSpec(None, axis),
        _COLUMN + r"/bias$": PartitionSpec(axis),
        _ROW + r"/kernel$": PartitionSpec(axis, None),
        _NAME + r"embedding$": PartitionSpec(),
        _SMALL: PartitionSpec(),
    }
    return _also_scanned(rules)


def shard(params: PyTree, mesh: Mesh, *rules: Rules) -> PyTree:
    """Spread parameters over a mesh, by rules on their paths.

    Args:
        params: Parameters: arrays, NumPy arrays (also mapped from disk: each device
            reads its part alone), or abstract arrays.
        mesh: A mesh whose axes are of type `Auto`; it may span several processes, each
            of which then passes the same parameters.
        *rules: Dicts from regular expression to PartitionSpec, such as `fsdp` and
            `tensor_parallel` return, or your own. Within a dict the first expression
            that is found in a path decides. Several dicts split a leaf together: the
            axes of later ones are appended, dimension by dimension.

    Returns:
        The same tree with every leaf on the mesh; for abstract arrays, the same with
        shardings. Leaves that are no arrays are the same objects.

    Raises:
        TypeError: If a rule is no mapping, or a leaf is an operator.
        ValueError: If an axis of the mesh is not `Auto`, a path meets no rule, or a
            spec does not fit: more entries than the leaf has axes, an unknown axis, or
            a size that does not divide. All such leaves are named.

    Example:
        >>> from jax.sharding import AxisType, PartitionSpec
        >>> from lowrank import training
        >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
        >>> rules = {"head": PartitionSpec(), **training.fsdp("data")}
        >>> params = {"up": {"kernel": jnp.ones((4, 2))}, "head": jnp.ones((2, 3))}
        >>> placed = training.shard(params, mesh, rules)
        >>> [tuple(x.sharding.spec) for x in (placed["up"]["kernel"], placed["head"])]
        [('data', None), (None, None)]
    """
    _check_mesh(mesh, rules)
    pairs, treedef = _tree.flatten("shard", params)
    operators = [path for path, leaf in pairs if is_operator(leaf)]
    if operators:
        raise TypeError(
            f"shard: operators at {_tree.quoted(operators)}. Shard the base, then "
            "apply transforms to it."
        )
    bad: list[str] = []
    specs = {p: _spec(p, x, mesh, rules, bad) for p, x in pairs if is_array(x)}
    if bad:
        raise ValueError(
            f"shard: {'; '.join(bad)}. Put a rule of your own in front: "
            '{"path$": PartitionSpec(), **rules}.'
        )
    placed = [
        _place(leaf, NamedSharding(mesh, specs[path])) if path in specs else leaf
        for path, leaf in pairs
    ]
    return jax.tree.unflatten(treedef, placed)


def _check_mesh(mesh: Mesh, rules: tuple[Rules, ...]) -> None:
    """Refuse rules that are no mappings, and meshes that ask for types of results."""
    wrong = [type(r).__name__ for r in rules if not isinstance(r, Mapping)]
    if wrong or not rules:
        raise TypeError(
            f"shard: expected dicts of rules, got {', '.join(wrong) or 'none'}. Pass "
            'training.fsdp("data"), or {"regex": PartitionSpec(...)}.'
        )
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    fixed = [
        f"'{name}' is {kind.name}" for name, kind in kinds if kind != AxisType.Auto
    ]
    if fixed:
        raise ValueError(
            f"shard: expected a mesh of Auto axes, got {', '.join(fixed)}. Make it "
            "with jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * "
            "len(names))."
        )


def _spec(
    path: Path, leaf: Any, mesh: Mesh, rules: tuple[Rules, ...], bad: list[str]
) -> PartitionSpec:
    """The spec of one leaf; what does not fit is noted."""
    found = [
        next((s for regex, s in own.items() if re.search(regex, path)), None)
        for own in rules
    ]
    where, shape = _tree.describe(path, leaf), tuple(leaf.shape)
    if all(spec is None for spec in found):
        bad.append(f"no rule for {where}")
        return PartitionSpec()
    specs = [spec for spec in found if spec is not None]
    if any(len(spec) > len(shape) for spec in specs):
        bad.append(f"{where} has fewer axes than {max(specs, key=len)}")
        return PartitionSpec()
    joined = [
        tuple(name for spec in specs for name in _names(spec, d))
        for d in range(len(shape))
    ]
    names = [name for axis in joined for name in axis]
    unknown = sorted(set(names) - set(mesh.axis_names))
    if unknown or len(set(names)) < len(names):
        what = f"the mesh lacks {unknown}" if unknown else f"an axis twice in {names}"
        bad.append(f"{where}: {what}")
        return PartitionSpec()
    parts = [int(np.prod([mesh.shape[name] for name in axis])) for axis in joined]
    if any(size % n for size, n in zip(shape, parts, strict=True)):
        bad.append(f"{where} does not divide into {tuple(parts)} parts")
    return PartitionSpec(*map(_entry, joined))


def _entry(names: tuple[str, ...]) -> Any:
    """Mesh axes as an entry of a spec."""
    return names[0] if len(names) == 1 else names or None


def _names(spec: PartitionSpec, dim: int) -> tuple[str, ...]:
    """Mesh axes over which a spec splits one dimension."""
    entry = spec[dim] if dim < len(spec) else None
    return () if entry is None else entry if isinstance(entry, tuple) else (entry,)


def _place(leaf: Any, sharding: NamedSharding) -> Any:
    """One leaf on its devices; abstract ones are told where they would lie."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    alone = jax.process_count() == 1
    if isinstance(leaf, jax.Array) and (alone or not leaf.is_fully_addressable):
        return jax.device_put(leaf, sharding)
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, host.__getitem__)


def state_shardings(
    tx: Transform, params: PyTree, state: State, *, tasks: Axis | None = None
) -> State:
    """Where a state would lie if each of its arrays followed the weight it belongs to.

    An array that stands in an operator as it is (`a`, `b`, `d`, `m`, `scale`) is split
    like the axes of the weight that it holds: of a kernel `[in, out]` split over `in`,
    `a: [in, r]` is split over `in`, and `b: [r, out]` is whole on every device. Arrays
    that `apply` works up first (seeds, packed entries) and those of operators that
    cannot be split are whole on every device.

    Args:
        tx: The transform.
        params: Parameters as `shard` returned them, abstract or not.
        state: What `tx.init` returned, or its shapes (`jax.eval_shape(tx.init, ...)`).
        tasks: Mesh axis over which the leading axis of a state made by `lrk.stack` is
            split, in place of what the weight has on that axis; None for a state of
            one adapter.

    Returns:
        A state of NamedShardings: `jax.device_put(state, state_shardings(...))`, or
        `jax.jit(tx.init, out_shardings=...)`, which draws every part where it lies.
        Adapters are small: `NamedSharding(mesh, PartitionSpec())` for all is as good
        until there are many.

    Raises:
        ValueError: If no leaf of `params` lies on a mesh, or `tasks` is no axis of it.

    Example:
        >>> from jax.sharding import AxisType
        >>> from lowrank import training
        >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
        >>> params = {"kernel": jnp.ones((4, 3))}
        >>> placed = training.shard(params, mesh, training.fsdp("data"))
        >>> tx = lrk.lora(2)
        >>> state = tx.init(jax.random.key(0), placed)
        >>> where = training.state_shardings(tx, placed, state)
        >>> [tuple(where.trainable["kernel"][name].spec) for name in "ab"]
        [('data', None), (None, None)]
    """
    leaves = _tree.leaves("state_shardings", params)
    placed = {path: getattr(leaf, "sharding", None) for path, leaf in leaves.items()}
    named = {p: s for p, s in placed.items() if isinstance(s, NamedSharding)}
    if not named:
        raise ValueError(
            "state_shardings: no parameter lies on a mesh. Pass what training.shard "
            "returned."
        )
    mesh = next(iter(named.values())).mesh
    names = () if tasks is None else (tasks,) if isinstance(tasks, str) else tasks
    if unknown := sorted(set(names) - set(mesh.axis_names)):
        raise ValueError(
            f"state_shardings: the mesh lacks {unknown}. Its axes are "
            f"{mesh.axis_names}."
        )
    arrays, treedef = jax.tree.flatten(state)
    drop = 0 if tasks is None else 1
    single = [jax.ShapeDtypeStruct(x.shape[drop:], x.dtype) for x in arrays]
    specs = {path: sharding.spec for path, sharding in named.items()}
    found = _specs_in_operators(tx, params, single, treedef, specs)
    front = () if tasks is None else (tasks,)
    each = [
        PartitionSpec(*front, *spec_without(names, found.get(i, ())))
        for i in range(len(arrays))
    ]
    return jax.tree.unflatten(treedef, [NamedSharding(mesh, spec) for spec in each])


def _specs_in_operators(
    tx: Transform,
    params: PyTree,
    arrays: list[Any],
    treedef: Any,
    specs: Mapping[Path, PartitionSpec],
) -> dict[int, PartitionSpec]:
    """The spec of each state array that some operator holds as it is, by its number."""
    found: dict[int, PartitionSpec] = {}

    def trace(params: PyTree, arrays: list[Any]) -> None:
        places = {id(x): i for i, x in enumerate(arrays)}
        state = jax.tree.unflatten(treedef, arrays)
        adapted = tx.apply(params, state, key=jax.random.key(0))
        for path, leaf in _tree.flatten("state_shardings", adapted)[0]:
            if not (is_operator(leaf) and path in specs):
                continue
            split = leaf.partition(specs[path])
            if split is NotImplemented:
                continue
            children = zip(jax.tree.leaves(leaf), _spec_leaves(split), strict=True)
            found.update({places[id(x)]: s for x, s in children if id(x) in places})

    _tree.abstractly(trace, params, arrays)
    return found


def spec_without(names: tuple[str, ...], spec: Any) -> list[Any]:
    """The entries of a spec without some axes of the mesh."""
    kept = (
        tuple(name for name in _names(spec, d) if name not in names)
        for d in range(len(spec))
    )
    return [_entry(axis) for axis in kept]


def _spec_leaves(split: Any) -> list[PartitionSpec]:
    """The specs in an operator that holds specs in place of arrays."""
    return jax.tree.leaves(split, is_leaf=lambda x: isinstance(x, PartitionSpec))
