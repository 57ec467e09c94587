"""Write `merging_signs.npz`: merges that prune and elect signs, as published code does.

Needs torch 2.13.0, peft 0.21.2 and mergekit 0.1.5, which the tests do without: they
read the arrays. Two files come from the authors' repositories, as arguments:
`src/ties_minimal.ipynb` of prateeky2806/ties-merging at 44e7891 (BSD 3-Clause) and
`mergekit/mergekit/sparsify.py` of declare-lab/della at 8067515 (LGPL 3.0 or later).
Run from the root of the repository:
`python tests/golden/make_merging_signs.py ties_minimal.ipynb sparsify.py`.
"""

import contextlib
import importlib.util
import io
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import TensorGroup
from mergekit.merge_methods.generalized_task_arithmetic import (
    ConsensusMethod,
    GeneralizedTaskArithmeticMerge,
)

SIZES = {"first": (4, 3), "second": (3, 5)}  # inputs, outputs
BIAS = 5
RANK, ALPHAS = 2, (3.0, 1.0, 5.0)
TARGETS = (("first", "second"), ("first", "second"), ("first",))
WEIGHTS = (0.7, 1.3, -0.4)
DENSITY, EPSILON, GAMMA, TRIM = 0.5, 0.3, 0.2, 0.2
PEFT_TYPES = ("ties", "dare_linear", "dare_ties", "magnitude_prune")

Arrays = dict[str, np.ndarray]
Deltas = list[dict[str, torch.Tensor]]


@contextlib.contextmanager
def recorded_masks() -> Iterator[list[torch.Tensor]]:
    """The masks that are drawn meanwhile, in order."""
    masks: list[torch.Tensor] = []
    draw = torch.bernoulli

    def record(*args: Any, **kwargs: Any) -> torch.Tensor:
        masks.append(draw(*args, **kwargs))
        return masks[-1]

    torch.bernoulli = record
    try:
        yield masks
    finally:
        torch.bernoulli = draw


# --- PEFT ------------------------------------------------------------------------


def peft_model() -> Any:
    """A model of two layers with three adapters; the third adapts the first alone."""

    class Layers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, (n, m) in SIZES.items():
                setattr(self, name, torch.nn.Linear(n, m, bias=False))

    model = None
    for t, (alpha, targets) in enumerate(zip(ALPHAS, TARGETS, strict=True)):
        config = peft.LoraConfig(r=RANK, lora_alpha=alpha, target_modules=list(targets))
        if model is None:
            model = peft.get_peft_model(Layers(), config, adapter_name=f"t{t}")
        else:
            model.add_adapter(f"t{t}", config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter))
    return model


def layer(model: Any, name: str) -> Any:
    """One adapted layer."""
    return getattr(model.base_model.model, name)


def from_peft(model: Any) -> Arrays:
    """Every combination type, with the masks that it drew."""
    found: Arrays = {}
    for kind in (*PEFT_TYPES, *(f"{k}_svd" for k in PEFT_TYPES)):
        with warnings.catch_warnings(), recorded_masks() as masks:
            warnings.simplefilter("ignore")
            model.add_weighted_adapter(
                [f"t{t}" for t in range(len(ALPHAS))],
                list(WEIGHTS),
                kind,
                combination_type=kind,
                density=DENSITY,
                svd_rank=min(map(min, SIZES.values())),  # full for both
            )
        left = iter(masks)
        for name in SIZES:
            own = layer(model, name)
            factors = ("d",) if kind.endswith("_svd") else ("a", "b")
            tasks = [t for t, targets in enumerate(TARGETS) if name in targets]
            for factor in factors if masks else ():
                for t in tasks:
                    found[f"peft/{kind}/mask/{name}/{factor}/{t}"] = next(left).numpy()
            change = own.get_delta_weight(kind).detach().numpy()
            found[f"peft/{kind}/{name}"] = change
            if not kind.endswith("_svd"):
                found[f"peft/{kind}/{name}/a"] = own.lora_A[kind].weight.numpy()
                found[f"peft/{kind}/{name}/b"] = own.lora_B[kind].weight.numpy()
        if next(left, None) is not None:
            raise RuntimeError(f"masks of {kind} are left over")
    return {key: np.array(value) for key, value in found.items()}


# --- mergekit --------------------------------------------------------------------


def mergekit_merge(
    method: Any, deltas: list[torch.Tensor], **more: Any
) -> torch.Tensor:
    """One tensor by a method of mergekit, over a base of zeros."""
    base = torch.zeros_like(deltas[0])
    group = TensorGroup.from_tensors([base, *deltas], base_index=0)
    ids = [entry.id for entry in group.non_base]
    each = {"density": DENSITY, "epsilon": EPSILON, "gamma": GAMMA}
    wanted = {spec.name for spec in method.spec.parameters}
    options = {
        "weight": dict(zip(ids, WEIGHTS, strict=True)),
        "int8_mask": False,
        "normalize": method.default_normalize,
        "rescale": method.default_rescale,
        "lambda": 1.0,
        **{k: dict.fromkeys(ids, v) for k, v in each.items() if k in wanted},
    }
    return method.merge_group(group, **(options | more))


def from_mergekit(deltas: Deltas) -> Arrays:
    """Every method of that family, divided and not, with the masks that it drew."""
    found: Arrays = {}
    kinds = ("ties", "dare_linear", "dare_ties", "della", "della_linear")
    for kind in (*kinds, "breadcrumbs", "breadcrumbs_ties"):
        for normalize in (False, True):
            for name in deltas[0]:
                with recorded_masks() as masks:
                    y = mergekit_merge(
                        registry.get(kind),
                        [own[name] for own in deltas],
                        normalize=normalize,
                    )
                own = f"mergekit/{kind}/{normalize:d}"
                found[f"{own}/{name}"] = y.numpy()
                for t, mask in enumerate(masks):
                    found[f"{own}/mask/{name}/{t}"] = mask.reshape(y.shape).numpy()
    return found


# --- the authors -----------------------------------------------------------------


def notebook_utils(path: str) -> dict[str, Any]:
    """The functions of the notebook's cell on merging."""
    cells = json.loads(Path(path).read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells]
    names: dict[str, Any] = {"torch": torch}
    exec(next(s for s in sources if "TIES MERGING UTILS" in s), names)
    return names


def authors_ties(utils: dict[str, Any], flat: torch.Tensor, kept: int) -> torch.Tensor:
    """Their TIES. It keeps one entry more than it is told: so tell it one less."""
    share = (kept - 0.5) / flat.shape[1]
    with contextlib.redirect_stdout(io.StringIO()):
        return utils["ties_merging"](flat, reset_thresh=share, merge_func="dis-mean")


def from_ties(path: str, deltas: Deltas) -> Arrays:
    """TIES of the model as one vector; of small whole numbers; and after DARE."""
    utils = notebook_utils(path)
    flat = torch.stack([torch.cat([d.ravel() for d in own.values()]) for own in deltas])
    size = flat.shape[1]
    found = {"ties/flat": flat, "ties/merged": authors_ties(utils, flat, size // 2)}
    whole = torch.tensor(
        [[5, -4, 3, -2, 1, 6, -7, 8], [-5, 4, -3, 1, 2, 7, 6, 9.0]],
    )
    found |= {"whole/flat": whole, "whole/merged": authors_ties(utils, whole, 6)}
    mask = torch.bernoulli(torch.full_like(flat, DENSITY))
    dropped = authors_ties(utils, flat * mask / DENSITY, int(TRIM * size))
    found |= {"dare_ties/mask": mask, "dare_ties/merged": dropped}
    return {key: value.numpy() for key, value in found.items()}


def from_della(path: str, deltas: Deltas) -> Arrays:
    """The authors' dropping, then an election as in the mergekit that they built on."""
    spec = importlib.util.spec_from_file_location("della_sparsify", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Arrays = {}
    elect = GeneralizedTaskArithmeticMerge(
        consensus_method=ConsensusMethod.sum,
        sparsification_method=None,
        default_normalize=True,
        default_rescale=False,
        method_name="elect",
        method_pretty_name=None,
        method_reference_url=None,
    )
    for name in deltas[0]:
        with recorded_masks() as masks:
            dropped = [
                module.rank_magnitude(own[name], DENSITY, epsilon=EPSILON)
                for own in deltas
            ]
        merged = mergekit_merge(elect, dropped)
        found[f"della/{name}"] = merged.numpy()
        for t, mask in enumerate(masks):
            found[f"della/mask/{name}/{t}"] = mask.reshape(merged.shape).numpy()
    return found


def main(notebook: str, sparsify: str) -> None:
    """Draw the adapters, run every merge, and store what went in and out."""
    torch.manual_seed(0)
    model = peft_model()
    arrays: Arrays = {}
    deltas: Deltas = []
    for t, targets in enumerate(TARGETS):
        own = {}
        for name, (n, m) in SIZES.items():
            own[name] = torch.zeros(m, n)
            if name in targets:
                module = layer(model, name)
                own[name] = module.get_delta_weight(f"t{t}").detach()
                a, b = module.lora_A[f"t{t}"].weight, module.lora_B[f"t{t}"].weight
                arrays[f"in/{t}/{name}/a"] = a.detach().numpy().copy()
                arrays[f"in/{t}/{name}/b"] = b.detach().numpy().copy()
        own["bias"] = torch.randn(BIAS) if t < 2 else torch.zeros(BIAS)
        arrays[f"in/{t}/bias"] = own["bias"].numpy()
        deltas.append(own)
    arrays["in/scale"] = np.array(ALPHAS) / RANK
    arrays["in/weights"] = np.array(WEIGHTS)
    arrays["in/options"] = np.array([DENSITY, EPSILON, GAMMA, TRIM])
    with torch.no_grad():
        arrays |= from_peft(model)
        arrays |= from_mergekit(deltas)
        arrays |= from_ties(notebook, deltas)
        arrays |= from_della(sparsify, deltas)
    provenance = (
        f"peft {peft.__version__} add_weighted_adapter, mergekit 0.1.5 merge_group, "
        "ties_minimal.ipynb of prateeky2806/ties-merging 44e7891, sparsify.py of "
        f"declare-lab/della 8067515; torch {torch.__version__}, float32, seed 0, by "
        "tests/golden/make_merging_signs.py; layout of torch, [out, in]"
    )
    path = Path(__file__).with_name("merging_signs.npz")
    np.savez_compressed(path, provenance=np.array(provenance), **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
