"""The same step by PEFT on the models of transformers, in PyTorch; optional."""

import warnings
from typing import Any

import jax
import numpy as np

from benchmarks.origin import installed
from benchmarks.speed._peers_jax import DECAY, LEARNING_RATE
from benchmarks.speed._peers_nets import Factors, Problem

PACKAGES = ("flax", "qwix", "peft", "torch", "transformers")
_NAMES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
_WRAPPER = "base_model.model."  # what PEFT puts before a module's name


def versions() -> dict[str, str]:
    """Returns the version of each peer and of what it runs on, or `not installed`."""
    return installed(PACKAGES)


class Peft:
    """A training step of PEFT's LoRA, run as it is: no `torch.compile`.

    Raises:
        ImportError: When made, if a package is missing.
        RuntimeError: When made, if it is to run on a GPU that PyTorch does not see.
    """

    def __init__(self, problem: Problem, backend: str) -> None:
        """Puts weights and factors in place; PyTorch's are transposed."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import peft
            import torch
            import transformers

        if backend != "cpu" and not torch.cuda.is_available():
            raise RuntimeError(f"JAX runs on {backend}, and PyTorch has no GPU")
        transformers.logging.set_verbosity_error()
        self._torch, self._problem = torch, problem
        self._device = "cpu" if backend == "cpu" else "cuda"
        self._dtype = getattr(torch, problem.dtype)
        base = _model(problem, transformers)
        _, params = problem.params()
        paths = {
            "/".join(key.key for key in keys): x
            for keys, x in jax.tree.leaves_with_path(params)
        }
        own = base.state_dict().keys()
        tensors = {
            _name(path): self._tensor(_turned(path, x))
            for path, x in paths.items()
            if _name(path) in own
        }
        base.load_state_dict(tensors, strict=False)
        base.to(device=self._device, dtype=self._dtype)
        config = peft.LoraConfig(
            r=problem.rank,
            lora_alpha=problem.alpha,  # pyrefly: ignore
            target_modules=problem.net.pattern.replace("/", r"\."),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model: Any = peft.get_peft_model(
                base, config, autocast_adapter_dtype=False
            )
        self._factors = self._placed()
        self.model.train()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.Adam(
            trained, lr=LEARNING_RATE, betas=(DECAY, 0.999), fused=True
        )
        batch = {n: self._tensor(np.array(x)) for n, x in problem.batch.items()}
        self._batch = {n: x.to(self._device) for n, x in batch.items()}

    def _tensor(self, x: np.ndarray) -> Any:
        """A copy for PyTorch; numbers that are not whole in float32."""
        kind = np.int64 if np.issubdtype(x.dtype, np.integer) else np.float32
        return self._torch.from_numpy(np.array(x, kind))

    def _placed(self) -> dict[str, dict[str, Any]]:
        """Writes the factors into the adapters; gives their parameters by path."""
        found = {}
        for path, factor in self._problem.factors.items():
            name = _name(path).removesuffix(".weight")
            layer = self.model.get_submodule(_WRAPPER + name)
            own = {"a": layer.lora_A.default.weight, "b": layer.lora_B.default.weight}
            for which, held in own.items():
                value = self._tensor(factor[which].T)
                held.data = value.to(device=self._device, dtype=self._dtype)
            found[path] = own
        return found

    def _loss(self) -> Any:
        batch, functional = self._batch, self._torch.nn.functional
        if self._problem.net.kind == "bert":
            hidden = self.model(batch["ids"]).last_hidden_state.float()
            return functional.cross_entropy(
                hidden.mean(1) @ batch["head"], batch["labels"]
            )
        logits = self.model(batch["ids"], use_cache=False).logits.float()
        return functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())

    def __call__(self) -> Any:
        """One step: forward, backward, Adam; gives the loss before it."""
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._loss()
        loss.backward()
        self._optimizer.step()
        if self._device == "cuda":
            self._torch.cuda.synchronize()
        return loss.detach()

    def gradient(self) -> Factors:
        """The gradient of the last step."""
        return {
            path: {n: p.grad.float().cpu().numpy().T for n, p in own.items()}
            for path, own in self._factors.items()
        }

    def costs(self) -> dict[str, float]:
        """The most that a step holds of a GPU's memory; nothing on a CPU."""
        if self._device == "cpu":
            return {}
        self._torch.cuda.reset_peak_memory_stats()
        self()
        return {"peak_mb": self._torch.cuda.max_memory_allocated() / 1e6}


def _name(path: str) -> str:
    """The name of a parameter in PyTorch: `encoder.layer.0.output.dense.weight`."""
    *parts, last = path.split("/")
    return ".".join([*parts, _NAMES.get(last, last)])


def _turned(path: str, x: Any) -> np.ndarray:
    """A weight as PyTorch holds it."""
    value = np.asarray(x)
    return value.T if path.endswith("/kernel") else value


def _model(problem: Problem, transformers: Any) -> Any:
    """The model of transformers with the same sizes and no dropout."""
    config = dict(problem.net.config)
    if problem.net.kind == "bert":
        none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        sizes = transformers.BertConfig(**config, **none)
        return transformers.BertModel(sizes, add_pooling_layer=False)
    theta = config.pop("rope_theta")
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
