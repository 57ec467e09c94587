"""`lowrank merge`: adapters of PEFT to one, leaf by leaf."""

import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import lowrank as lrk
from lowrank.cli import UsageError
from lowrank.cli._inspect import change_norm, kind_of
from lowrank.cli._report import Report, check_out
from lowrank.interop._adapter import Adapter, Factors, open_adapter, write_adapter
from lowrank.interop._layout import axes_of, factors_in, factors_out
from lowrank.interop._names import module_path
from lowrank.linalg import factored_svd
from lowrank.operators import Magnitude

# Those that need nothing but the adapters.
METHODS = (
    "breadcrumbs",
    "concat",
    "dare",
    "della",
    "iso",
    "iso_cts",
    "knots",
    "lego",
    "linear",
    "magnitude",
    "svd",
    "task_arithmetic",
    "ties",
    "tsv",
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Merge adapters of PEFT into one, by any method that needs the adapters alone.

    The methods are those of lowrank.merging: breadcrumbs, concat, dare, della, iso,
    iso_cts, knots, lego, linear, magnitude, svd, task_arithmetic, ties, tsv. One module
    at a time is in memory. A result of full rank (ties, dare, ...)
    needs --rank: its best approximation of that rank is written, and what was cut off
    is told as a share of its squared norm.

    Examples:
      lowrank merge math code --out both
      lowrank merge math code safety --weights 0.4 0.4 0.4 --out all
      lowrank merge math code --method ties --density 0.5 --rank 32 --out both
      lowrank merge math code --method dare --density 0.3 --seed 1 --rank 32 --out both
    """

    adapters: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of adapters."""
    out: Path
    """Folder of the result."""
    method: str = "concat"
    """Name of the method."""
    weights: tuple[float, ...] = ()
    """One weight for each adapter; by default ones."""
    density: float | None = None
    """Share of entries that is kept, in (0, 1], for methods that prune."""
    rank: int | None = None
    """Rank of the result, at least 1; where a module's own is lower it stays."""
    seed: int | None = None
    """Seed of methods that draw, such as dare."""
    conformance: str | None = None
    """Whose code to agree with, for methods that differ: paper, peft, mergekit."""
    scale: float | None = None
    """Factor of the merged change, for methods that have one."""
    overwrite: bool = False
    """Replace files of the result that are there already."""
    json: bool = False
    """One JSON object for each line, the totals last."""


def run(options: Options) -> None:
    """Run the command."""
    method, told = _method(options)
    check_out(options.out, options.adapters, options.overwrite)
    adapters = [open_adapter("merge", path) for path in options.adapters]
    _check(adapters)
    report = Report(f"{options.method} of {len(adapters)} adapters", options.json)
    names = list(dict.fromkeys(name for own in adapters for name in own.modules))

    def merged() -> Iterator[tuple[str, Factors]]:
        for name in names:
            found = [a.read(name) if name in a.modules else None for a in adapters]
            own, share = _leaf(name, found, method, told, options)
            ranks = tuple(0 if f is None else f.rank for f in found)
            row = {"module": name, "kind": kind_of(own), "ranks": ranks}
            report.add(**row, rank=own.rank, cut_off=share, norm=change_norm(own))
            yield name, own

    write_adapter(options.out, merged(), extra=_shared(adapters))
    foot = f"{len(names)} modules written to {options.out}"
    report.close(foot, modules=len(names), out=options.out)


def _method(options: Options) -> tuple[Any, dict[str, Any]]:
    """The function and its options.

    Raises:
        UsageError: If there is no such method, or its options are not those given.
    """
    if options.method not in METHODS:
        raise UsageError(f"no method {options.method!r}: one of {', '.join(METHODS)}")
    method = getattr(lrk.merging, options.method)
    known = inspect.signature(method).parameters
    key = None if options.seed is None else jax.random.key(options.seed)
    given = {"density": options.density, "key": key, "rank": options.rank}
    given |= {"conformance": options.conformance, "scale": options.scale}
    told = {name: value for name, value in given.items() if value is not None}
    flags = {name: "seed" if name == "key" else name for name in given}
    odd = [flags[n] for n in told if n not in known and n != "rank"]
    if odd:
        raise UsageError(f"{options.method} has no --{', --'.join(odd)}")
    lacking = [
        flags[name]
        for name, parameter in known.items()
        if parameter.default is parameter.empty and name in flags and name not in told
    ]
    if lacking:
        raise UsageError(f"{options.method} needs --{', --'.join(lacking)}")
    if options.rank is not None and options.rank < 1:
        raise UsageError(f"--rank must be at least 1, got {options.rank}")
    if not options.adapters:
        raise UsageError("no adapters: name their folders")
    if options.weights and len(options.weights) != len(options.adapters):
        raise UsageError(
            f"{len(options.weights)} weights for {len(options.adapters)} adapters"
        )
    return method, {name: value for name, value in told.items() if name in known}


def _check(adapters: list[Adapter]) -> None:
    """Refuse adapters that hold more than low-rank terms, or do not fit each other.

    Raises:
        ValueError: If there are any; all are listed.
    """
    bad, shapes = [], {}
    for own in adapters:
        if own.config.dora:
            bad.append(f"'{own.directory}' has trained lengths (DoRA)")
        whole = [f"'{name}'" for name in own.saved]
        bad += [f"'{own.directory}' stores {', '.join(whole)} whole"] if whole else []
        for name, found in own.modules.items():
            shape = (kind_of(found), *found.a.shape[1:], found.b.shape[0])
            if shapes.setdefault(name, shape) != shape:
                bad.append(f"'{name}' is {shape} in '{own.directory}', {shapes[name]}")
    if bad:
        raise ValueError(
            f"cannot merge: {'; '.join(bad)}. Merge low-rank terms of one base; whole "
            "modules need the base: lrk.interop.load_peft and lrk.merging"
        )


def _leaf(
    name: str, found: list[Factors | None], method: Any, told: Any, options: Options
) -> tuple[Factors, float]:
    """One merged module, and the share of its squared norm that was cut off."""
    first = next(own for own in found if own is not None)
    shape = (*first.a.shape[2:], first.a.shape[1], first.b.shape[0])
    base = jax.ShapeDtypeStruct(shape, jnp.float32)  # a merge never looks at its values
    path = module_path(name, embedding=first.embedding)  # draws depend on it
    trees = [{path: base if own is None else operator(own, base)} for own in found]
    merged = method(trees, options.weights or None, **told)[path]
    total = sum(own.rank for own in found if own is not None)
    full = isinstance(merged, lrk.Delta)
    n, m = int(np.prod(shape[:-1])), shape[-1]
    if full and options.rank is None and min(n, m) > total:
        raise UsageError(f"the result of {options.method} has full rank: pass --rank")
    if full:
        d = jnp.asarray(merged.d).reshape(n, m)
        a, b = (jnp.eye(n), d) if n <= m else (d, jnp.eye(m))
    else:
        a, b = merged.a.reshape(n, -1), merged.scaled_b().reshape(-1, m)
    a, b, share = truncated(a, b, options.rank or a.shape[-1])
    kinds = {"conv": first.conv, "embedding": first.embedding}
    own = factors_out(a.reshape(*shape[:-1], -1), b, None, 1.0, **kinds)
    return own, share


def operator(own: Factors, base: Any) -> Any:
    """A module's term over a base, of which a merge knows the shape alone."""
    axes = axes_of(own, len(base.shape), None)
    if axes is None:
        raise ValueError("a module that is neither a matrix nor a convolution")
    held = {"a_dims": axes.a_dims, "b_dims": axes.b_dims}
    found = factors_in(own, axes, tuple(base.shape))
    arrays = {name: np.asarray(x, np.float32) for name, x in found.items()}
    term = lrk.LowRank(base, arrays["a"], arrays["b"], own.scale, **held)
    return Magnitude(term, arrays["m"]) if "m" in arrays else term


def truncated(a: Any, b: Any, rank: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Factors of at most some rank, and the share of the squared norm cut off."""
    if a.shape[-1] <= rank:
        return np.asarray(a), np.asarray(b), 0.0
    u, s, vt = (np.asarray(x) for x in factored_svd(jnp.asarray(a), jnp.asarray(b)))
    root, energy = np.sqrt(s[:rank]), np.square(s.astype(np.float64))
    share = float(energy[rank:].sum() / max(energy.sum(), 1e-300))
    return u[:, :rank] * root, root[:, None] * vt[:rank], share


def _shared(adapters: list[Adapter]) -> dict[str, Any]:
    """Entries of the configs on which all agree."""
    names = ("base_model_name_or_path", "fan_in_fan_out", "revision", "task_type")
    raws = [own.config.raw for own in adapters]
    return {
        name: raws[0].get(name)
        for name in names
        if all(raw.get(name) == raws[0].get(name) for raw in raws)
    }
