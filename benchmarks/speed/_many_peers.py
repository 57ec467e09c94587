"""The same network and adapters under PEFT, as its users run them; optional."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.speed._many_net import LEARNING_RATE, Problem
from benchmarks.speed._merging_peers import threads


class Peft:
    """A network of PyTorch with all adapters of a problem.

    Raises:
        ImportError: When made, if PEFT or PyTorch is not installed.
        RuntimeError: When made, if it is to run on a GPU that PyTorch does not see.
    """

    def __init__(self, given: Problem, backend: str) -> None:
        """Puts kernels and factors where JAX's are; PEFT's are transposed."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import peft
            import torch

        if backend != "cpu" and not torch.cuda.is_available():
            raise RuntimeError(f"JAX runs on {backend}, and PyTorch has no GPU")
        torch.set_num_threads(threads())
        torch.set_float32_matmul_precision("highest")
        self._device = "cpu" if backend == "cpu" else "cuda"
        self._torch, self._given = torch, given
        self._names = [f"task{i}" for i in range(len(given.factors))]
        n, rank = given.sizes.width, given.sizes.rank
        layers = list(given.params)

        class Residual(torch.nn.Module):
            """The layers of `_many_net.model`."""

            def __init__(self) -> None:
                super().__init__()
                for name in layers:
                    setattr(self, name, torch.nn.Linear(n, n, bias=False))

            def forward(self, x: Any) -> Any:
                for name in layers:
                    x = x + torch.tanh(getattr(self, name)(x))
                return x

        base = Residual()
        config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=layers)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model: Any = peft.get_peft_model(base, config, self._names[0])
            for name in self._names[1:]:
                self.model.add_adapter(name, config)
        for layer in layers:
            held = getattr(base, layer)
            held.base_layer.weight.data = self._tensor(
                np.asarray(given.params[layer]).T
            )
            for name, own in zip(self._names, given.factors, strict=True):
                held.lora_A[name].weight.data = self._tensor(own[layer]["a"].T)
                held.lora_B[name].weight.data = self._tensor(own[layer]["b"].T)

    def _tensor(self, x: np.ndarray) -> Any:
        """A copy for PyTorch, on its device."""
        return self._torch.from_numpy(np.array(x)).to(self._device)

    def _done(self, x: Any) -> Any:
        """A result that is there; on a GPU it stays there."""
        if self._device == "cpu":
            return x.numpy()
        self._torch.cuda.synchronize()
        return x

    def trainer(self) -> Callable[[], list[float]]:
        """A step of every adapter, one after another, each with an Adam of its own."""
        data = [
            (self._tensor(x), self._tensor(y))
            for x, y in zip(self._given.x, self._given.y, strict=True)
        ]
        optimizers = {}
        for name in self._names:
            self.model.set_adapter(name)
            own = [p for p in self.model.parameters() if p.requires_grad]
            optimizers[name] = self._torch.optim.Adam(own, lr=LEARNING_RATE, fused=True)

        def run() -> list[float]:
            losses = []
            for name, (x, y) in zip(self._names, data, strict=True):
                self.model.set_adapter(name)
                optimizers[name].zero_grad()
                loss = ((self.model(x) - y) ** 2).mean()
                loss.backward()
                optimizers[name].step()
                losses.append(loss)
            return [float(loss.detach()) for loss in losses]

        return run

    def mixed(self, ids: np.ndarray) -> dict[str, Callable[[], Any]]:
        """One batch forward: with one adapter, and with `adapter_names`."""
        x = self._tensor(self._given.x[0])
        names = [self._names[i] for i in ids]
        self.model.eval()

        def single() -> Any:
            self.model.set_adapter(self._names[0])
            with self._torch.no_grad():
                return self._done(self.model(x))

        def mixed() -> Any:
            with self._torch.no_grad():
                return self._done(self.model(x, adapter_names=names))

        return {"peft single": single, "peft mixed": mixed}
