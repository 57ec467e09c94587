"""Recurrent networks: GRU and LSTM layers, as loops over time."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike

from lowrank.models._config import check_sizes


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig:
    """Sizes of a recurrent network.

    Args:
        input_size: Width of the inputs.
        hidden_size: Width of the states.
        num_layers: Number of layers.
        num_labels: Outputs of the classifier; 0: there is none.

    Raises:
        ValueError: If a size is below 1; all are listed.

    Example:
        >>> from lowrank.models import RecurrentConfig
        >>> RecurrentConfig(input_size=4, hidden_size=8).num_layers
        1

    References:
        Cho et al., Learning Phrase Representations using RNN Encoder-Decoder, 2014,
        arXiv:1406.1078.
    """

    input_size: int
    hidden_size: int
    num_layers: int = 1
    num_labels: int = 0

    def __post_init__(self) -> None:
        """Refuse impossible sizes."""
        check_sizes(self, optional=("num_labels",))


class Layer(nnx.Module):
    """The products of one layer, its gates side by side."""

    gates: int

    def __init__(self, n: int, width: int, dtype: DTypeLike, kwargs: dict[str, Any]):
        self.dtype = dtype
        self.width = width
        self.input = nnx.Linear(n, self.gates * width, **kwargs)
        self.state = nnx.Linear(width, self.gates * width, **kwargs)


class GRULayer(Layer):
    """One layer of gated recurrent units."""

    gates = 3

    def start(self, batch: int) -> jax.Array:
        return jnp.zeros((batch, self.width), self.dtype)

    def step(self, hidden: jax.Array, given: jax.Array) -> jax.Array:
        known = self.state(hidden)
        reset, keep, new = jnp.split(given, self.gates, axis=-1)
        reset_by, keep_by, new_by = jnp.split(known, self.gates, axis=-1)
        reset, keep = jax.nn.sigmoid(reset + reset_by), jax.nn.sigmoid(keep + keep_by)
        new = jnp.tanh(new + reset * new_by)
        return (1 - keep) * new + keep * hidden

    def output(self, carry: jax.Array) -> jax.Array:
        return carry


class LSTMLayer(Layer):
    """One layer of long short-term memory."""

    gates = 4

    def start(self, batch: int) -> tuple[jax.Array, jax.Array]:
        zero = jnp.zeros((batch, self.width), self.dtype)
        return zero, zero

    def step(
        self, carry: tuple[jax.Array, jax.Array], given: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        hidden, cell = carry
        gates = jnp.split(given + self.state(hidden), self.gates, axis=-1)
        write, keep, new, show = gates
        cell = jax.nn.sigmoid(keep) * cell + jax.nn.sigmoid(write) * jnp.tanh(new)
        return jax.nn.sigmoid(show) * jnp.tanh(cell), cell

    def output(self, carry: tuple[jax.Array, jax.Array]) -> jax.Array:
        return carry[0]


class _Recurrent(nnx.Module):
    """What both networks share: the loop, the stack of layers, the classifier."""

    layer: type

    def __init__(
        self,
        config: RecurrentConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Build the layers; see the class."""
        bound = config.hidden_size**-0.5

        def uniform(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike):
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        kwargs = {
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
            "kernel_init": uniform,
            "bias_init": uniform,
        }
        widths = [config.input_size, *[config.hidden_size] * (config.num_layers - 1)]
        self.config = config
        self.layers = nnx.List(
            self.layer(n, config.hidden_size, dtype, kwargs) for n in widths
        )
        if config.num_labels:
            self.classifier = nnx.Linear(
                config.hidden_size, config.num_labels, **kwargs
            )

    def __call__(self, inputs: ArrayLike) -> jax.Array:
        """Map `[batch, time, input_size]` to the states `[batch, time, hidden_size]`.

        Those of the last layer, after each step; the first state is zero.
        """
        inputs, size = jnp.asarray(inputs), self.config.input_size
        who = type(self).__name__
        if inputs.ndim != 3 or inputs.shape[-1] != size:
            raise ValueError(
                f"{who}: wrong inputs: expected shape (batch, time, {size}), got "
                f"{inputs.shape}. Batch one sequence as x[None]."
            )
        hidden = inputs
        for layer in self.layers:
            # What the inputs give is one product for all steps.
            given = jnp.swapaxes(layer.input(hidden), 0, 1)

            def step(carry, at, layer=layer):
                carry = layer.step(carry, at)
                return carry, layer.output(carry)

            _, states = jax.lax.scan(step, layer.start(given.shape[1]), given)
            hidden = jnp.swapaxes(states, 0, 1)
        return hidden

    def logits(self, inputs: ArrayLike) -> jax.Array:
        """Classify by the last state: `[batch, num_labels]`.

        Raises:
            ValueError: If the config has no labels.
        """
        if not self.config.num_labels:
            raise ValueError(
                f"{type(self).__name__}: no classifier: expected num_labels of at "
                "least 1 in the config, got 0. Use the states, or build it with "
                "num_labels."
            )
        return self.classifier(self(inputs)[:, -1])


class GRU(_Recurrent):
    """Gated recurrent units: a loop over time, whose products an adapter changes.

    With the gates side by side in `input/kernel: [in, 3 h]` and `state/kernel: [h, 3
    h]`, both with biases, a step is `r = sigmoid(x W_r + h U_r)`, `z = sigmoid(x W_z +
    h U_z)`, `n = tanh(x W_n + r (h U_n))`, `h' = (1 - z) n + z h`. The products with
    the inputs run once for all steps, before the loop; those with the state inside it.
    Paths: `layers/0/input/kernel`, `layers/0/state/kernel`, `classifier/kernel`, ...

    Args:
        config: Sizes.
        dtype: Compute dtype.
        param_dtype: Dtype of the parameters.
        rngs: Random streams for the initial parameters, uniform within
            `1 / sqrt(hidden_size)` of 0.

    Raises:
        ValueError: At the call, if the inputs are not of the config's size.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from lowrank.models import GRU, RecurrentConfig
        >>> config = RecurrentConfig(input_size=3, hidden_size=5, num_labels=2)
        >>> model = GRU(config, rngs=nnx.Rngs(0))
        >>> model(jnp.ones((2, 4, 3))).shape, model.logits(jnp.ones((2, 4, 3))).shape
        ((2, 4, 5), (2, 2))

    Notes:
        The reset gate acts on the product with the state, as in cuDNN and PyTorch,
        whose weights are these transposed; the paper resets the state before it.

    References:
        Cho et al., Learning Phrase Representations using RNN Encoder-Decoder, 2014,
        arXiv:1406.1078: section 2.3.
    """

    layer = GRULayer


class LSTM(_Recurrent):
    """Long short-term memory: a loop over time with a cell beside the state.

    With the gates side by side in `input/kernel: [in, 4 h]` and `state/kernel: [h, 4
    h]`, in the order input, forget, cell, output, a step is
    `c' = sigmoid(f) c + sigmoid(i) tanh(g)`, `h' = sigmoid(o) tanh(c')` of
    `(i, f, g, o) = x W + h U` plus biases. Paths are those of `GRU`.

    Args:
        config: Sizes.
        dtype: Compute dtype.
        param_dtype: Dtype of the parameters.
        rngs: Random streams for the initial parameters, uniform within
            `1 / sqrt(hidden_size)` of 0.

    Raises:
        ValueError: At the call, if the inputs are not of the config's size.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from lowrank.models import LSTM, RecurrentConfig
        >>> config = RecurrentConfig(input_size=3, hidden_size=5)
        >>> LSTM(config, rngs=nnx.Rngs(0))(jnp.ones((2, 4, 3))).shape
        (2, 4, 5)

    References:
        Hochreiter and Schmidhuber, Long Short-Term Memory, 1997; with the forget gate
        of Gers et al., Learning to Forget, 2000.
    """

    layer = LSTMLayer
