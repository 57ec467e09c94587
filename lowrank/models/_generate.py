"""Text from a decoder, one token at a time, with a cache of keys and values."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from lowrank import _compat
from lowrank.models._decoder import Decoder
from lowrank.models._layers import check_ids
from lowrank.models._optional import beside, count


class Generated(NamedTuple):
    """New tokens.

    Attributes:
        ids: `[batch, length]`, int32.
        mask: 1 at the tokens up to the one that stopped the row, which is counted; 0
            after it, where the ids repeat it.
    """

    ids: jax.Array
    mask: jax.Array


def generate(
    model: Decoder,
    token_ids: ArrayLike,
    attention_mask: ArrayLike | None = None,
    *,
    length: int,
    temperature: ArrayLike = 0.0,
    key: jax.Array | None = None,
    stop: Sequence[int] = (),
) -> Generated:
    """Continue each row of a batch by up to `length` tokens.

    Given logits `l: [batch, vocabulary]` of the next token, that token is
    `argmax(l + T g)` with Gumbel noise `g`: a draw from `softmax(l / T)`, and the most
    likely token at `T = 0`. The prompt is run once; then each token takes one pass, in
    which it sees the stored keys and values of those before it.

    All shapes are fixed by the arguments' shapes and `length`, so one compiled
    program serves all prompts padded to one length. It is compiled here, and no
    caller needs to.

    Args:
        model: A decoder, such as `Llama` or `GPT2`.
        token_ids: Prompts `[batch, prompt]`, padded on the right.
        attention_mask: 1 at tokens and 0 at padding, `[batch, prompt]`, at least one
            token in each row; None: no padding.
        length: Tokens to add, at least 1; with the prompt no more than the model's
            longest input.
        temperature: `T`, at least 0; may be traced.
        key: Key of the noise; needed unless the temperature is the number 0.
        stop: Ids after which a row ends. When all rows have ended, no more passes are
            made.

    Returns:
        Ids and mask of the new tokens. A row does not depend on its padding.

    Raises:
        TypeError: If the token ids are not integers.
        ValueError: If shapes or lengths do not fit, a concrete mask is not padded on
            the right, or the temperature needs a key and there is none.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from lowrank.models import GPT2, GPT2Config, generate
        >>> config = GPT2Config(vocab_size=11, n_positions=6, n_embd=8, n_layer=1,
        ...     n_head=2)
        >>> def new(ids):
        ...     return generate(GPT2(config, rngs=nnx.Rngs(0)), ids, length=2)
        >>> jax.eval_shape(new, jnp.array([[1, 2, 3]])).ids.shape
        (1, 2)

    Notes:
        Prefixes and soft prompts are read as in the model's call; a soft prompt takes
        positions of the longest input.

        With adapters: `apply, params = functional(model, partial(generate, length=9))`
        and then `lrk.lift(apply)(adapted, ids, mask)`. For many tokens
        materialize first: then a pass has one product for each weight.

    References:
        Maddison et al., A* Sampling, 2014, arXiv:1411.0030 (the Gumbel trick).
    """
    ids = jnp.asarray(token_ids)
    mask = jnp.ones_like(ids) if attention_mask is None else jnp.asarray(attention_mask)
    rows = count(beside(model.words, "prompt"))
    check_ids("generate", ids, model.config.longest, rows, attention_mask=mask)
    _check(ids, mask, length, model.config.longest - rows, temperature, key)
    graphdef, params = nnx.split(model)
    return _generate(
        graphdef,
        params,
        ids.astype(jnp.int32),
        mask,
        jnp.asarray(temperature, jnp.float32),
        key,
        length=length,
        stop=tuple(stop),
    )


@partial(jax.jit, static_argnums=0, static_argnames=("length", "stop"))
def _generate(
    graphdef: Any,
    params: Any,
    ids: jax.Array,
    mask: jax.Array,
    temperature: jax.Array,
    key: jax.Array | None,
    *,
    length: int,
    stop: tuple[int, ...],
) -> Generated:
    """Run the prompt, then a loop over single tokens."""
    model = nnx.merge(graphdef, params)
    batch, rows = ids.shape[0], count(beside(model.words, "prompt"))
    sizes = jnp.sum((mask != 0).astype(jnp.int32), axis=1)
    hidden, cache = model.start(ids, length)
    hidden = hidden[jnp.arange(batch), sizes - 1]
    past = rows + sizes if rows else sizes

    def choose(hidden: jax.Array, step: jax.Array | int) -> jax.Array:
        logits = model.head(hidden)
        if key is not None:
            noise = jax.random.gumbel(jax.random.fold_in(key, step), logits.shape)
            logits = logits + temperature * noise
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def stops(token: jax.Array) -> jax.Array:
        return jnp.isin(token, jnp.array(stop, jnp.int32))

    def going(carry: tuple[Any, ...]) -> jax.Array:
        step, _, done, _, _ = carry
        return (step < length) & ~jnp.all(done)

    def add(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        step, token, done, cache, out = carry
        # Token `step - 1` is known and goes into the cache; it gives the next.
        positions = (past + step - 1)[:, None]
        hidden, cache = model.extend(token[:, None], positions, cache)
        new = jnp.where(done, token, choose(hidden[:, 0], step))
        ids = out.ids.at[:, step].set(new)
        out = Generated(ids, out.mask.at[:, step].set((~done).astype(jnp.int32)))
        return step + 1, new, done | stops(new), cache, out

    token = choose(hidden, 0)
    # Rows that have ended repeat their last token, written or not.
    ids = jnp.broadcast_to(token[:, None], (batch, length))
    out = Generated(ids, jnp.zeros((batch, length), jnp.int32).at[:, 0].set(1))
    carry = (jnp.int32(1), token, stops(token), cache, out)
    step, token, _, _, out = jax.lax.while_loop(going, add, carry)
    written = jnp.arange(length)[None] < step
    return Generated(jnp.where(written, out.ids, token[:, None]), out.mask)


def _check(
    ids: jax.Array,
    mask: jax.Array,
    length: int,
    longest: int,
    temperature: ArrayLike,
    key: jax.Array | None,
) -> None:
    """Refuse lengths, masks and temperatures that cannot be."""
    prompt = ids.shape[1]
    if length < 1 or prompt < 1 or prompt + length > longest:
        raise ValueError(
            f"generate: wrong length: expected a prompt and new tokens, at least 1 of "
            f"each and at most {longest} together, got {prompt} and {length}. Cut the "
            "prompt or ask for fewer."
        )
    known = _compat.is_known(temperature)
    # NumPy, for under a trace even constants of JAX are traced.
    if known and not np.all(np.asarray(temperature) >= 0):
        raise ValueError(
            f"generate: wrong temperature: expected at least 0, got {temperature}. "
            "Pass 0 for the most likely token."
        )
    if key is None and not (known and np.all(np.asarray(temperature) == 0)):
        raise ValueError(
            f"generate: no key: expected one at a temperature other than 0, got "
            f"temperature {temperature}. Pass key=jax.random.key(...)."
        )
    if _compat.is_concrete(mask):
        kept = np.asarray(mask) != 0
        if not (np.all(kept[:, :-1] | ~kept[:, 1:]) and np.all(kept[:, 0])):
            raise ValueError(
                "generate: wrong attention_mask: expected 1s and then 0s in every row, "
                "at least one 1. Pad the prompts on the right, as encode does."
            )
