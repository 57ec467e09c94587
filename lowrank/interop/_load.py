"""PEFT directories as transforms and states over a tree of parameters."""

import os
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lowrank import _compat, _files, _tree
from lowrank._axes import Axes
from lowrank._base import (
    Path,
    PyTree,
    State,
    Transform,
    as_struct,
    is_floating,
    is_operator,
)
from lowrank._combine import chain
from lowrank._select import Select
from lowrank.adapters import full, lora, magnitude
from lowrank.interop._adapter import (
    PREFIX,
    Adapter,
    Factors,
    is_whole,
    open_adapter,
    refuse,
)
from lowrank.interop._layout import (
    axes_of,
    factors_in,
    torch_shapes,
    weight_in,
    wide,
)
from lowrank.interop._names import Names, Rename, find_paths, module_path
from lowrank.interop._stacked import one_by_one, put_together, unlike

Wrong = dict[str, list[str]]


class Loaded(NamedTuple):
    """An adapter over a tree of parameters.

    Attributes:
        adapted: The tree with the adapter: run it with `lift`, merge it, form it.
        tx: The transform of which it is an instance, so that training can go on.
        state: Its state: `tx.apply(params, state)` is `adapted`.
        names: The torch name of each adapted parameter, by path (of stacked layers by
            the path that each would have); `names.get` is the `rename` of `save_peft`
            that writes the same names.
        config: The whole `adapter_config.json`.
    """

    adapted: PyTree
    tx: Transform
    state: State
    names: dict[Path, str]
    config: dict[str, Any]


def load_peft(
    directory: str | os.PathLike[str],
    params: PyTree,
    *,
    rename: Rename | None = None,
    axes: Mapping[Path, Axes] | None = None,
    absent: Select | None = None,
    layers: str | None = None,
    conv1d: Select | None = None,
    dropout: Any = 0.0,
) -> Loaded:
    """Read a LoRA that PEFT wrote, completely or not at all.

    A module's `lora_A: [r, in]` and `lora_B: [out, r]` become `a: [in, r]` and
    `b: [r, out]` beside the kernel `W: [in, out]`, with the scale `alpha / r`, or
    `alpha / sqrt(r)` with `use_rslora`, after `rank_pattern` and `alpha_pattern`. An
    embedding `[vocabulary, width]` is adapted likewise. A convolution's `lora_A:
    [r, in, *kernel]` becomes `a: [*kernel, in, r]`. DoRA's lengths become `m`.
    Modules that are stored whole (`modules_to_save`) and biases become plain deltas.

    Args:
        directory: Folder with `adapter_config.json` and `adapter_model.safetensors`.
            Nothing is downloaded, and no pickle is read.
        params: The base parameters, or an adapted tree: the adapter goes on top.
        rename: From the torch name of a parameter, such as
            `bert.encoder.layer.0.attention.self.query.weight`, to its path here; None
            for a name, or for all, means the default: `/` for `.` and `kernel`,
            `embedding` or `scale` for `weight`, where one leading name may be lacking
            on either side. A dict's `get` will do.
        axes: As for `lora`, for leaves that are neither `[in, out]` nor convolutions
            `[*kernel, in, out]`.
        absent: Leaves that `target_modules` names and the file may lack all the same,
            since the model that was trained has no such module.
        layers: Path of layers that the tree holds as one, with leaves `[layers, ...]`,
            such as `model/layers`. All of them must have what one has, of one rank and
            scale.
        conv1d: Which of the kernels that are stored whole are those of Conv1D layers,
            `[in, out]` there. None: with `fan_in_fan_out` the shape tells, and a square
            kernel is refused; without it there are none.
        dropout: Dropout of `tx`, as for `lora`; `adapted` has none.

    Returns:
        `adapted`, `tx`, `state`, `names`, `config`. `tx` is `lora(...)`, one for each
        rank and scale, then `magnitude` for DoRA and `full` for what is stored whole;
        a chain of them if there are more than one. All arrays are float32 or wider.

    Raises:
        FileNotFoundError: If a file is absent.
        ValueError: If a file cannot be read, the config asks for what is no plain LoRA
            or DoRA, a convolution is grouped, or keys are missing, unexpected,
            mis-shaped or not floating; all are listed.

    Example:
        >>> import tempfile
        >>> params = {"dense": {"kernel": jnp.ones((4, 3))}}
        >>> tx = lrk.lora(2, alpha=4)
        >>> adapted = tx.apply(params, tx.init(jax.random.key(0), params))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     lrk.interop.save_peft(folder, adapted)
        ...     loaded = lrk.interop.load_peft(folder, params)
        >>> loaded.state.trainable["dense/kernel"]["a"].shape, loaded.names
        ((4, 2), {'dense/kernel': 'dense.weight'})

    Notes:
        A whole module is kept as `base + (stored - base)`: the stored numbers up to
        rounding. An adapter that was started with PiSSA, OLoRA and the like belongs to
        a changed base and is refused: PEFT can save it as a plain LoRA.

    References:
        Hu et al., LoRA, 2021, arXiv:2106.09685. The checkpoint format of PEFT, as its
        release 0.21.2 writes and reads it.
    """
    who = "load_peft"
    adapter = open_adapter(who, directory)
    whole = _tree.leaves(who, params)
    leaves = one_by_one(who, whole, layers)
    places = {f"{name}.weight": own for name, own in adapter.modules.items()}
    names = find_paths([*places, *adapter.saved, *adapter.bases], leaves, rename)
    wrong: Wrong = defaultdict(list)
    _check_names(adapter, names, wrong)
    _check_complete(adapter, names, leaves, absent, wrong)
    found = {p: own for name, own in places.items() if (p := names.paths[name])}
    dims = _check_shapes(found, leaves, axes or {}, wrong)
    count = next((x.shape[0] for p, x in whole.items() if p not in leaves), 0)
    wrong["mis-shaped"] += unlike(found, layers, count)
    refuse(who, adapter.directory, wrong)
    deltas = _deltas(adapter, names, leaves, conv1d, wrong)
    refuse(who, adapter.directory, wrong)
    arrays = {}
    for name in adapter.modules:
        path = names.paths[f"{name}.weight"]
        if path is not None:
            shape = tuple(leaves[path].shape)
            arrays[path] = factors_in(adapter.read(name), dims[path], shape)
    spelled = {p: n for n, p in names.paths.items() if p in found or p in deltas}
    found, arrays, dims = put_together(found, arrays, dims, layers, count)
    state = _state(found, arrays, deltas)
    tx = _transform(found, deltas, dims, adapter.config.dora, dropout)
    plain = _transform(found, deltas, dims, adapter.config.dora, 0.0)
    adapted = plain.apply(params, state)
    return Loaded(adapted, tx, state, spelled, adapter.config.raw)


def _check_names(adapter: Adapter, names: Names, wrong: Wrong) -> None:
    """Note what the tree has no place for, or one place for two."""
    seen: dict[Path, str] = {}
    for name, path in names.paths.items():
        if path is None:
            wrong["unexpected"].append(f"'{name}': the tree has no such path")
        elif name not in adapter.bases and seen.setdefault(path, name) != name:
            wrong["unexpected"].append(f"'{name}' and '{seen[path]}': both '{path}'")


def _check_complete(
    adapter: Adapter,
    names: Names,
    leaves: Mapping[Path, Any],
    absent: Select | None,
    wrong: Wrong,
) -> None:
    """Note leaves of the tree that the config names and the file lacks."""
    config, there = adapter.config, set(names.paths.values())
    layered = config.raw.get("layers_to_transform") is not None
    general = config.raw.get("target_modules") == "all-linear"
    for path, leaf in leaves.items():
        name = names.name(path)
        module = name.rpartition(".")[0]
        if path in there or (absent is not None and absent(path, as_struct(leaf))):
            continue
        if is_whole(config, module):
            wrong["missing"].append(f"'{PREFIX}{name}' ('{path}')")
        elif path.endswith(("/kernel", "/embedding")) and not (layered or general):
            if config.targets(module):
                wrong["missing"].append(f"'{PREFIX}{module}.lora_A.weight' ('{path}')")


def _check_shapes(
    found: Mapping[Path, Factors],
    leaves: Mapping[Path, Any],
    axes: Mapping[Path, Axes],
    wrong: Wrong,
) -> dict[Path, Axes]:
    """The axes of each adapted leaf; note what does not fit."""
    dims = {}
    for path, own in found.items():
        leaf = leaves[path]
        shape = tuple(leaf.shape)
        known = axes_of(own, len(shape), axes.get(path))
        if path.endswith("weight") and len(shape) == 2 and path not in axes:
            known = None  # [out, in] in torch: it cannot be told
        if not is_floating(leaf):
            wrong["not floating"].append(f"'{path}' in the tree: {leaf.dtype}")
        elif known is None or known.stack or len(sum(known, ())) != len(shape):
            wrong["mis-shaped"].append(f"'{path}' of {shape}: pass its axes=")
        elif (got := (own.a.shape, own.b.shape)) != (
            want := torch_shapes(own, known, shape)
        ):
            wrong["mis-shaped"].append(
                f"'{own.a.key}' and B: expected {want}, got {got}"
            )
        else:
            dims[path] = known
    return dims


def _deltas(
    adapter: Adapter,
    names: Names,
    leaves: Mapping[Path, Any],
    conv1d: Select | None,
    wrong: Wrong,
) -> dict[Path, np.ndarray]:
    """What is stored whole, less the base; note what does not fit."""
    unsaid = None if adapter.config.raw.get("fan_in_fan_out") else False
    deltas = {}
    whole = [*adapter.saved.items(), *adapter.bases.items()]
    values = _files.read_tensors({entry.key: entry for _, entry in whole})
    for name, entry in whole:
        path = names.paths[name]
        if path is None:
            continue
        kernel = path.endswith("/kernel")
        shape = tuple(leaves[path].shape)
        turned = unsaid if conv1d is None else conv1d(path, as_struct(leaves[path]))
        new = weight_in(values.pop(entry.key), shape, kernel=kernel, conv1d=turned)
        base = leaves[path].dense() if is_operator(leaves[path]) else leaves[path]
        if isinstance(new, str):
            wrong["mis-shaped"].append(f"'{entry.key}': {new}")
        elif not (_compat.is_known(base) and is_floating(base)):
            wrong["unexpected"].append(f"'{entry.key}': '{path}' holds no numbers")
        elif entry is adapter.saved.get(name):
            deltas[path] = wide(new) - wide(base)
        elif not _same(new, np.asarray(base)):
            wrong["unexpected"].append(f"'{entry.key}': not what is at '{path}'")
    return deltas


def _same(one: np.ndarray, two: np.ndarray) -> bool:
    """Whether two arrays are equal, in the dtype of one of them."""
    return np.array_equal(one.astype(two.dtype), two) or np.array_equal(
        one, two.astype(one.dtype)
    )


def bare_state(adapter: Adapter) -> State:
    """The state that `load_peft` gives, by the default paths and without a base."""
    found, arrays = {}, {}
    for name in adapter.modules:
        own = adapter.read(name)
        path = module_path(name, embedding=own.embedding)
        shape = (*own.a.shape[2:], own.a.shape[1], own.b.shape[0])
        axes = axes_of(own, len(shape), None)
        if axes is not None:  # always: a matrix or a convolution
            found[path], arrays[path] = own, factors_in(own, axes, shape)
    return _state(found, arrays, {})


def _state(
    found: Mapping[Path, Factors],
    arrays: Mapping[Path, Mapping[str, np.ndarray]],
    deltas: Mapping[Path, np.ndarray],
) -> State:
    """The state of `_transform`, with the numbers of the file."""
    members = []
    for paths in _groups(found).values():
        trained = {p: _put(arrays[p], ("a", "b")) for p in paths}
        scales = {p: {"scale": jnp.float32(found[p].scale)} for p in paths}
        members.append((trained, scales))
    lengths = {p: _put(own, ("m",)) for p, own in arrays.items() if "m" in own}
    members += [(lengths, {})] if lengths else []
    whole = {path: _put({"d": d}, ("d",)) for path, d in deltas.items()}
    members += [(whole, {})] if whole else []
    if len(members) == 1:
        return State(*members[0])
    return State(*(tuple(part) for part in zip(*members, strict=True)))


def _put(arrays: Mapping[str, np.ndarray], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: jnp.asarray(wide(arrays[name])) for name in names}


def _groups(found: Mapping[Path, Factors]) -> dict[tuple[int, float], list[Path]]:
    """Paths of one rank and scale."""
    groups: dict[tuple[int, float], list[Path]] = defaultdict(list)
    for path, own in found.items():
        groups[own.rank, own.scale].append(path)
    return dict(sorted(groups.items()))


def _transform(
    found: Mapping[Path, Factors],
    deltas: Mapping[Path, Any],
    dims: Mapping[Path, Axes],
    dora: bool,
    dropout: Any,
) -> Transform:
    """`lora` for each rank and scale, then lengths, then plain deltas."""
    members = [
        lora(rank, scale=scale, select=_at(paths), axes=dims, dropout=dropout)
        for (rank, scale), paths in _groups(found).items()
    ]
    members += [magnitude(select=_at(found), axes=dims)] if dora else []
    members += [full(select=_at(deltas))] if deltas else []
    return members[0] if len(members) == 1 else chain(*members)


def _at(paths: Any) -> Select:
    """Select some paths."""
    known = frozenset(paths)

    def select(path: Path, leaf: Any) -> bool:
        del leaf
        return path in known

    return select
