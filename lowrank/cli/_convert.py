"""`lowrank convert`: PEFT directories and state files, and smaller ranks."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import lowrank as lrk
from lowrank import _files
from lowrank._combine import state_parts
from lowrank.cli import UsageError
from lowrank.cli._inspect import change_norm, kind_of
from lowrank.cli._merge import truncated
from lowrank.cli._report import Report, check_out
from lowrank.interop import (
    load_state,
    parameter_name,
    read_notes,
    save_peft,
    save_state,
)
from lowrank.interop._adapter import Adapter, Factors, open_adapter, write_adapter
from lowrank.interop._config import WRITTEN
from lowrank.interop._load import bare_state
from lowrank.operators import Magnitude

SUFFIXES = (".npz", ".safetensors")


@dataclasses.dataclass(frozen=True)
class Options:
    """Convert between adapters of PEFT and state files, or to a smaller rank.

    A destination that ends in .safetensors or .npz is a state file, as
    lowrank.interop.load_state reads it: that of lrk.lora (with --lori of lrk.lori, its
    A frozen), by the paths of the reference models. Any other destination is an
    adapter's folder. A sparse LoRI state stores no shape of its B: pass --base.

    Examples:
      lowrank convert my-adapter state.safetensors
      lowrank convert my-adapter state.npz --lori
      lowrank convert state.safetensors my-adapter
      lowrank convert my-adapter smaller --rank 4
    """

    source: tyro.conf.Positional[Path]
    """An adapter's folder, or a state file."""
    target: tyro.conf.Positional[Path]
    """An adapter's folder, or a state file that ends in .safetensors or .npz."""
    rank: int | None = None
    """The rank to come down to, at least 1; lower ranks stay. From folder to folder."""
    lori: bool = False
    """Freeze A in the state file: that of lrk.lori."""
    base: Path | None = None
    """The checkpoint that the adapter is for: the shapes of its tensors are read."""
    overwrite: bool = False
    """Replace what is there already."""
    json: bool = False
    """One JSON object for each line, the totals last."""


def run(options: Options) -> None:
    """Run the command."""
    check_out(options.target, (options.source,), options.overwrite)
    from_state = options.source.suffix in SUFFIXES
    to_state = options.target.suffix in SUFFIXES
    if options.rank is not None and (from_state or to_state or options.rank < 1):
        raise UsageError("--rank is at least 1, and for two folders of adapters")
    if options.lori and not to_state:
        raise UsageError("--lori is for a state file as the target")
    if from_state and to_state:
        state, notes = load_state(options.source), read_notes(options.source)
        save_state(options.target, state, notes=notes)
        _done(options, len(jax.tree.leaves(state)), "arrays")
    elif from_state:
        _to_folder(options)
    elif to_state:
        _to_state(options, open_adapter("convert", options.source))
    else:
        _smaller(options, open_adapter("convert", options.source))


def _done(options: Options, count: int, what: str) -> None:
    report = Report("", options.json)
    report.close(f"{count} {what} written to {options.target}", written=count)


def _to_state(options: Options, adapter: Adapter) -> None:
    """A state file of a folder."""
    if adapter.saved or (options.lori and adapter.config.dora):
        raise ValueError(
            f"'{options.source}' is more than low-rank terms: it has whole modules, or "
            "lengths beside --lori. Load it with lrk.interop.load_peft over the base"
        )
    state = bare_state(adapter)
    if options.lori:
        state = _frozen(state)
    save_state(options.target, state, notes={"peft": adapter.config.raw})
    _done(options, len(adapter.modules), "modules")


def _frozen(state: lrk.State) -> lrk.State:
    """The state of LoRI that has the factors of a LoRA."""
    single = not isinstance(state.trainable, tuple)
    members = zip(*(((p,) if single else p) for p in state), strict=True)
    halves = [
        (
            {path: {"b": own["b"]} for path, own in trained.items()},
            {path: {"a": trained[path]["a"], **own} for path, own in fixed.items()},
        )
        for trained, fixed in members
    ]
    if single:
        return lrk.State(*halves[0])
    return lrk.State(*(tuple(part) for part in zip(*halves, strict=True)))


def _smaller(options: Options, adapter: Adapter) -> None:
    """A folder of a folder, at most of some rank."""
    report = Report(f"Adapter {options.source}", options.json)

    def cut() -> Iterator[tuple[str, Factors]]:
        for name in adapter.modules:
            own = adapter.read(name)
            new, share = _cut(own, options.rank or own.rank)
            row = {"module": name, "kind": kind_of(own), "was": own.rank}
            report.add(**row, rank=new.rank, cut_off=share, norm=change_norm(new))
            yield name, new

    raw, saved = adapter.config.raw, adapter.saved
    biases = [n for n in saved if n.endswith(".bias") and adapter.config.biases]
    whole = {n.rpartition(".")[0] for n in saved if n not in biases}
    write_adapter(
        options.target,
        cut(),
        saved=saved,
        whole=whole,
        bias="all" if biases else "none",
        extra=noted(raw),
    )
    count = len(adapter.modules)
    report.close(f"{count} modules written to {options.target}", modules=count)


def noted(raw: dict[str, Any]) -> dict[str, Any]:
    """Entries of a config that do not follow from the weights."""
    names = (
        "base_model_name_or_path",
        "fan_in_fan_out",
        "lora_dropout",
        "revision",
        "task_type",
    )
    return {n: raw[n] for n in names if n in raw and n not in WRITTEN}


def _cut(own: Factors, rank: int) -> tuple[Factors, float]:
    """A module at most of some rank, and the share of the squared norm cut off."""
    if own.rank <= rank:
        return own, 0.0
    a = np.asarray(own.a, np.float32).reshape(own.rank, -1).T
    b = np.asarray(own.b, np.float32).reshape(-1, own.rank).T
    a, b, share = truncated(a, own.scale * b, rank)
    first = a.T.reshape(rank, *own.a.shape[1:])
    second = b.T.reshape(own.b.shape[0], rank, *own.b.shape[2:])
    return own._replace(a=first, b=second, scale=1.0), share


def _to_folder(options: Options) -> None:
    """A folder of a state file."""
    state = load_state(options.source)
    raw = read_notes(options.source).get("peft")
    tree = _operators(state, _shapes(options.base))
    extra = noted(raw) if isinstance(raw, dict) else {}
    save_peft(options.target, tree, config=extra)
    _done(options, len(tree), "modules")


def _shapes(base: Path | None) -> dict[str, tuple[int, ...]]:
    """Shapes by torch name."""
    entries = [] if base is None else _files.list_tensors("convert", base)
    return {entry.key: entry.shape for entry in entries}


def _operators(state: lrk.State, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """An operator for each path of a state, over a base that has a shape alone."""
    leaves: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for trained, fixed in zip(*map(state_parts, state), strict=True):
        for path in {**trained, **fixed}:
            leaves[path].append({**fixed.get(path, {}), **trained.get(path, {})})
    tree: dict[str, Any] = {}
    bad = []
    for path, parts in leaves.items():
        for own in parts:
            above = _above(path, own, tree.get(path), shapes)
            if isinstance(above, str):
                bad.append(f"'{path}': {above}")
                break
            tree[path] = above
    if bad:
        raise ValueError(
            f"cannot write an adapter: {'; '.join(bad)}. lrk.interop.save_peft writes "
            "adapted trees, with their base at hand"
        )
    return tree


def _shape(name: str, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    """The shape of a tensor, whose name may have one leading part more or less."""
    inner = name.partition(".")[2]
    found = [
        s for k, s in shapes.items() if k in (name, inner) or k.endswith(f".{name}")
    ]
    return found[0] if len(found) == 1 else None


def _above(
    path: str, own: dict[str, Any], below: Any, shapes: dict[str, tuple[int, ...]]
) -> Any:
    """The operator of one member over what stands below it, or why there is none."""
    if set(own) == {"m"} and below is not None:
        dims = (len(below.shape) - 1,)
        return Magnitude._make(
            w=below, m=own["m"], norm=own["m"], dims=dims, detach=True
        )
    if not {"a", "b", "scale"} <= set(own) or set(own) - {"a", "b", "scale", "index"}:
        return f"holds {', '.join(sorted(own))}, not a, b and scale"
    a, b = own["a"], own["b"]
    if "index" in own:
        found = _shape(parameter_name(path), shapes)
        if found is None:
            return "packed under a mask: pass the --base whose tensor it adapts"
        # [out, in] of a Linear; [in, out] of a Conv1D or an embedding.
        out = found[1] if len(found) == 2 and found[0] == a.shape[0] else found[0]
        flat = jnp.zeros(a.shape[-1] * out).at[own["index"]].set(b, mode="drop")
        b = flat.reshape(a.shape[-1], out)
    shape = (*a.shape[:-1], *b.shape[1:])
    w = jax.ShapeDtypeStruct(shape, jnp.float32) if below is None else below
    return lrk.LowRank(w, a, b, own["scale"])
