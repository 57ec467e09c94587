"""An adapter directory by module: which tensors make up which adapted module."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lowrank import _files
from lowrank._files import FLOATS, Stored
from lowrank.interop._config import CONFIG, Config, made_config, read_config

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
_LONGEST_KEY = 256

# What follows a module's name, and what it is.
_PARTS = (
    (re.compile(r"\.lora_A\.weight$"), "a"),
    (re.compile(r"\.lora_B\.weight$"), "b"),
    (re.compile(r"\.lora_embedding_A$"), "embedding_a"),
    (re.compile(r"\.lora_embedding_B$"), "embedding_b"),
    (re.compile(r"\.lora_magnitude_vector(\.weight)?$"), "m"),
)

# What PEFT stores of the base: an adapted embedding, the bias of a whole module.
_BASE = re.compile(r"\.(base_layer\.(?=weight$)|original_module\.(?=bias$))")


class Factors(NamedTuple):
    """One adapted module, its arrays as torch has them, or where they are stored.

    Attributes:
        a: `[r, in]`; of a convolution `[r, in, *kernel]`.
        b: `[out, r]`; of a convolution `[out, r, 1, ...]`.
        m: DoRA's lengths `[out]`, `[1, out, 1, ...]` of a convolution, or None.
        scale: Of their product.
        embedding: Whether the module is an embedding.
    """

    a: Any
    b: Any
    m: Any
    scale: float
    embedding: bool

    @property
    def rank(self) -> int:
        """Inner size of the product."""
        return self.a.shape[0]

    @property
    def conv(self) -> bool:
        """Whether the module is a convolution."""
        return len(self.a.shape) > 2

    @property
    def keys(self) -> tuple[str, str, str]:
        """What follows the module's name in a file."""
        kind = "lora_embedding_{}" if self.embedding else "lora_{}.weight"
        return kind.format("A"), kind.format("B"), "lora_magnitude_vector"


class Adapter(NamedTuple):
    """An adapter directory.

    Attributes:
        directory: Where it lies.
        config: Its config.
        modules: By module name, without the prefix of PEFT's wrapper.
        saved: Parameters that are stored whole, by their torch name.
        bases: Base weights that PEFT stores beside an adapted embedding, by torch name.
    """

    directory: Path
    config: Config
    modules: dict[str, Factors]
    saved: dict[str, Stored]
    bases: dict[str, Stored]

    def read(self, name: str) -> Factors:
        """One module, its arrays read."""
        found = self.modules[name]
        stored = {n: x for n, x in found._asdict().items() if isinstance(x, Stored)}
        read = _files.read_tensors(stored)
        return found._replace(a=read["a"], b=read["b"], m=read.get("m"))


def open_adapter(who: str, directory: Any) -> Adapter:
    """Read the config and the header of an adapter, and check that they fit.

    Raises:
        FileNotFoundError: If a file is absent.
        ValueError: If a file cannot be read, or keys are missing, unexpected,
            mis-shaped or not floating; all are listed.
    """
    folder = Path(directory)
    config = read_config(who, folder)
    if not (folder / WEIGHTS).is_file() and (folder / "adapter_model.bin").is_file():
        raise ValueError(
            f"{who}: '{folder}' holds a pickle, adapter_model.bin, which is never "
            f"loaded: expected '{WEIGHTS}'. Save it again with safe_serialization=True."
        )
    found: dict[str, dict[str, Stored]] = defaultdict(dict)
    saved, bases, wrong = {}, {}, defaultdict(list)
    for entry in _files.list_file(who, folder / WEIGHTS):
        name = entry.key.removeprefix(PREFIX)
        if entry.dtype not in FLOATS:
            wrong["not floating"].append(f"{entry.key!r}: got {entry.dtype}")
        part = next(((p, k) for p, k in _PARTS if p.search(name)), None)
        if name == entry.key or len(name) > _LONGEST_KEY:
            wrong["unexpected"].append(repr(entry.key))
        elif part is not None:
            found[part[0].sub("", name)][part[1]] = entry
        elif found_base := _BASE.search(name):
            bases[name.replace(found_base.group(), ".", 1)] = entry
        elif config.biases and name.endswith(".modules_to_save.bias"):
            continue  # with bias="all" PEFT writes a whole module's bias twice
        elif is_bias(config, name) or is_whole(config, name.rpartition(".")[0]):
            saved[name.replace(".base_layer.", ".")] = entry
        else:
            wrong["unexpected"].append(repr(entry.key))
    modules = {name: _module(config, name, own, wrong) for name, own in found.items()}
    stray = [n for n in bases if n.rpartition(".")[0] not in modules and n not in saved]
    wrong["unexpected"] += [repr(bases[n].key) for n in stray]
    if not found and not any(wrong.values()):
        wrong["missing"].append("every 'lora_A' and 'lora_B'")
    refuse(who, folder, wrong)
    whole = {name: own for name, own in modules.items() if own is not None}
    return Adapter(folder, config, whole, saved, bases)


def is_bias(config: Config, name: str) -> bool:
    """Whether a parameter is a bias that the config says is stored."""
    return config.biases and name.endswith(".bias")


def is_whole(config: Config, module: str) -> bool:
    """Whether a module, or one that holds it, is one of `modules_to_save`."""
    parts = module.split(".")
    return any(config.saved(".".join(parts[: i + 1])) for i in range(len(parts)))


def refuse(who: str, folder: Path, wrong: Mapping[str, list[str]]) -> None:
    """Raise if anything is wrong, listing all of it.

    Raises:
        ValueError: If there is anything.
    """
    if any(wrong.values()):
        raise ValueError(
            f"{who}: the adapter in '{folder}' does not fit: {_files.listed(wrong)}. "
            "Nothing was loaded. Pass the base model that it was trained for, rename= "
            "for other names, or the whole directory as PEFT wrote it."
        )


def _module(
    config: Config, name: str, own: Mapping[str, Stored], wrong: dict[str, list[str]]
) -> Factors | None:
    """One module of the file; what is wrong with it is noted."""
    kind = "embedding_" if any(k.startswith("embedding_") for k in own) else ""
    a, b, m = own.get(f"{kind}a"), own.get(f"{kind}b"), own.get("m")
    key = f"{PREFIX}{name}."
    extra = [e for k, e in own.items() if k not in (f"{kind}a", f"{kind}b", "m")]
    extra += [m] if m is not None and not config.dora else []
    wrong["unexpected"] += [repr(entry.key) for entry in extra]
    if not config.targets(name):
        wrong["unexpected"] += [
            f"{e.key!r}: no target module of {CONFIG}" for e in own.values()
        ]
    missing = [part for part, x in (("A", a), ("B", b)) if x is None]
    form = "lora_embedding_{}" if kind else "lora_{}.weight"
    wrong["missing"] += [repr(key + form.format(part)) for part in missing]
    if config.dora and m is None:
        wrong["missing"].append(repr(f"{key}lora_magnitude_vector"))
    if a is None or b is None:
        return None
    rank = config.rank(name)
    if groups := _groups(a.shape, b.shape, rank):
        wrong["grouped"].append(
            f"{a.key!r}: a convolution of {groups} groups, whose `A` mixes the inputs "
            "of all, so that it is no change of the kernel"
        )
        return None
    if not _fits(a.shape, b.shape, rank):
        wrong["mis-shaped"].append(
            f"{a.key!r} and {b.key!r}: expected ({rank}, in) and (out, {rank}), got "
            f"{a.shape} and {b.shape}"
        )
        return None
    out = b.shape[0] if len(a.shape) == 2 else (1, b.shape[0], *(1,) * len(a.shape[2:]))
    if m is not None and m.shape != (out if isinstance(out, tuple) else (out,)):
        wrong["mis-shaped"].append(f"{m.key!r}: expected {out}, got {m.shape}")
    return Factors(a, b, m, config.scale(name, rank), bool(kind))


def _groups(a: tuple[int, ...], b: tuple[int, ...], rank: int) -> int:
    """How many groups a convolution has, or 0: its B is `[out, r / groups, 1, ...]`."""
    if len(a) < 3 or len(a) != len(b) or a[0] != rank or not 0 < b[1] < rank:
        return 0
    return 0 if rank % b[1] else rank // b[1]


def _fits(a: tuple[int, ...], b: tuple[int, ...], rank: int) -> bool:
    """Whether shapes are those of two factors of a rank."""
    if len(a) < 2 or len(a) != len(b) or 0 in a or 0 in b:
        return False
    return a[0] == b[1] == rank and all(n == 1 for n in b[2:])


def write_adapter(
    directory: Any,
    modules: Mapping[str, Factors] | Iterable[tuple[str, Factors]],
    *,
    others: Iterable[str] = (),
    saved: Mapping[str, np.ndarray | Stored] | None = None,
    whole: Iterable[str] = (),
    bias: str = "none",
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write an adapter as PEFT does, whole or not at all, one tensor in memory.

    Args:
        directory: Folder; made if absent.
        modules: What is adapted, by module name, or pairs that come one by one.
        others: Names of modules of the model that are not.
        saved: Parameters that are stored whole, by their torch name, or where they lie.
        whole: Names of the modules that they make up.
        bias: The entry `bias` of the config.
        extra: Further entries of the config.
    """
    made: dict[str, tuple[int, float, bool]] = {}
    pairs: Any = modules.items() if isinstance(modules, Mapping) else modules

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for name, own in pairs:
            made[name] = own.rank, own.scale, own.m is not None
            for key, x in zip(own.keys, (own.a, own.b, own.m), strict=True):
                if x is not None:
                    yield f"{PREFIX}{name}.{key}", np.asarray(x)
        for name, x in (saved or {}).items():
            module, _, last = name.rpartition(".")
            inner = ".base_layer" if module in made else ""
            array = _files.read_tensors({"x": x})["x"] if isinstance(x, Stored) else x
            yield f"{PREFIX}{module}{inner}.{last}", array

    with _files.replaced(Path(directory), (CONFIG,)) as folder:
        _files.write_spooled(folder / WEIGHTS, tensors())
        config = made_config(
            {name: rank for name, (rank, _, _) in made.items()},
            {name: scale for name, (_, scale, _) in made.items()},
            others=others,
            dora=any(lengths for _, _, lengths in made.values()),
            saved=sorted(whole),
            bias=bias,
            extra=extra or {},
        )
        _files.write_json(folder / CONFIG, config)
