"""`lowrank deploy`: the checkpoint that an RRAM chip effectively holds."""

import dataclasses
import math
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import lowrank as lrk
from lowrank import _files
from lowrank._files import Stored
from lowrank.cli import UsageError
from lowrank.cli._inspect import is_adaptable, pattern
from lowrank.cli._merge import operator
from lowrank.cli._report import Report, check_out
from lowrank.interop._adapter import Adapter, open_adapter, refuse
from lowrank.interop._names import find_paths, module_path, parameter_name

PRESETS = (
    "chen2015_a",
    "chen2015_b",
    "cmo_hfox",
    "ideal",
    "liu2017",
    "milo2021",
    "wan2022",
    "yousuf2025",
)
_EMBEDDINGS = re.compile(r"embed|^wte$|^wpe$")
_BESIDE = (".json", ".txt", ".model")  # the config and the tokenizer
# Without these a folder is no checkpoint.
_SEALS = (_files.WEIGHTS, _files.INDEX, "config.json")
_MOST_BESIDE = 256 * 2**20


@dataclasses.dataclass(frozen=True)
class Options:
    """Write the weights that an RRAM chip effectively has, and their error per tensor.

    Each selected weight [out, in] of a checkpoint is programmed onto crossbars of a
    sampled chip, columns being outputs, and read back; all else is copied. With an
    adapter its change is on the chip too, or with --digital beside it. One tensor at a
    time is in memory. The chip is that of lrk.rram.crossbar with the same seed and
    paths. The error is |effective - wanted| / |wanted|, and the largest entry.

    The devices are chen2015_a, chen2015_b, cmo_hfox, ideal, liu2017, milo2021, wan2022
    and yousuf2025 of lowrank.rram.

    Examples:
      lowrank deploy my-model --device liu2017 --out on-chip
      lowrank deploy my-model --adapter mine --device wan2022 --seed 3 --out on-chip
      lowrank deploy my-model --select "mlp.*weight$" --tile 128 --out on-chip --json
    """

    base: tyro.conf.Positional[Path]
    """Folder of the checkpoint."""
    out: Path
    """Folder of the effective checkpoint."""
    device: str = "ideal"
    """A published device, or ideal."""
    adapter: Path | None = None
    """Folder of an adapter of PEFT."""
    digital: bool = False
    """Keep the adapter's change beside the chip, in full precision."""
    select: str | None = None
    """Regular expression, searched in tensor names; by default all matrices named
    weight but embeddings."""
    tile: int | None = None
    """Rows of one crossbar; by default all rows of a weight."""
    seed: int = 0
    """Seed of the chip."""
    fan_in_fan_out: bool = False
    """All selected weights are [in, out], as in GPT-2; an adapter's config says so
    too."""
    overwrite: bool = False
    """Replace what is there already."""
    json: bool = False
    """One JSON object for each line, the totals last."""


def run(options: Options) -> None:
    """Run the command."""
    sources = (options.base, *([options.adapter] if options.adapter else []))
    check_out(options.out, sources, options.overwrite)
    chip = lrk.rram.crossbar(_device(options.device), tile=options.tile)
    entries = _files.list_tensors("deploy", options.base)
    adapter = None
    if options.adapter is not None:
        adapter = open_adapter("deploy", options.adapter)
    changes = _changes(adapter, entries)
    chosen = _chosen(options, entries)
    report = Report(f"{options.base} on {options.device}", options.json)
    worker = _Worker(options, adapter, changes, chosen, chip, report)
    _write(options, entries, worker.tensor)
    mean = math.sqrt(worker.lost / worker.wanted) if worker.wanted else 0.0
    report.close(
        f"{len(chosen)} of {len(entries)} tensors on the chip, {len(changes)} changed "
        f"by the adapter, error {mean:.4g} in all; written to {options.out}",
        on_chip=len(chosen),
        changed=len(changes),
        error=mean,
        out=options.out,
    )


def _device(name: str) -> Any:
    """A device by its name.

    Raises:
        UsageError: If there is none.
    """
    if name not in PRESETS:
        raise UsageError(f"no device {name!r}: one of {', '.join(PRESETS)}")
    make: Callable[[], Any] = lrk.rram.Device
    return (make if name == "ideal" else getattr(lrk.rram, name))()


def _chosen(options: Options, entries: list[Stored]) -> set[str]:
    """Keys of the tensors that go onto the chip.

    Raises:
        ValueError: If the selection is empty, or holds what is no matrix.
    """
    wanted = pattern(options.select)
    if wanted is None:
        matrices = [e for e in entries if is_adaptable(e) and len(e.shape) == 2]
        named = [e.key for e in matrices if e.key.split(".")[-1] == "weight"]
        found = {k for k in named if not _EMBEDDINGS.search((k.split(".") * 2)[-2])}
    else:
        found = {entry.key for entry in entries if wanted.search(entry.key)}
    odd = [
        f"'{e.key}' {e.dtype}{list(e.shape)}"
        for e in entries
        if e.key in found and not (is_adaptable(e) and len(e.shape) == 2)
    ]
    if odd or not found:
        raise ValueError(
            f"--select takes what is no floating matrix: {', '.join(odd)}"
            if odd
            else "no tensor is selected: lowrank inspect shows their names"
        )
    return found


def _changes(adapter: Adapter | None, entries: list[Stored]) -> dict[str, str]:
    """For each changed tensor of the checkpoint, its name in the adapter.

    Raises:
        ValueError: If the adapter has what the checkpoint lacks.
    """
    if adapter is None:
        return {}
    shapes = {path_of(e.key): np.broadcast_to(0, e.shape) for e in entries}
    names = [*(f"{name}.weight" for name in adapter.modules), *adapter.saved]
    paths = find_paths(names, shapes, None).paths
    stray = [f"'{name}'" for name, path in paths.items() if path is None]
    refuse("deploy", adapter.directory, {"unexpected": stray})
    return {parameter_name(str(path)): name for name, path in paths.items()}


def path_of(key: str) -> str:
    """The path that the reference models give a tensor of a checkpoint."""
    module, _, last = key.rpartition(".")
    if last == "weight":
        return module_path(module, embedding=False)
    return key.replace(".", "/")


class _Worker:
    """Makes each tensor of the effective checkpoint, and reports its error."""

    def __init__(
        self,
        options: Options,
        adapter: Adapter | None,
        changes: Mapping[str, str],
        chosen: set[str],
        chip: lrk.Transform,
        report: Report,
    ):
        self.options, self.adapter, self.changes = options, adapter, changes
        self.chosen, self.chip, self.report = chosen, chip, report
        raw = {} if adapter is None else adapter.config.raw
        self.turned = not (options.fan_in_fan_out or bool(raw.get("fan_in_fan_out")))
        self.key = jax.random.key(options.seed)
        self.lost = self.wanted = 0.0

    def tensor(self, entry: Stored) -> np.ndarray:
        """One tensor in the dtype and the layout of the checkpoint."""
        stored = _files.read_tensors({"x": entry})["x"]
        if entry.key not in self.changes and entry.key not in self.chosen:
            return stored
        name = self.changes.get(entry.key)
        turned = self.is_turned(entry.shape, name)
        w = jnp.asarray(_moved(stored, turned), jnp.float32)
        changed = w if name is None else self.changed(entry, name, w, turned)
        effective = changed
        if entry.key in self.chosen:
            digital = self.options.digital
            effective = self.programmed(path_of(entry.key), w if digital else changed)
            effective = effective + (changed - w) if digital else effective
            self.note(entry, np.asarray(changed), np.asarray(effective))
        return _moved(np.asarray(effective), turned, back=True).astype(stored.dtype)

    def is_turned(self, shape: tuple[int, ...], name: str | None) -> bool:
        """Whether a tensor is [out, in, *kernel]: an adapter tells, or the options."""
        module = (name or "").removesuffix(".weight")
        if self.adapter is not None and module in self.adapter.modules:
            own = self.adapter.modules[module]
            pair = own.b.shape[0], own.a.shape[1]
            if not own.embedding and pair[0] != pair[1] and len(shape) == 2:
                return shape == pair
            return not own.embedding and (self.turned or len(shape) > 2)
        return len(shape) > 2 or (self.turned and len(shape) == 2)

    def programmed(self, path: str, w: jax.Array) -> Any:
        """What the chip holds in place of a matrix [in, out]."""
        state = self.chip.init(self.key, {path: w})
        return lrk.materialize(self.chip.apply({path: w}, state))[path]

    def changed(self, entry: Stored, name: str, w: jax.Array, turned: bool) -> Any:
        """A weight [in, out] with the adapter's change, or in whole from it."""
        adapter = self.adapter
        if adapter is None:
            return w
        if name not in adapter.saved:
            return operator(adapter.read(name.removesuffix(".weight")), w).dense()
        new = _files.read_tensors({"x": adapter.saved[name]})["x"]
        if new.shape != entry.shape:
            raise ValueError(
                f"'{name}' of the adapter: expected {entry.shape}, got {new.shape}"
            )
        return jnp.asarray(_moved(new, turned), jnp.float32)

    def note(self, entry: Stored, wanted: np.ndarray, got: np.ndarray) -> None:
        """One row of the report."""
        lost, size = (
            float(np.sum(np.square(x, dtype=np.float64)))
            for x in (got - wanted, wanted)
        )
        self.lost, self.wanted = self.lost + lost, self.wanted + size
        error = math.sqrt(lost / size) if size else 0.0
        largest = float(np.abs(got - wanted).max(initial=0.0))
        row = {"tensor": entry.key, "shape": entry.shape, "error": error}
        self.report.add(**row, largest=largest, changed=entry.key in self.changes)


def _moved(x: np.ndarray, turned: bool, back: bool = False) -> np.ndarray:
    """From [out, in, *kernel] to [*kernel, in, out], or back."""
    if not turned:
        return x
    axes = (-1, -2), (0, 1)
    return np.moveaxis(x, *axes) if back else np.moveaxis(x, *axes[::-1])


def _write(
    options: Options, entries: list[Stored], tensor: Callable[[Stored], np.ndarray]
) -> None:
    """The checkpoint, file by file, with what lies beside it."""
    with _files.replaced(options.out, _SEALS) as folder:
        for file in dict.fromkeys(entry.file for entry in entries):
            own = [entry for entry in entries if entry.file == file]
            _files.write_streamed(folder / file.name, own, tensor)
        for file in sorted(options.base.iterdir()):
            fits = file.is_file() and file.suffix in _BESIDE
            if fits and file.stat().st_size <= _MOST_BESIDE:
                _files.write_atomically(
                    folder / file.name, lambda path, f=file: shutil.copyfile(f, path)
                )
