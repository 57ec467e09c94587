"""What decoders share: causal masks, the cache, layers in a list or scanned."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike

from lowrank.models._layers import Factory, KeyValue, check_ids, run
from lowrank.models._optional import Rows, Words, all_seen, beside, count, in_front

# A layer's keys and values each, or one whose leading axis is the layers'.
Cache = tuple[KeyValue, ...] | KeyValue


class Place(NamedTuple):
    """Where the tokens of one call stand, the same for every layer.

    Attributes:
        positions: `[batch, length]`; also the slots of the cache that they fill.
        mask: What each token sees of the slots, `[batch, length, slots]`.
        rope: Cosine and sine of the rotary angles, if the model has any.
    """

    positions: jax.Array
    mask: jax.Array
    rope: tuple[jax.Array, jax.Array] | None = None


class Decoder(nnx.Module):
    """A causal language model: logits of the next token at every token.

    A subclass sets `config` (with `longest`), `dtype` and `remat`, and gives
    `blocks`, `words`, `embed`, `place`, `head` and `key_value_shape`.
    """

    config: Any
    dtype: Any
    remat: bool

    @property
    def blocks(self) -> Any:
        """The layers: a list, or one module whose leaves are stacked."""
        raise NotImplementedError

    @property
    def words(self) -> Words:
        """The word embeddings, which a tree may put a prompt beside."""
        raise NotImplementedError

    def embed(self, words: jax.Array, positions: jax.Array) -> jax.Array:
        """Hidden states before the first layer, of word embeddings."""
        raise NotImplementedError

    def place(self, positions: jax.Array, mask: jax.Array) -> Place:
        """What the layers are told besides the hidden states."""
        return Place(positions, mask)

    def head(self, hidden: jax.Array) -> jax.Array:
        """Logits of hidden states after the last layer."""
        raise NotImplementedError

    @property
    def key_value_shape(self) -> tuple[int, int, int]:
        """Layers, heads of keys and values, channels per head."""
        raise NotImplementedError

    def __call__(
        self,
        token_ids: ArrayLike,
        attention_mask: ArrayLike | None = None,
        segment_ids: ArrayLike | None = None,
    ) -> jax.Array:
        """Map ids `[batch, length]` to logits `[batch, length, vocabulary]`.

        Token `t` sees the tokens up to `t` where `attention_mask` is not 0. Padding on
        the right is seen by no token anyhow; its own logits mean nothing. Positions
        count from the left, padding included. Logits are float32 or wider.

        A row may hold several texts, packed side by side: each run of equal
        `segment_ids` is a text. Its positions count from its own first token, and its
        tokens see no other text, so that its logits are those of the text alone.
        """
        ids = jnp.asarray(token_ids)
        mask, segments = (
            None if x is None else jnp.asarray(x) for x in (attention_mask, segment_ids)
        )
        who = type(self).__name__
        rows, longest = count(beside(self.words, "prompt")), self.config.longest
        check_ids(who, ids, longest, rows, attention_mask=mask, segment_ids=segments)
        length = rows + ids.shape[1]
        positions = _positions(ids.shape[0], length)
        seen = _causal(positions, length)
        if segments is not None:
            starts, alike = _apart(segments, rows)
            seen = seen & alike
            positions = positions - starts
        mask = all_seen(mask, length)
        if mask is not None:
            seen = seen & (mask != 0)[:, None, :]
        words = in_front(beside(self.words, "prompt"), self.words(ids))
        hidden = self.embed(words, positions)
        hidden, _ = self._run(hidden, self.place(positions, seen), None)
        return self.head(hidden[:, rows:] if rows else hidden)

    def empty_cache(self, batch: int, slots: int) -> Cache:
        """Room for the keys and values of `slots` tokens in each of `batch` rows."""
        layers, heads, size = self.key_value_shape

        def zeros(*lead: int) -> KeyValue:
            shape = (*lead, batch, slots, heads, size)
            return KeyValue(*(jnp.zeros(shape, self.dtype) for _ in range(2)))

        if isinstance(self.blocks, nnx.List):
            return tuple(zeros() for _ in range(layers))
        return zeros(layers)

    def extend(
        self,
        ids: jax.Array,
        positions: jax.Array,
        cache: Cache,
        prompt: Rows | None = None,
    ) -> tuple[jax.Array, Cache]:
        """Hidden states `[batch, length, width]` of new tokens, and the fuller cache.

        A token at position `p` fills slot `p` and sees the slots up to `p`: all of
        them must have been filled, by this call or by earlier ones. The rows of a
        prompt go before the tokens, and have positions and states too.
        """
        one = cache if isinstance(cache, KeyValue) else cache[0]
        place = self.place(positions, _causal(positions, one.key.shape[-3]))
        words = in_front(prompt, self.words(ids))
        return self._run(self.embed(words, positions), place, cache)

    def start(self, ids: jax.Array, room: int) -> tuple[jax.Array, Cache]:
        """Hidden states of the first tokens, and a cache with room for more.

        Slots and positions begin with those of a prompt, if there is one.
        """
        rows, batch = count(beside(self.words, "prompt")), ids.shape[0]
        length = rows + ids.shape[1]
        cache = self.empty_cache(batch, length + room)
        positions = _positions(batch, length)
        hidden, cache = self.extend(ids, positions, cache, beside(self.words, "prompt"))
        return hidden[:, rows:] if rows else hidden, cache

    def _run(
        self, hidden: jax.Array, place: Place, cache: Cache | None
    ) -> tuple[jax.Array, Any]:
        """Run all layers."""
        if not isinstance(self.blocks, nnx.List):
            return self._scan(hidden, place, cache)
        kept = []
        for i, block in enumerate(self.blocks):
            part = None if cache is None else cache[i]
            hidden, part = run(block, hidden, place, part, remat=self.remat)
            kept.append(part)
        return hidden, None if cache is None else tuple(kept)

    def _scan(
        self, hidden: jax.Array, place: Place, cache: Any
    ) -> tuple[jax.Array, Any]:
        """Run the stacked layers as a loop, compiled once."""
        graphdef, params = nnx.split(self.blocks)

        def body(hidden: jax.Array, xs: Any) -> tuple[jax.Array, Any]:
            params, part = xs
            layer = nnx.merge(graphdef, params)
            return run(layer, hidden, place, part, remat=self.remat)

        return jax.lax.scan(body, hidden, (params, cache))


def make_blocks(
    make: Callable[[Factory], nnx.Module], factory: Factory, layers: int, scan: bool
) -> nnx.Module:
    """The layers as a list, or as one module with leaves `[layers, ...]`."""
    if not scan:
        return nnx.List(make(factory) for _ in range(layers))

    @nnx.split_rngs(splits=layers)
    @nnx.vmap
    def stacked(rngs: nnx.Rngs) -> nnx.Module:
        return make(factory.drawing_from(rngs))

    return stacked(factory.kwargs["rngs"])


def project(hidden: jax.Array, kernel: jax.Array, dtype: Any) -> jax.Array:
    """`hidden @ kernel` in the compute dtype, summed in float32 or wider."""
    wide = jnp.promote_types(dtype, jnp.float32)
    hidden, kernel = hidden.astype(dtype), kernel.astype(dtype)
    return jnp.matmul(hidden, kernel, preferred_element_type=wide)


def _positions(batch: int, length: int) -> jax.Array:
    """Positions from 0 on, `[batch, length]`."""
    return jnp.broadcast_to(jnp.arange(length)[None], (batch, length))


def _starts(segments: jax.Array) -> jax.Array:
    """Where the run of equal numbers that each entry belongs to begins."""
    slots = jnp.broadcast_to(jnp.arange(segments.shape[1])[None], segments.shape)
    new = segments[:, 1:] != segments[:, :-1]
    first = jnp.where(new, slots[:, 1:], 0)
    return jax.lax.cummax(jnp.concatenate([slots[:, :1], first], axis=1), axis=1)


def _apart(segments: jax.Array, rows: int) -> tuple[jax.Array, jax.Array]:
    """Starts of the texts, and what is of one text; all see a prompt of `rows`."""
    starts = _starts(segments)
    if rows:
        starts = jnp.pad(starts, ((0, 0), (rows, 0)))
    alike = starts[:, :, None] == starts[:, None, :]
    if rows:
        alike = alike | (jnp.arange(starts.shape[1]) < rows)[None, None]
    return starts, alike


def _causal(positions: jax.Array, slots: int) -> jax.Array:
    """Which slots a token at each position sees, `[batch, length, slots]`."""
    return jnp.arange(slots)[None, None, :] <= positions[:, :, None]
