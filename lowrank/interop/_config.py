"""`adapter_config.json`: what is understood of it, what is refused."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from lowrank import _files
from lowrank._files import shortened
from lowrank.interop._patterns import exact_targets, exactly, lookup, matcher

CONFIG = "adapter_config.json"
# What says nothing about the function, or only of how it was trained.
_NOTES = frozenset(
    "auto_mapping base_model_name_or_path corda_config ensure_weight_tying eva_config "
    "inference_mode layers_pattern layers_to_transform lora_ga_config loftq_config "
    "megatron_core peft_version qalora_group_size revision runtime_config task_type "
    "exclude_modules fan_in_fan_out lora_dropout".split()
)
_READ = frozenset(
    "peft_type r lora_alpha use_rslora use_dora rank_pattern alpha_pattern "
    "target_modules modules_to_save bias init_lora_weights".split()
)
# They change the base that the adapter belongs to.
_MUTATING = ("pissa", "olora", "corda", "loftq", "lora_ga")


class Config(NamedTuple):
    """A config of PEFT's LoRA, checked.

    Attributes:
        raw: The whole object.
        rank: The rank of a module, by its name.
        scale: The scale of a module, by its name and rank.
        targets: Whether a module is one of `target_modules`.
        saved: Whether a module is one of `modules_to_save`.
    """

    raw: dict[str, Any]
    rank: Callable[[str], int]
    scale: Callable[[str, int], float]
    targets: Callable[[str], bool]
    saved: Callable[[str], bool]

    @property
    def dora(self) -> bool:
        """Whether columns have trained lengths."""
        return bool(self.raw.get("use_dora"))

    @property
    def biases(self) -> bool:
        """Whether biases are stored too."""
        return self.raw.get("bias", "none") != "none"


def read_config(who: str, directory: Path) -> Config:
    """Read and check the config of an adapter.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is no config of a LoRA that can be read whole; all that is
            wrong is listed.
    """
    file = directory / CONFIG
    raw = _files.read_json(who, file)
    bad = [*_wrong_values(raw), *_unsupported(raw)]
    tables = {}
    for name, kinds in (("rank_pattern", (int,)), ("alpha_pattern", (int, float))):
        table = raw.get(name) or {}
        found = lookup(table, kinds) if isinstance(table, dict) else ["no object"]
        if isinstance(found, list):
            bad += [f"'{name}': {reason}" for reason in found]
        tables[name] = found
    wanted = raw.get("target_modules")
    names = {
        "target_modules": matcher(".*" if wanted == "all-linear" else wanted),
        "exclude_modules": matcher(raw.get("exclude_modules") or []),
        "modules_to_save": matcher(raw.get("modules_to_save") or []),
    }
    bad += [f"'{n}': {found}" for n, found in names.items() if isinstance(found, str)]
    if bad:
        raise ValueError(
            f"{who}: cannot read the adapter of '{file}': {_files.listed({'': bad})}. "
            "Nothing was loaded. Save the adapter as a plain LoRA with PEFT."
        )
    every, never, saved = cast(list[Callable[[str], bool]], list(names.values()))
    return Config(
        raw,
        *_numbers(raw, tables),
        targets=lambda name: every(name) and not never(name),
        saved=saved,
    )


def _numbers(raw: Mapping[str, Any], tables: Mapping[str, Any]) -> tuple[Any, Any]:
    """The functions `rank` and `scale`."""
    default, alpha = raw.get("r", 8), raw.get("lora_alpha", 8)

    def rank(name: str) -> int:
        own = tables["rank_pattern"](name)
        return default if own is None else own

    def scale(name: str, rank: int) -> float:
        own = tables["alpha_pattern"](name)
        root = math.sqrt(rank) if raw.get("use_rslora") else rank
        return float(alpha if own is None else own) / root

    return rank, scale


def _wrong_values(raw: Mapping[str, Any]) -> list[str]:
    """Values of another type than the config has."""
    bad = []
    rank, alpha = raw.get("r", 8), raw.get("lora_alpha", 8)
    if type(rank) is not int or not 1 <= rank <= 2**31:
        bad.append(f"'r': expected a rank of at least 1, got {rank!r}")
    numbers = [alpha, *_values(raw, "alpha_pattern")]
    if any(type(x) not in (int, float) or not abs(x) < 1e30 for x in numbers):
        bad.append("'lora_alpha' or 'alpha_pattern': expected finite numbers")
    if any(type(x) is not int or x < 1 for x in _values(raw, "rank_pattern")):
        bad.append("'rank_pattern': expected ranks of at least 1")
    if raw.get("bias", "none") not in ("none", "all", "lora_only"):
        bad.append(f"'bias': expected none, all or lora_only, got {raw['bias']!r}")
    flags = ("use_rslora", "use_dora", "fan_in_fan_out")
    bad += [
        f"'{name}': expected true or false, got {raw[name]!r}"
        for name in flags
        if raw.get(name) not in (None, True, False)
    ]
    return list(map(shortened, bad))


def _values(raw: Mapping[str, Any], name: str) -> list[Any]:
    table = raw.get(name)
    return list(table.values()) if isinstance(table, dict) else []


def _unsupported(raw: Mapping[str, Any]) -> list[str]:
    """What changes the function in a way that is not read here."""
    kind = raw.get("peft_type")
    if kind != "LORA":
        return [f"'peft_type': expected 'LORA', got {shortened(repr(kind))}"]
    start = raw.get("init_lora_weights")
    bad = []
    if isinstance(start, str) and start.startswith(_MUTATING):
        bad.append(
            f"'init_lora_weights': {shortened(start)!r} changes the base weights"
        )
    bad += [
        f"'{shortened(name)}': {shortened(repr(value))} is not supported"
        for name, value in raw.items()
        if value and name not in _NOTES | _READ
    ]
    return bad


def made_config(
    ranks: Mapping[str, int],
    scales: Mapping[str, float],
    *,
    others: Iterable[str],
    dora: bool,
    saved: list[str],
    bias: str,
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """The config of an adapter, by module names: every module is listed."""
    alphas = {name: _tidy(scales[name] * rank) for name, rank in ranks.items()}
    rank = _commonest(ranks.values())
    alpha = _commonest(alphas.values())
    return {
        "auto_mapping": None,
        "base_model_name_or_path": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        "revision": None,
        "task_type": None,
        **extra,
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {exactly(n): r for n, r in ranks.items() if r != rank},
        "alpha_pattern": {exactly(n): a for n, a in alphas.items() if a != alpha},
        "target_modules": exact_targets(ranks, others),
        "modules_to_save": saved or None,
        "bias": bias,
        "use_dora": dora,
        "use_rslora": False,
    }


WRITTEN = frozenset(
    "peft_type r lora_alpha rank_pattern alpha_pattern target_modules modules_to_save "
    "bias use_dora use_rslora".split()
)


def _commonest(values: Any) -> Any:
    return Counter(values).most_common(1)[0][0]


def _tidy(alpha: float) -> int | float:
    """A whole number as an int, where rounding to float32 has left one."""
    whole = round(alpha)
    return whole if abs(alpha - whole) <= 1e-6 * abs(alpha) else alpha
