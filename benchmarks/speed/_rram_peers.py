"""The same networks in PyTorch, plain and through the peers' analog layers; optional.

aihwkit-lightning 2.1 is a pure wheel. aihwkit 1.2 is built from source: see
`docs/speed.md`. All are given the same noise set as lowrank's "noise" rows: additive
Gaussian noise on the weight, relative to the largest of each column of a tile, drawn
for each batch, and, with converters, 8 bits on both sides and noise on the sums.
"""

import contextlib
import importlib
import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.origin import installed
from benchmarks.speed._rram_jax import RATE
from benchmarks.speed._rram_nets import NOISE, Problem

PACKAGES = ("torch", "aihwkit-lightning", "aihwkit")
PEERS = {
    "torch": "torch",
    "torch, noise": "torch",
    "lightning, noise": "aihwkit-lightning",
    "lightning, noise and converters": "aihwkit-lightning",
    "aihwkit torch tile, noise": "aihwkit",
    "aihwkit torch tile, noise and converters": "aihwkit",
    "aihwkit C++ tile, noise": "aihwkit",
    "aihwkit C++ tile, noise and converters": "aihwkit",
}
"""Every contender in PyTorch, and the package that it needs."""


def versions() -> dict[str, str]:
    """Returns the versions of the peers, or `not installed`."""
    return installed(PACKAGES)


class Model:
    """A network in PyTorch with its optimizer.

    Attributes:
        name: One of `PEERS`.
        module: The network.
    """

    def __init__(self, name: str, problem: Problem) -> None:
        """Makes the network with the problem's weights.

        Raises:
            ImportError: If a package is missing.
        """
        with _quiet():
            import torch

            self.name, self._torch = name, torch
            self.module, self._optimizer = _built(name, problem, torch)
        self._x, self._rows = (_images(torch, x) for x in (problem.x, problem.rows))
        self._y, self._labels = (
            torch.from_numpy(y.astype(np.int64)) for y in (problem.y, problem.labels)
        )
        self.module.train()

    def step(self) -> Any:
        """One training step: forward, backward, Adam."""
        self._optimizer.zero_grad()
        loss = self._torch.nn.functional.cross_entropy(self.module(self._x), self._y)
        loss.backward()
        self._optimizer.step()
        return loss.detach()

    def logits(self) -> np.ndarray:
        """The logits of the batch of training, with fresh noise."""
        with self._torch.no_grad():
            self.redraw()
            return self.module(self._x).numpy().copy()

    def redraw(self) -> None:
        """Draws the noise that a layer keeps from batch to batch, where one does."""
        if "C++" in self.name:
            for tile in self.module.analog_tiles():
                tile.post_update_step()

    def evaluate(self, chips: int) -> Callable[[], list[float]]:
        """Accuracies over the rows, each with noise of its own."""

        def run() -> list[float]:
            found = []
            with self._torch.no_grad():
                for _ in range(chips):
                    self.redraw()
                    right = self.module(self._rows).argmax(-1) == self._labels
                    found.append(float(right.float().mean()))
            return found

        return run


@contextlib.contextmanager
def _quiet() -> Any:
    """Neither warnings nor what a package prints when it is imported."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _images(torch: Any, x: np.ndarray) -> Any:
    """Images with channels first."""
    channels_first = x if x.ndim == 2 else np.moveaxis(x, -1, 1)
    return torch.from_numpy(np.ascontiguousarray(channels_first))


def _built(name: str, problem: Problem, torch: Any) -> tuple[Any, Any]:
    """The network and its optimizer."""
    module = _plain(problem, torch)
    if name == "torch, noise":
        for layer in module:
            if hasattr(layer, "weight"):
                torch.nn.utils.parametrize.register_parametrization(
                    layer, "weight", _gaussian(torch)
                )
    elif name.startswith("lightning"):
        module = _lightning(module, name.endswith("converters"), problem.tile)
    elif name.startswith("aihwkit"):
        config = _aihwkit_config("C++" in name, name.endswith("converters"))
        config.mapping.max_input_size = problem.tile or 0
        config.mapping.max_output_size = 0
        return _aihwkit(module, config, torch)
    return module, torch.optim.Adam(module.parameters(), lr=RATE, fused=True)


def _plain(problem: Problem, torch: Any) -> Any:
    """The network in plain PyTorch, from the same weights."""
    nn, layers = torch.nn, []
    for name, layer in problem.params.items():
        w, b = layer["w"], layer["b"]
        last = name == list(problem.params)[-1]
        if w.ndim == 4:
            new = nn.Conv2d(*w.shape[2:], 5, padding=2 if name == "conv1" else 0)
            w = w.transpose(3, 2, 0, 1)
        else:
            new = nn.Linear(*w.shape)
            if name == "fc1" and problem.name == "lenet":
                layers.append(nn.Flatten())
                # Flattened here with channels first, there with channels last.
                w = w.reshape(5, 5, 16, -1).transpose(2, 0, 1, 3).reshape(w.shape)
            w = w.T
        new.weight.data = torch.from_numpy(np.ascontiguousarray(w))
        new.bias.data = torch.from_numpy(b.copy())
        layers += [new] if last else [new, nn.ReLU()]
        layers += [nn.AvgPool2d(2)] if w.ndim == 4 else []
    return nn.Sequential(*layers)


def _gaussian(torch: Any) -> Any:
    """Noise relative to the largest weight of each output, drawn for each batch."""

    class Gaussian(torch.nn.Module):  # pyrefly: ignore
        def forward(self, w: Any) -> Any:
            with torch.no_grad():
                wide = w.abs().flatten(1).amax(1).view(-1, *[1] * (w.ndim - 1))
                noise = NOISE.weight * wide * torch.randn_like(w)
            return w + noise

    return Gaussian()


def _converters(config: Any) -> None:
    """Sets what both peers call alike: fixed ranges, bits, and noise on the sums."""
    config.forward.inp_res = config.forward.out_res = 2.0 * NOISE.steps
    config.forward.out_bound = NOISE.output_limit
    config.forward.out_noise = NOISE.output_noise
    ranges = config.pre_post.input_range
    ranges.enable, ranges.learn_input_range = True, False
    ranges.init_value, ranges.init_from_data = NOISE.input_limit, 0
    ranges.decay = 0.0


def _lightning(module: Any, converters: bool, tile: int | None) -> Any:
    """The network in aihwkit-lightning's layers."""
    from aihwkit_lightning.nn.conversion import convert_to_analog
    from aihwkit_lightning.simulator.configs import (
        TorchInferenceRPUConfig,
        WeightClipType,
        WeightNoiseInjectionType,
    )

    config = TorchInferenceRPUConfig()
    config.mapping.max_input_size = tile or -1
    config.modifier.std_dev = NOISE.weight
    config.modifier.noise_type = WeightNoiseInjectionType.ADD_NORMAL_PER_CHANNEL
    if converters:
        _converters(config)
        config.forward.out_noise_per_channel = True
        # The only way to a bound for each channel; it clips nothing unless asked to.
        config.clip.type = WeightClipType.LAYER_GAUSSIAN_PER_CHANNEL
        config.clip.sigma = 1e6
    return convert_to_analog(module, config)


def _aihwkit_config(compiled: bool, converters: bool) -> Any:
    """The noise set for aihwkit's compiled tile, or for the one in PyTorch."""
    configs = importlib.import_module("aihwkit.simulator.configs")
    enums = importlib.import_module("aihwkit.simulator.parameters.enums")
    kind = "InferenceRPUConfig" if compiled else "TorchInferenceRPUConfig"
    config = getattr(configs, kind)()
    config.modifier.type = enums.WeightModifierType.ADD_NORMAL
    config.modifier.std_dev = NOISE.weight
    # Weights are scaled so that the largest of each column is 1.
    config.mapping.weight_scaling_omega = 1.0
    config.mapping.weight_scaling_columnwise = True
    config.modifier.rel_to_actual_wmax, config.modifier.assumed_wmax = False, 1.0
    if converters:
        _converters(config)
        config.forward.inp_bound = 1.0
        config.forward.bound_management = enums.BoundManagementType.NONE
        config.forward.noise_management = enums.NoiseManagementType.NONE
    else:
        config.forward.is_perfect = True
    return config


def _aihwkit(module: Any, config: Any, torch: Any) -> tuple[Any, Any]:
    """The network in aihwkit's layers, and its optimizer.

    The compiled tile holds its own weights and updates them by SGD, at less work than
    Adam; its biases, like all parameters of the other tile, are Adam's.
    """
    conversion = importlib.import_module("aihwkit.nn.conversion")
    optim = importlib.import_module("aihwkit.optim")
    module = conversion.convert_to_analog(module, config)
    optimizer = optim.AnalogOptimizer(torch.optim.Adam, module.parameters(), lr=RATE)
    return module, optimizer
