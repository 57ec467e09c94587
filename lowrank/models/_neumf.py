"""A recommender: tables of users and items under a small network."""

from dataclasses import dataclass
from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike

from lowrank.models._config import check_sizes
from lowrank.models._layers import Factory


@dataclass(frozen=True, kw_only=True)
class NeuMFConfig:
    """Sizes of a neural matrix factorisation.

    Args:
        num_users: Rows of the tables of users.
        num_items: Rows of the tables of items.
        mf_size: Width of the tables that are multiplied.
        mlp_sizes: Widths of the network, from its input (a user beside an item, so an
            even number) to its last layer.

    Raises:
        ValueError: If a size is below 1, the first width is odd, or there is none.

    Example:
        >>> from lowrank.models import NeuMFConfig
        >>> NeuMFConfig(num_users=10, num_items=20).mlp_sizes
        (64, 32, 16, 8)

    References:
        He et al., Neural Collaborative Filtering, 2017, arXiv:1708.05031: section 4.1.
    """

    num_users: int
    num_items: int
    mf_size: int = 8
    mlp_sizes: tuple[int, ...] = (64, 32, 16, 8)

    def __post_init__(self) -> None:
        """Refuse impossible sizes."""
        check_sizes(self)
        sizes = self.mlp_sizes
        if not sizes or min(sizes) < 1 or sizes[0] % 2:
            raise ValueError(
                "NeuMFConfig: wrong sizes at 'mlp_sizes': expected one or more, each "
                f"at least 1 and the first even, got {sizes}. Correct the config."
            )


class NeuMF(nnx.Module):
    """Neural matrix factorisation: a product of embeddings beside a network on them.

    For a user `u` and an item `i`, `score = [p_u * q_i, f([s_u, t_i])] W + b` with
    `p, q` rows of `mf_user`, `mf_item`, `s, t` rows of `mlp_user`, `mlp_item`, and `f`
    dense layers with relu. Nearly all parameters are rows of tables. Paths:
    `mf_user/embedding`, `mlp_item/embedding`, `layers/0/kernel`, `output/kernel`, ...

    Args:
        config: Sizes.
        dtype: Compute dtype.
        param_dtype: Dtype of the parameters.
        rngs: Random streams for the initial weights, normal with standard deviation
            0.01 in the tables and LeCun normal in the network; biases are 0.

    Raises:
        TypeError: At the call, if the ids are no integers.
        ValueError: At the call, if there are not as many items as users.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from lowrank.models import NeuMF, NeuMFConfig
        >>> model = NeuMF(NeuMFConfig(num_users=5, num_items=7), rngs=nnx.Rngs(0))
        >>> model(jnp.array([0, 4]), jnp.array([6, 1])).shape
        (2,)

    References:
        He et al., Neural Collaborative Filtering, 2017, arXiv:1708.05031: eq. 12.
    """

    def __init__(
        self,
        config: NeuMFConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Build tables and layers; see the class."""
        make, sizes = Factory(0.01, dtype, param_dtype, rngs), config.mlp_sizes
        self.config = config
        self.mf_user = make.embedding(config.num_users, config.mf_size)
        self.mf_item = make.embedding(config.num_items, config.mf_size)
        self.mlp_user = make.embedding(config.num_users, sizes[0] // 2)
        self.mlp_item = make.embedding(config.num_items, sizes[0] // 2)
        self.layers = nnx.List(
            make.dense(n, m, std=n**-0.5) for n, m in pairwise(sizes)
        )
        width = config.mf_size + sizes[-1]
        self.output = make.dense(width, 1, std=width**-0.5)

    def __call__(self, users: ArrayLike, items: ArrayLike) -> jax.Array:
        """Score pairs: ids `[batch]` of users and of items to logits `[batch]`."""
        users, items = jnp.asarray(users), jnp.asarray(items)
        for name, ids in (("users", users), ("items", items)):
            if not jnp.issubdtype(ids.dtype, jnp.integer):
                raise TypeError(
                    f"NeuMF: wrong {name}: expected integers, got {ids.dtype}. Pass "
                    "row numbers."
                )
        if users.ndim != 1 or users.shape != items.shape:
            raise ValueError(
                "NeuMF: wrong items: expected one for each user, of shape (batch,), "
                f"got {users.shape} users and {items.shape} items. Pass pairs."
            )
        product = self.mf_user(users) * self.mf_item(items)
        hidden = jnp.concatenate([self.mlp_user(users), self.mlp_item(items)], axis=-1)
        for layer in self.layers:
            hidden = jax.nn.relu(layer(hidden))
        return self.output(jnp.concatenate([product, hidden], axis=-1))[:, 0]
