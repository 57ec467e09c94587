"""Checkpoints in local directories: `config.json` and safetensors files."""

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from lowrank import _files
from lowrank._files import FLOATS, Stored
from lowrank.models._config import check_depth, is_number
from lowrank.models._functional import Params, flatten, functional, nest, to_path
from lowrank.models._stack import stack_layers, unstack_layers

CONFIG = "config.json"
# Our axes of a kernel, in the order of the file's.
TO_FILE = {2: (1, 0), 4: (3, 2, 0, 1)}


class Layout(NamedTuple):
    """How the public checkpoints of one kind of model are written.

    Attributes:
        kind: What messages call it.
        model: Class of the model.
        config: Class of its config, a dataclass.
        required: Fields of the config that `config.json` has to state.
        supported: What the forward pass here computes, `{name: allowed values}`; a
            checkpoint that says otherwise is refused. The first are written.
        extra: Gives, from `config.json`, the fields that are not numbers of the same
            name, and complaints.
        written: Gives, from a config, what differs from `supported` and its fields.
        unwritten: Fields of the config that `config.json` says otherwise.
        prefix: Dropped from the keys that are read.
        written_prefix: Put before the keys that are written, but for `heads`.
        heads: First names of parameters outside the prefix.
        buffers: Regular expression of keys that hold no parameter.
        transposed: Whether the file holds kernels the other way round.
        layers: Path of the list of layers.
    """

    kind: str
    model: type
    config: type
    required: tuple[str, ...]
    supported: Mapping[str, tuple[Any, ...]]
    written: Callable[[Any], dict[str, Any]]
    extra: Callable[[dict[str, Any]], tuple[dict[str, Any], list[str]]] = lambda _: (
        {},
        [],
    )
    unwritten: tuple[str, ...] = ()
    prefix: str = ""
    written_prefix: Callable[[Any], str] = lambda _: ""
    heads: tuple[str, ...] = ()
    buffers: str = r"^$"
    transposed: bool = True
    layers: str = ""


def read_model(
    who: str,
    directory: str | os.PathLike[str],
    layout: Layout,
    *,
    skip: str | None,
    param_dtype: DTypeLike,
    **options: Any,
) -> tuple[Any, Any]:
    """Read a model and its config, completely or not at all."""
    folder = Path(directory)
    config = read_config(who, folder / CONFIG, layout)
    listed = _files.list_tensors(who, folder)
    layers = getattr(config, "num_hidden_layers", getattr(config, "n_layer", 0))
    check_depth(who, folder, layers, len(listed))
    blueprint = Blueprint(layout, config, param_dtype=param_dtype, **options)
    shapes = {
        file_key(path): _file_shape(layout, path, leaf.shape)
        for path, leaf in blueprint.leaves.items()
    }
    stored = _rename(who, layout, listed, skip)
    _check(who, folder, shapes, stored)
    tensors = _files.read_tensors(stored)
    leaves = {}
    for path in blueprint.leaves:
        tensor = tensors.pop(file_key(path)).astype(jnp.dtype(param_dtype))
        axes = _axes(layout, path, tensor.ndim)
        leaves[path] = jnp.asarray(tensor.transpose(np.argsort(axes)))
    return blueprint.fill(leaves), config


def write_model(
    who: str,
    directory: str | os.PathLike[str],
    model: Any,
    params: Mapping[str, Any] | None,
    layout: Layout,
) -> None:
    """Write the weights and `config.json`, whole or not at all."""
    own = functional(model)[1]
    tree = own if params is None else params
    _check_leaves(who, flatten(own), flatten(tree))
    if not isinstance(getattr(model, "blocks", nnx.List()), nnx.List):
        tree = unstack_layers(tree, layout.layers)
    tensors = {}
    for path, leaf in flatten(tree).items():
        inside = path.split("/")[0] not in layout.heads
        prefix = layout.written_prefix(model.config) if inside else ""
        array = np.asarray(leaf)
        axes = _axes(layout, path, array.ndim)
        tensors[prefix + file_key(path)] = array.transpose(axes)
    config = {key: allowed[0] for key, allowed in layout.supported.items()}
    config |= dataclasses.asdict(model.config)
    config = {k: v for k, v in config.items() if k not in layout.unwritten}
    config |= layout.written(model.config)
    with _files.replaced(Path(directory), (CONFIG,)) as folder:
        _files.write_tensors(folder / _files.WEIGHTS, tensors)
        _files.write_json(folder / CONFIG, config)


class Blueprint:
    """A model without numbers: says which leaves it needs, and takes them in.

    Leaves are those of the model with its layers in a list, whether or not the model
    has them stacked.
    """

    def __init__(self, layout: Layout, config: Any, **options: Any):
        abstract = nnx.eval_shape(
            lambda: layout.model(config, rngs=nnx.Rngs(0), **options)
        )
        self.graphdef, state = nnx.split(abstract, nnx.Param)
        flat = dict(nnx.to_flat_state(state))
        self.places = {to_path(parts): parts for parts in flat}
        self.stacked_at = layout.layers if options.get("scan") else None
        shapes = {
            tuple(path.split("/")): flat[parts].get_value()
            for path, parts in self.places.items()
        }
        params = nest(shapes)
        if self.stacked_at:
            params = jax.eval_shape(
                lambda p: unstack_layers(p, self.stacked_at), params
            )
        self.leaves: dict[str, Any] = flatten(params)

    def fill(self, leaves: Mapping[str, jax.Array]) -> Any:
        """The model with these parameters, by path."""
        params: Params = nest({tuple(path.split("/")): x for path, x in leaves.items()})
        if self.stacked_at:
            params = stack_layers(params, self.stacked_at)
        filled = {self.places[path]: leaf for path, leaf in flatten(params).items()}
        return nnx.merge(self.graphdef, nnx.State(nest(filled)))


def file_key(path: str) -> str:
    """Give the checkpoint's key of a parameter: `a/b/kernel` is `a.b.weight`."""
    *parents, last = path.split("/")
    renamed = last in ("kernel", "scale", "embedding")
    return ".".join([*parents, "weight" if renamed else last])


def read_config(who: str, file: Path, layout: Layout) -> Any:
    """Read the sizes, and refuse a config of another kind of model."""
    raw = _files.read_json(who, file)
    wrong = [
        f"'{name}': expected a number, got nothing"
        for name in layout.required
        if name not in raw
    ]
    extra, complaints = layout.extra(raw)
    found = {}
    for field in dataclasses.fields(layout.config):
        if field.name in raw and field.name not in extra:
            found[field.name] = _as(raw[field.name], field.type)
            if not _is_of(raw[field.name], field.type):
                wrong.append(
                    f"'{field.name}': expected a {_word(field.type)}, got "
                    f"{_files.shortened(repr(raw[field.name]))}"
                )
    wrong += [
        f"'{name}': expected {allowed[0]!r}, got {_files.shortened(repr(raw[name]))}"
        for name, allowed in layout.supported.items()
        if name in raw and raw[name] not in allowed
    ]
    if wrong + complaints:
        raise ValueError(
            f"{who}: '{file}' is no config of a {layout.kind}: "
            f"{'; '.join(wrong + complaints)}. Pass the folder of such a checkpoint."
        )
    return layout.config(**found, **extra)


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value of JSON can be one of a field of that type."""
    if kind is float:
        return is_number(value)
    allowed = {bool: (bool,), int: (int,)}
    return type(value) in allowed.get(kind, (int, type(None)))


def _as(value: Any, kind: Any) -> Any:
    """The value; a whole number as a float where the field is one."""
    return float(value) if kind is float and is_number(value) else value


def _word(kind: Any) -> str:
    """What such a field holds."""
    return "bool" if kind is bool else "number"


def _axes(layout: Layout, path: str, ndim: int) -> tuple[int, ...]:
    """Our axes of a parameter in the order of the file's."""
    turned = layout.transposed and path.endswith("/kernel")
    return TO_FILE[ndim] if turned else tuple(range(ndim))


def _file_shape(layout: Layout, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that the file has of a parameter."""
    return tuple(shape[axis] for axis in _axes(layout, path, len(shape)))


def _rename(
    who: str, layout: Layout, stored: Iterable[Stored], skip: str | None
) -> dict[str, Stored]:
    """Bring the file's keys to one spelling; drop buffers and what `skip` matches."""
    kept = [s for s in stored if skip is None or not re.search(skip, s.key)]
    renamed = [(_spell(entry.key, layout.prefix), entry) for entry in kept]
    counts = Counter(key for key, _ in renamed)
    twice = [repr(e.key) for key, e in renamed if counts[key] > 1]
    if twice:
        raise ValueError(
            f"{who}: tensors stored twice at {', '.join(sorted(twice))}: expected each "
            f"once, with or without '{layout.prefix}'. Pass skip=... to leave some out."
        )
    return {key: entry for key, entry in renamed if not re.search(layout.buffers, key)}


def _spell(key: str, prefix: str) -> str:
    """Drop the prefix, and the old names of a layer norm's parameters."""
    key = key.removeprefix(prefix)
    key = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", key)
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", key)


def _check(
    who: str,
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    stored: Mapping[str, Stored],
) -> None:
    """Refuse missing, unexpected, mis-shaped and non-float tensors, all at once."""
    both = sorted(shapes.keys() & stored.keys())
    groups = {
        "missing": [repr(key) for key in sorted(shapes.keys() - stored.keys())],
        "unexpected": [
            repr(stored[key].key) for key in sorted(stored.keys() - shapes.keys())
        ],
        "mis-shaped": [
            f"{key!r}: expected {shapes[key]}, got {stored[key].shape}"
            for key in both
            if stored[key].shape != shapes[key]
        ],
        "not floating": [
            f"{key!r}: got {stored[key].dtype}"
            for key in both
            if stored[key].dtype not in FLOATS
        ],
    }
    if any(groups.values()):
        listed = "; ".join(f"{what} {', '.join(k)}" for what, k in groups.items() if k)
        raise ValueError(
            f"{who}: the weights in '{folder}' do not fit its {CONFIG}: {listed}. "
            "Nothing was loaded. Correct the config, or pass skip=... for unexpected "
            "keys that you mean to leave out."
        )


def _check_leaves(who: str, own: Mapping[str, Any], leaves: Mapping[str, Any]) -> None:
    """Refuse a tree that is not the model's parameters, as plain arrays."""
    strange = [
        f"'{path}': got {type(leaf).__name__}"
        for path, leaf in leaves.items()
        if not isinstance(leaf, jax.Array | np.ndarray)
    ]
    if strange:
        raise TypeError(
            f"{who}: leaves that are no arrays at {'; '.join(strange)}. Expected "
            "arrays: call lowrank.materialize first."
        )
    wrong = [f"missing '{path}'" for path in own if path not in leaves]
    wrong += [f"unexpected '{path}'" for path in leaves if path not in own]
    wrong += [
        f"mis-shaped '{path}': expected {own[path].shape}, got {leaf.shape}"
        for path, leaf in leaves.items()
        if path in own and own[path].shape != leaf.shape
    ]
    if wrong:
        raise ValueError(
            f"{who}: params do not fit the model: {'; '.join(wrong)}. Pass a tree "
            "like that of functional(model)."
        )
