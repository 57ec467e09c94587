"""Writes `merging_subspace.npz`: outputs of the authors' code on small inputs.

Needs torch and checkouts of four public repositories, none of which is part of this
project; the arrays say which commits they come from:

    github.com/gstoica27/KnOTS                      (MIT)
    github.com/apanariello4/core-space-merging      (Apache-2.0)
    github.com/AntoAndGar/task_singular_vectors     (Apache-2.0)
    github.com/danielm1405/iso-merging              (Apache-2.0)

    python tests/golden/make_merging_subspace.py KNOTS CORE TSV ISO

Weights are `[out, in]` with `B: [out, r]` and `A: [r, in]`, as the authors have them.
"""

import argparse
import importlib.util
import inspect
import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

TASKS = 3
SIZES = {"x": (9, 10), "y": (8, 11)}
TOP = 20  # per cent, of KnOTS-TIES
COMMITS = {
    "knots": "gstoica27/KnOTS@baa35e85768b8841820d35edc3e41b25304248c5",
    "core": "apanariello4/core-space-merging@85176fab749578b0b54a027ea89495846e79757d",
    "tsv": "AntoAndGar/task_singular_vectors@a6c97188f7aa0bb20753de4f2939be89dd64f1c3",
    "iso": "danielm1405/iso-merging@d34010af8ba129ef4d17a91ca9943b413fe06f8c",
}


def load(folder, file):
    """One file of a checkout, with those next to it in reach.

    `utils` of the first two imports every data set and model of the experiments; only
    its look-up of functions by name is needed.
    """
    folder = Path(folder)
    for name in ("masking_ops", "merging_functions", "utils"):
        sys.modules.pop(name, None)
    utils = types.ModuleType("utils")

    def look_up(module, suffix):
        def find(name):
            found = importlib.import_module(module)
            return dict(inspect.getmembers(found, inspect.isfunction))[name + suffix]

        return find

    utils.get_mask_fn = look_up("masking_ops", "_masking")
    utils.get_merging_fn = look_up("merging_functions", "_merging")
    sys.modules["utils"] = utils
    sys.modules.setdefault("einops", types.ModuleType("einops"))
    sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location(f"golden_{file.stem}", folder / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, folder


class Handler:
    """What the mergers ask a model: its changes, or its factors."""

    def __init__(self, model):
        self.model = model

    def get_ft_parameters(self):
        if isinstance(self.model, torch.nn.Module):
            return OrderedDict(sorted(self.model.state_dict().items()))
        return OrderedDict((n, b @ a) for n, (a, b) in sorted(self.model.items()))

    def get_ft_ab_parameters(self):
        return OrderedDict(sorted(self.model.items()))


def base():
    """A model of two zero matrices without bias."""
    sizes = {n: torch.nn.Linear(i, o, bias=False) for n, (o, i) in SIZES.items()}
    model = torch.nn.ModuleDict(sizes)
    for p in model.parameters():
        torch.nn.init.zeros_(p)
    return model


def factors(rank, seed):
    """For each task, `A` and `B` of each matrix."""
    torch.manual_seed(seed)
    return [
        {
            f"{n}.weight": (torch.randn(rank, i), torch.randn(o, rank))
            for n, (o, i) in SIZES.items()
        }
        for _ in range(TASKS)
    ]


def numbers(model):
    return {n.removesuffix(".weight"): v.numpy() for n, v in model.items()}


def run_knots(folder, tasks):
    module, _ = load(folder, Path("task_merger.py"))
    for method, kind in (("ties", "mean"), ("tv", "sum")):
        merger = module.SVDMerger(tasks, base(), Handler, "cpu")
        merger.set_scaling_coeffs(1.0)
        top = TOP if method == "ties" else 100
        config = {"merge_method": method, "merging_type": kind, "topK": top}
        merger.transform(config)
        merged = merger.merge(config).state_dict()
        yield f"knots_{method}", numbers(merged)


def run_core(folder, tasks):
    module, _ = load(folder, Path("task_merger.py"))
    # TIES leaves a core without full rank, whose null directions the solver would pick.
    runs = [("tv", False), ("tv", True), ("tsv", False), ("tsv", True), ("ties", False)]
    for method, even in runs:
        merger = module.MatrixPerLayerMerger(tasks, base(), Handler, "cpu")
        merger.set_scaling_coeffs(1.0)
        config = {"merge_space": "core", "merge_method": method, "topK": TOP}
        merged = merger.merge(config | {"isotropize": even}).state_dict()
        yield f"core_{method}{'_iso' * even}", numbers(merged)


def vectors(tasks):
    """Changes of the tasks, as TSV and Iso take them."""
    return [types.SimpleNamespace(vector=Handler(t).get_ft_parameters()) for t in tasks]


def config(**more):
    names = [str(t) for t in range(TASKS)]
    return types.SimpleNamespace(DATASETS=names, device="cpu", num_tasks=TASKS, **more)


def run_tsv(folder, tasks):
    module, _ = load(folder, Path("src/utils/TSVM_utils.py"))
    merged = module.compute_and_sum_svd_mem_reduction(vectors(tasks), config())
    yield "tsv", numbers(merged)


def run_iso(folder, tasks):
    module, _ = load(folder, Path("src/utils/iso.py"))
    yield "iso", numbers(module.iso_c(vectors(tasks), config()))
    own = config(method=types.SimpleNamespace(common_space_fraction=0.5))
    yield "iso_cts", numbers(module.iso_cts(vectors(tasks), own))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("knots", "core", "tsv", "iso"):
        parser.add_argument(name, help=f"checkout of {COMMITS[name]}")
    args = parser.parse_args()
    # Rank 2 of tasks that fit beside one another, and rank 3, where the sum is full.
    thin, full = factors(2, seed=0), factors(3, seed=1)
    arrays = {
        "provenance": np.array(
            "Outputs of the public code at "
            + ", ".join(COMMITS.values())
            + f"; torch {torch.__version__}; inputs drawn by make_merging_subspace.py."
        )
    }
    for kind, tasks in (("thin", thin), ("full", full)):
        for t, task in enumerate(tasks):
            for name, (a, b) in task.items():
                short = name.removesuffix(".weight")
                arrays[f"{kind}/{t}/{short}/a"] = a.numpy()
                arrays[f"{kind}/{t}/{short}/b"] = b.numpy()
    outputs = [*run_knots(args.knots, thin), *run_core(args.core, thin)]
    outputs += [*run_tsv(args.tsv, full), *run_iso(args.iso, full)]
    for name, merged in outputs:
        for short, value in merged.items():
            arrays[f"{name}/{short}"] = np.asarray(value, np.float32)
    np.savez_compressed(Path(__file__).parent / "merging_subspace.npz", **arrays)


if __name__ == "__main__":
    main()
