"""What a training step costs in bytes, by formula: a pure function of a few sizes."""

from typing import NamedTuple

STATE = 16  # bytes a trained number: float32 value, gradient, and Adam's two moments


class Sizes(NamedTuple):
    """Sizes of a Llama-like decoder: grouped keys and values, a gated feed-forward.

    Attributes:
        layers: Number of layers `L`.
        width: Width of the residual stream `d`.
        kv: Width of the keys, and of the values.
        hidden: Width of the feed-forward layer `f`.
        vocab: Number of tokens `V`; embedding and head are two matrices.
    """

    layers: int
    width: int
    kv: int
    hidden: int
    vocab: int

    @property
    def kernels(self) -> tuple[tuple[int, int], ...]:
        """Inputs and outputs of a layer's kernels: q, k, v, o, gate, up, down."""
        d, kv, f = self.width, self.kv, self.hidden
        return (d, d), (d, kv), (d, kv), (d, d), (d, f), (d, f), (f, d)

    @property
    def layer(self) -> int:
        """Numbers in the kernels of a layer."""
        return sum(n * m for n, m in self.kernels)

    @property
    def table(self) -> int:
        """Numbers in the embedding; as many are in the head."""
        return self.vocab * self.width

    @property
    def base(self) -> int:
        """Numbers in the base, norms included."""
        norms = (2 * self.layers + 1) * self.width
        return self.layers * self.layer + 2 * self.table + norms

    def adapter(self, rank: int) -> int:
        """Numbers in LoRA factors beside every kernel of the layers."""
        return self.layers * rank * sum(n + m for n, m in self.kernels)


# Llama 3 (Dubey et al., 2024, arXiv:2407.21783): table 3.
LLAMA = {
    "8B": Sizes(layers=32, width=4096, kv=1024, hidden=14336, vocab=128256),
    "70B": Sizes(layers=80, width=8192, kv=1024, hidden=28672, vocab=128256),
}


class Cost(NamedTuple):
    """Bytes on one device, and bytes that it receives in one step.

    Attributes:
        base: Its part of the frozen base.
        adapters: Its part of the adapters, their gradients and Adam's moments.
        kept: What the backward pass waits for: every layer's input, and the logits.
        working: The layer at work: its gathered kernels, its activations and their
            gradients.
        gathered: Received by all-gathers of the base, in one step.
        reduced: Received by all-reduces of activations and adapter gradients.
    """

    base: float
    adapters: float
    kept: float
    working: float
    gathered: float
    reduced: float

    @property
    def total(self) -> float:
        """Bytes on one device."""
        return self.base + self.adapters + self.kept + self.working


def cost(
    sizes: Sizes,
    *,
    data: int = 1,
    model: int = 1,
    rank: int = 8,
    adapters: int = 1,
    tokens: int = 16_384,
    width: int = 2,
) -> Cost:
    """Counts the bytes of a LoRA step under FSDP and tensor parallelism.

    The base is split over `data * model` devices. Layers are rematerialised, so each
    kernel is gathered twice (the embedding once, for nothing is trained below it); a
    layer has two sums over `model` forward, again in the rematerialised pass, and
    backward. One adapter is whole on every device; many are spread over all of them and
    trained in turns. Attention scores are not kept. A ring of `n` devices receives
    `(n - 1) / n` of what it gathers, and twice that of what it reduces.

    Args:
        sizes: Sizes of the base.
        data: Devices over which base and batch are split (FSDP).
        model: Devices over which products are split (tensor parallelism).
        rank: Rank of the adapters, beside all kernels of the layers.
        adapters: How many adapters are trained.
        tokens: Tokens that one group of `model` devices has at work at a time.
        width: Bytes of a number of the base and of an activation.

    Returns:
        Bytes on one device, and received by it in one step.
    """
    devices = data * model
    d, layers = sizes.width, sizes.layers
    numbers = sizes.adapter(rank)
    held = numbers if adapters == 1 else adapters * numbers / devices
    logits = tokens * sizes.vocab / model * (width + 4)  # and softmax in float32
    inside = (2 * d + 2 * sizes.kv + 3 * sizes.hidden) / model
    gathered_layer = sizes.layer / model * width if data > 1 else 0.0
    passes = 2 * layers * sizes.layer + 3 * sizes.table
    sums = 6 * layers * tokens * d * width
    grads = 4 * numbers if adapters == 1 else 0
    return Cost(
        base=sizes.base * width / devices,
        adapters=held * STATE,
        kept=layers * tokens * d * width + logits,
        working=gathered_layer + 2 * tokens * (2 * d + inside) * width,
        gathered=_ring(data) * passes * width / model,
        reduced=2 * _ring(model) * sums + 2 * _ring(data) * grads,
    )


def _ring(devices: int) -> float:
    """The share of a whole that each device of a ring receives."""
    return (devices - 1) / devices
