"""The same merges by PEFT, as its users call them; optional."""

import os
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.origin import installed
from benchmarks.speed._merging_methods import DROPPED, TRIMMED, Problem

# Our name, and PEFT's `combination_type`.
TYPES = {
    "svd": "svd",
    "concat": "cat",
    "task_arithmetic": "cat",
    "linear": "linear",
    "ties": "ties",
    "magnitude": "magnitude_prune",
    "dare": "dare_linear",
    "dare with election": "dare_ties",
    "ties, svd": "ties_svd",
    "magnitude, svd": "magnitude_prune_svd",
    "dare, svd": "dare_linear_svd",
    "dare with election, svd": "dare_ties_svd",
}
MERGED = "merged"


def versions() -> dict[str, str]:
    """Returns the versions of PEFT and PyTorch, or `not installed`."""
    return installed(("peft", "torch"))


def threads() -> int:
    """Threads that this process may use: those of XLA's and NumPy's pools."""
    known = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1


class Peft:
    """One linear layer under PEFT with every adapter of a problem.

    Raises:
        ImportError: When made, if PEFT or PyTorch is not installed.
    """

    def __init__(self, given: Problem) -> None:
        """Puts the factors in place; PEFT's are transposed, and its scale is 1."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import peft
            import torch

        torch.set_num_threads(threads())
        self._torch, self._given = torch, given
        self._names = [f"task{i}" for i in range(len(given.factors))]
        config = peft.LoraConfig(
            r=given.rank, lora_alpha=given.rank, target_modules=["linear"]
        )
        layer = torch.nn.Linear(given.size, given.size, bias=False)
        model = torch.nn.Sequential()
        model.add_module("linear", layer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model: Any = peft.get_peft_model(model, config, self._names[0])
            for name in self._names[1:]:
                self.model.add_adapter(name, config)
        for name, (a, b) in zip(self._names, given.factors, strict=True):
            for held, x in ((self._held("A", name), a), (self._held("B", name), b)):
                held.data = torch.from_numpy(np.ascontiguousarray(x.T))

    def _held(self, which: str, name: str) -> Any:
        """The parameter of an adapter's factor."""
        layer = self.model.base_model.model.linear
        return getattr(layer, f"lora_{which}")[name].weight

    def call(self, method: str) -> Callable[[], None]:
        """What is timed: PEFT's own call, which also makes the new adapter."""
        options: dict[str, Any] = {}
        kind = TYPES[method]
        if kind.startswith(("ties", "magnitude")):
            options["density"] = TRIMMED
        if kind.startswith("dare"):
            options["density"] = DROPPED
        if kind.endswith("svd"):
            options["svd_rank"] = self._given.rank

        def run() -> None:
            with self._torch.no_grad():
                self.model.add_weighted_adapter(
                    self._names,
                    self._given.weights,
                    MERGED,
                    combination_type=kind,
                    **options,
                )

        return run

    def clear(self) -> None:
        """Deletes the merged adapter; not timed."""
        if MERGED in self.model.peft_config:
            self.model.delete_adapter(MERGED)

    def change(self) -> np.ndarray:
        """What the merged adapter adds to the kernel, `[in, out]`."""
        a, b = (self._held(which, MERGED).detach().numpy() for which in "AB")
        scale = self.model.base_model.model.linear.scaling[MERGED]
        return scale * (b @ a).T
