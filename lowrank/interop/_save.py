"""Adapted trees as PEFT directories."""

import math
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lowrank import _compat, _tree
from lowrank._adapted import split
from lowrank._base import Operator, Path, PyTree, as_struct, is_operator
from lowrank._select import Select, check_select
from lowrank.interop._adapter import Factors, write_adapter
from lowrank.interop._config import WRITTEN
from lowrank.interop._layout import factors_out, grouped_out, weight_out, wide
from lowrank.interop._names import parameter_name
from lowrank.interop._stacked import taken_apart
from lowrank.operators import Delta, DropoutLowRank, LowRank, Magnitude

_KINDS = (LowRank, DropoutLowRank)


def is_conv(path: Path, leaf: jax.ShapeDtypeStruct) -> bool:
    """Whether a leaf has the axes of a convolution's kernel, `[*kernel, in, out]`.

    Args:
        path: The leaf's path; not looked at.
        leaf: Shape and dtype of the leaf.

    Returns:
        True if it has more than two axes.

    Example:
        >>> leaf = jax.ShapeDtypeStruct((3, 3, 8, 16), jnp.float32)
        >>> lrk.interop.is_conv("conv/kernel", leaf)
        True
    """
    del path
    return len(leaf.shape) > 2


def save_peft(
    directory: str | os.PathLike[str],
    adapted: PyTree,
    *,
    rename: Callable[[Path], str | None] | None = None,
    conv: Select = is_conv,
    groups: Mapping[Path, int] | None = None,
    conv1d: Select | None = None,
    layers: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Write an adapted tree as a LoRA that PEFT can load.

    Low-rank terms become LoRA, several terms of one leaf side by side (the rank is
    their sum); ranks and scales may differ from leaf to leaf. So LoRI, dense or
    sparse, and merges whose result stays low-rank are written as a plain LoRA. DoRA's
    lengths are written as such. A plain delta is written as a whole module, with all
    its parameters (`modules_to_save`), or, at a bias alone, with `bias="all"`.

    Args:
        directory: Folder to write to; made if absent, the two files replaced.
        adapted: A tree that holds operators.
        rename: From a path to the parameter's torch name; None for a path, or for all,
            means `parameter_name`. For a model whose names there have one more leading
            part: `lambda path: "bert." + lrk.interop.parameter_name(path)`.
        conv: Which of the adapted leaves are kernels `[*kernel, in, out]` of
            convolutions; all others are written as Linear layers, their inputs and
            outputs flattened.
        groups: Number of groups of each grouped convolution, by path: a kernel
            `[*kernel, in / groups, out]` does not show it, and without it there is one.
            Of such a convolution PEFT's `A` takes the inputs of all groups, so it is
            written with zeros between them, and with `groups` times the rank.
        conv1d: Which of the kernels that are written whole are Conv1D's, `[in, out]`
            there too; all others are Linear's, and transposed. To be passed where
            `config` has `fan_in_fan_out`, since that does not tell.
        layers: Path of layers that the tree holds as one, with leaves `[layers, ...]`,
            such as `model/layers`; each is written by its number.
        config: Further entries of `adapter_config.json`, such as `task_type`,
            `base_model_name_or_path`, or `fan_in_fan_out` for the Conv1D of GPT-2.

    Raises:
        TypeError: If it is called under `jit`.
        ValueError: If no leaf has a low-rank term, a leaf holds what no LoRA can stand
            for, two leaves have one name, `groups` does not fit, a whole kernel may be
            a Linear's or a Conv1D's, or `config` has an entry that follows from
            the tree; all are listed.

    Example:
        >>> import json, pathlib, tempfile
        >>> params = {"dense": {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)}}
        >>> tx = lrk.lori(2, alpha=4)
        >>> adapted = tx.apply(params, tx.init(jax.random.key(0), params))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     lrk.interop.save_peft(folder, adapted)
        ...     text = pathlib.Path(folder, "adapter_config.json").read_text()
        >>> [json.loads(text)[k] for k in ("r", "lora_alpha", "target_modules")]
        [2, 4, ['dense']]

    Notes:
        A leaf that is a plain array is taken for the base, whatever was done to it.
        Dropout is written as `lora_dropout` where it is one number for all leaves.

    References:
        The checkpoint format of PEFT, as its release 0.21.2 writes and reads it.
    """
    check_select("save_peft", conv)
    _check_config(config or {})
    leaves = _tree.leaves("save_peft", adapted)
    _check_known(leaves)
    leaves = taken_apart("save_peft", leaves, layers)
    names = {path: _name(path, rename) for path in leaves}
    low, plain, bad = _sorted(leaves)
    bad += _crowded(names)
    counts = groups or {}
    bad += [f"'{path}' (in groups=, but not adapted)" for path in counts - low.keys()]
    modules = {}
    for path, parts in low.items():
        module = names[path].removesuffix(".weight")
        if module == names[path]:
            bad.append(f"'{path}' is '{names[path]}' there: no weight of a module")
            continue
        found = _factors(path, leaves[path], parts, conv, counts.get(path, 1))
        bad += [found] if isinstance(found, str) else []
        if isinstance(found, Factors):
            modules[module] = found
    dora = {own.m is not None for own in modules.values()}
    if len(dora) > 1:
        bad.append("some leaves have trained lengths (DoRA) and some not")
    whole, bias = _whole(plain, names, modules, bad)
    turned = _turned(leaves, names, whole, conv1d)
    if conv1d is None and (config or {}).get("fan_in_fan_out"):
        bad += [f"'{p}' (whole, of a Linear or a Conv1D: pass conv1d=)" for p in turned]
    if not low and not bad:
        bad.append("no leaf has a low-rank term")
    if bad:
        raise ValueError(
            f"save_peft: cannot write {'; '.join(bad)}. Nothing was written. Bring "
            "what is no low-rank term to one with lrk.merging.svd, or write dense "
            "weights with lrk.materialize."
        )
    stored = _stored(leaves, names, turned, whole, bias)
    write_adapter(
        directory,
        modules,
        others={name.rpartition(".")[0] for name in names.values()},
        saved=stored,
        whole=whole,
        bias="all" if bias else "none",
        extra=_dropout(low) | dict(config or {}),
    )


class _Parts:
    """What stands at one leaf: low-rank terms below an optional magnitude."""

    def __init__(self, terms: Sequence[LowRank], m: Magnitude | None):
        self.terms, self.m = terms, m


def _sorted(
    leaves: Mapping[Path, Any],
) -> tuple[dict[Path, _Parts], list[Path], list[str]]:
    """Leaves with low-rank terms, leaves with plain deltas, and all others' reasons."""
    low, plain, bad = {}, [], []
    for path, leaf in leaves.items():
        lengths = leaf if isinstance(leaf, Magnitude) else None
        base, terms = split(leaf.w if isinstance(leaf, Magnitude) else leaf)
        kinds = {type(term) for term in terms}
        odd = kinds - {*_KINDS, Delta}
        if odd or (is_operator(base) and base.trained):
            names = sorted(k.__name__ for k in odd) or [type(base).__name__]
            bad.append(f"'{path}' ({', '.join(names)})")
        elif Delta in kinds and (len(kinds) > 1 or lengths is not None):
            bad.append(f"'{path}' (a full delta beside low-rank terms or lengths)")
        elif Delta in kinds:
            plain.append(path)
        elif terms:
            low[path] = _Parts([t for t in terms if isinstance(t, LowRank)], lengths)
        elif lengths is not None:
            bad.append(f"'{path}' (lengths without a low-rank term)")
    return low, plain, bad


def _factors(
    path: Path, leaf: Any, parts: _Parts, conv: Select, groups: int
) -> Factors | str:
    """One adapted leaf in the layout of torch, or why it has none."""
    first = parts.terms[0]
    if any((t.a_dims, t.b_dims) != (first.a_dims, first.b_dims) for t in parts.terms):
        return f"'{path}' (terms over different axes)"
    if first.stack:
        return f"'{path}' (stacked layers: pass layers=)"
    last = len(leaf.shape) - 1
    is_kernel = conv(path, as_struct(leaf))
    if is_kernel and (first.a_dims, first.b_dims) != (tuple(range(last)), (last,)):
        return f"'{path}' (a convolution whose `a` does not hold [*kernel, in])"
    if parts.m is not None and parts.m.dims != first.b_dims:
        return f"'{path}' (lengths over other axes than the outputs)"
    if (odd := _odd_groups(groups, leaf.shape, is_kernel, parts)) is not None:
        return f"'{path}' ({odd})"
    if len(parts.terms) == 1:
        a, b, scale = first.a, first.b, float(first.scale)
    else:
        a = np.concatenate([wide(t.a) for t in parts.terms], axis=-1)
        b = np.concatenate([wide(t.scaled_b()) for t in parts.terms], axis=0)
        scale = 1.0
    if not math.isfinite(scale):
        return f"'{path}' (a scale of {scale})"
    m = None if parts.m is None else np.asarray(parts.m.m)
    embedding = path.endswith("embedding")
    arrays = np.asarray(a), np.asarray(b)
    found = factors_out(*arrays, m, scale, conv=is_kernel, embedding=embedding)
    return found if groups == 1 else grouped_out(found, groups)


def _odd_groups(
    groups: int, shape: tuple[int, ...], conv: bool, parts: _Parts
) -> str | None:
    """Why a leaf cannot have so many groups, or None."""
    if type(groups) is not int or groups < 1 or shape[-1] % groups:
        return f"{groups!r} groups of {shape[-1]} outputs"
    if groups > 1 and not conv:
        return f"{groups} groups of what is no convolution"
    if groups > 1 and parts.m is not None:
        return f"{groups} groups with lengths, which PEFT does not know"
    return None


def _whole(
    plain: Sequence[Path],
    names: Mapping[Path, str],
    modules: Mapping[str, Any],
    bad: list[str],
) -> tuple[set[str], bool]:
    """Modules to be stored whole, and whether biases are to be."""
    parents = {path: names[path].rpartition(".")[0] for path in plain}
    whole = {m for p, m in parents.items() if not names[p].endswith(".bias")}
    bad += [
        f"'{m}' (low-rank and a full delta in one module)" for m in whole & set(modules)
    ]
    bad += [f"'{p}' (a parameter of the root)" for p, m in parents.items() if not m]
    return whole, any(module not in whole for module in parents.values())


def _turned(
    leaves: Mapping[Path, Any],
    names: Mapping[Path, str],
    whole: set[str],
    conv1d: Select | None,
) -> set[Path]:
    """Kernels of two axes in whole modules, but for those of Conv1D layers."""
    return {
        path
        for path, leaf in leaves.items()
        if names[path].rpartition(".")[0] in whole
        and path.endswith("/kernel")
        and len(leaf.shape) == 2
        and not (conv1d is not None and conv1d(path, as_struct(leaf)))
    }


def _stored(
    leaves: Mapping[Path, Any],
    names: Mapping[Path, str],
    turned: set[Path],
    whole: set[str],
    bias: bool,
) -> dict[str, np.ndarray]:
    """The parameters of whole modules, and all biases if any is to be stored."""
    stored = {}
    for path, leaf in leaves.items():
        module, _, last = names[path].rpartition(".")
        if module in whole or (bias and last == "bias"):
            conv = path.endswith("/kernel") and len(leaf.shape) > 2
            kernel = conv or path in turned
            stored[names[path]] = weight_out(_value(leaf), kernel=kernel)
    return stored


def _value(leaf: Any) -> np.ndarray:
    """The numbers of a leaf; of a delta, summed in float32 or wider."""
    if isinstance(leaf, Delta):
        return _value(leaf.w) + wide(leaf.d)
    return wide(leaf.dense() if is_operator(leaf) else leaf)


def _name(path: Path, rename: Callable[[Path], str | None] | None) -> str:
    """The torch name of a leaf."""
    own = rename(path) if rename is not None else None
    return parameter_name(path) if own is None else own


def _crowded(names: Mapping[Path, str]) -> list[str]:
    """Names that two leaves have."""
    places = defaultdict(list)
    for path, name in names.items():
        places[name].append(path)
    crowded = {name: paths for name, paths in places.items() if len(paths) > 1}
    return [f"{_tree.quoted(paths)}: all are '{n}'" for n, paths in crowded.items()]


def _dropout(low: Mapping[Path, _Parts]) -> dict[str, Any]:
    """The entry `lora_dropout`, if all terms have one rate."""
    terms = [term for parts in low.values() for term in parts.terms]
    rates = {float(getattr(term, "rate", 0.0)) for term in terms}
    return {"lora_dropout": rates.pop()} if len(rates) == 1 else {}


def _check_config(config: Mapping[str, Any]) -> None:
    """Refuse entries that follow from the tree.

    Raises:
        ValueError: If there are any.
    """
    own = sorted(WRITTEN & set(config))
    if own:
        raise ValueError(
            f"save_peft: config holds {', '.join(own)}, which follow from the tree. "
            "Leave them out."
        )


def _check_known(leaves: Mapping[Path, Any]) -> None:
    """Refuse traced and abstract terms.

    Raises:
        TypeError: If there are any.
    """
    unknown = [
        path
        for path, leaf in leaves.items()
        if isinstance(leaf, Operator)
        and not all(map(_compat.is_known, jax.tree.leaves(_own(leaf))))
    ]
    if unknown:
        raise TypeError(
            f"save_peft: no numbers at {_tree.quoted(unknown)}. Call it outside jit."
        )


def _own(leaf: Any) -> Any:
    """The arrays of a leaf without its base."""
    inner = leaf.w if isinstance(leaf, Magnitude) else leaf
    return [*([leaf.m] if leaf is not inner else []), *split(inner)[1]]
