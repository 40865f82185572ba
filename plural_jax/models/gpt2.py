"""GPT-2: a decoder of texts, of any size, as pure functions over a plain pytree of arrays.

    h_0 = E[token] + P[position]
    h   = h + attention(normalized h);  h = h + wide(normalized h)      in every block
    logits = E normalized h                                             the output head is the table of the tokens

The arrays of all blocks are stacked along a leading axis and a scan runs over them, so that six layers compile as fast as one.
Texts are int32 [n, length], and the network reads them shifted: it is given the token of the end of text, which also begins a
text, and then the text's own tokens.

Shapes: n texts of l tokens; width w; heads h of size d = w / h.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.tree_util import Partial

from plural_jax.models.network import Params, _structure, drop, functional

_EPSILON = 1e-5
_SPREAD = 0.02  # standard deviation of the start
_AT_ONCE = 8  # positions of a cache that are read together


@jax.tree_util.register_static
@dataclass(frozen=True)
class GPT2Config:
    """The shape of a GPT-2.

    Attributes:
        num_layers: blocks.
        num_heads: of the attention in every block.
        width: of the states; the wide layers in between have four times as much.
        num_tokens: size of the vocabulary.
        context: number of positions, the most tokens that it can read.
        end_of_text: the token that ends a text and, as the first one that the network reads, begins it.
        dropout: probability of dropping a feature in training; the published models had 0.1.
        dtype: in which it computes, "float32" or "bfloat16"; parameters and logits are float32.
    """

    num_layers: int = 6
    num_heads: int = 6
    width: int = 384
    num_tokens: int = 50257
    context: int = 128
    end_of_text: int = 50256
    dropout: float = 0.0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("num_layers", "num_heads", "width", "num_tokens", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.width % self.num_heads:
            raise ValueError(f"num_heads must divide width, got num_heads={self.num_heads} and width={self.width}.")
        if not 0 <= self.end_of_text < self.num_tokens:
            raise ValueError(
                f"end_of_text must be one of the num_tokens={self.num_tokens} tokens, got {self.end_of_text}."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout:g}.")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype must be 'float32' or 'bfloat16', got {self.dtype!r}.")


#: Presets by name: "paper" has the size of C.6, "tiny" that of a test.
GPT2S: dict[str, GPT2Config] = {
    "tiny": GPT2Config(num_layers=2, num_heads=2, width=32, num_tokens=300, context=64, end_of_text=299),
    "paper": GPT2Config(),
}


class Decoder(NamedTuple):
    """A model of texts as pure functions. A cache is what the blocks remember of the tokens that they have read.

    Attributes:
        init: `(key) -> params`, a nested dictionary of float32 arrays; those of the blocks have a leading axis of layers.
        apply: `(params, tokens, key=None) -> logits`, of the token that follows each of the given ones; tokens int [n, l] as the
            network reads them, logits float32 [n, l, num_tokens]; key None: nothing is dropped at random.
        hidden: `(params, tokens, key=None) -> states` [n, l, width], of which `head` makes logits.
        head: `(params, states) -> logits`, states [..., width] and logits float32 [..., num_tokens].
        start_cache: `(n, length) -> cache` for n texts of which at most `length` tokens are read; both static.
        fill: `(params, cache, tokens) -> cache` after reading the first tokens, int [n, l], in one pass.
        step: `(params, cache, token, position) -> (logits, cache)` after one more token, int [n], which is number `position`, a
            scalar that may be traced, from 0 to `length - 1`; logits float32 [n, num_tokens].
        keep: `(cache, rows) -> cache` of some of the texts, int [m].
        config: what the model is; static.
    """

    init: Callable[[Array], Params]
    apply: Callable[..., Array]
    hidden: Callable[..., Array]
    head: Callable[[Params, Array], Array]
    start_cache: Callable[[int, int], Any]
    fill: Callable[[Params, Any, Array], Any]
    step: Callable[[Params, Any, Array, Any], tuple[Array, Any]]
    keep: Callable[[Any, Array], Any]
    config: GPT2Config


def gpt2(config: GPT2Config | str = "paper") -> Decoder:
    """A GPT-2 as pure functions; equal configurations give equal functions, so nothing compiles twice.

    Args:
        config: a `GPT2Config`, or the name of a preset: "tiny" or "paper" (30 M parameters, of which 19 M are the tokens').

    Returns:
        A `Decoder`. It starts as GPT-2 does: weights `N(0, 0.02²)`, those that end a branch `N(0, 0.02² / (2 layers))`.

    Raises:
        ValueError: there is no such preset.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = gpt2("tiny")
        >>> params = model.init(jax.random.key(0))
        >>> model.apply(params, jnp.array([[299, 5, 7]])).shape
        (1, 3, 300)

    Source: C.6 of the paper; Radford et al. 2019.
    """
    if isinstance(config, str):
        if config not in GPT2S:
            raise ValueError(f"config must be a GPT2Config or one of {', '.join(GPT2S)}, got {config!r}.")
        config = GPT2S[config]
    methods = {name: Partial(_Method(config, name)) for name in ("apply", "hidden", "head", "fill", "step")}
    init = functional(_GPT2, config, ()).init
    return Decoder(init=init, start_cache=Partial(_StartCache(config)), keep=Partial(_keep), config=config, **methods)


@dataclass(frozen=True)
class _Method:
    """A method of the module as a function of its parameters."""

    config: GPT2Config
    name: str

    def __call__(self, params: Params, *given: Any, **named: Any) -> Any:
        structure, state = _structure(_GPT2, self.config)
        nnx.replace_by_pure_dict(state, params)
        return getattr(nnx.merge(structure, state), self.name)(*given, **named)


@dataclass(frozen=True)
class _StartCache:
    config: GPT2Config

    def __call__(self, n: int, length: int) -> Any:
        config = self.config
        if length > config.context:
            raise ValueError(f"length must be at most the model's context={config.context}, got {length}.")
        shape = (config.num_layers, -(-length // _AT_ONCE) * _AT_ONCE, n, config.width)
        return {name: jnp.zeros(shape, config.dtype) for name in ("keys", "values")}


def _keep(cache: Any, rows: Array) -> Any:
    return jax.tree.map(lambda x: jnp.take(x, rows, axis=2, mode="clip"), cache)


def _linear(inputs: int, outputs: int, spread: float, rngs: nnx.Rngs, config: GPT2Config) -> nnx.Linear:
    start = nnx.initializers.normal(spread)
    return nnx.Linear(
        inputs, outputs, rngs=rngs, kernel_init=start, dtype=jnp.dtype(config.dtype), param_dtype=jnp.float32
    )


class _Normalization(nnx.Module):
    """Layer normalization; statistics in float32 whatever the network computes in."""

    def __init__(self, rngs: nnx.Rngs, config: GPT2Config) -> None:
        self.scale = nnx.Param(jnp.ones(config.width, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(config.width, jnp.float32))

    def __call__(self, x: Array) -> Array:
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + _EPSILON)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class _Block(nnx.Module):
    def __init__(self, config: GPT2Config, rngs: nnx.Rngs) -> None:
        width, last = config.width, _SPREAD / math.sqrt(2 * config.num_layers)
        self.before_attention = _Normalization(rngs, config)
        self.attention_in = _linear(width, 3 * width, _SPREAD, rngs, config)
        self.attention_out = _linear(width, width, last, rngs, config)
        self.before_wide = _Normalization(rngs, config)
        self.wide_in = _linear(width, 4 * width, _SPREAD, rngs, config)
        self.wide_out = _linear(4 * width, width, last, rngs, config)
        self.config = config

    def __call__(self, x: Array, key: Array | None) -> tuple[Array, Array, Array]:
        """States after the block, [n, l, w], and the keys and values of its attention, [n, l, w]."""
        config = self.config
        of_scores, of_attention, of_wide = (None,) * 3 if key is None else jax.random.split(key, 3)
        query, keys, values = jnp.split(self.attention_in(self.before_attention(x)), 3, axis=-1)
        parts = (*x.shape[:2], config.num_heads, config.width // config.num_heads)
        scores = jnp.einsum(
            "nqhd,nkhd->nhqk", query.reshape(parts), keys.reshape(parts), preferred_element_type=jnp.float32
        )
        length = x.shape[1]
        seen = jnp.tril(jnp.ones((length, length), bool))
        scores = jnp.where(seen, scores / math.sqrt(parts[-1]), -jnp.inf)
        shares = drop(jax.nn.softmax(scores, axis=-1), of_scores, config.dropout).astype(x.dtype)
        mixed = jnp.einsum("nhqk,nkhd->nqhd", shares, values.reshape(parts)).reshape(x.shape)
        x = x + drop(self.attention_out(mixed), of_attention, config.dropout)
        return x + drop(self._wide(x), of_wide, config.dropout), keys, values

    def step(self, x: Array, cache: Any, layer: Array, position: Array) -> tuple[Array, Array, Array]:
        """One token of each text, [n, w], after those that the cache has; and the token's own key and value, [n, w]."""
        config = self.config
        query, key, value = jnp.split(self.attention_in(self.before_attention(x)), 3, axis=-1)
        parts = (x.shape[0], config.num_heads, config.width // config.num_heads)
        sharp = query.reshape(parts).astype(jnp.float32) / math.sqrt(parts[-1])

        def scores_and_values(keys: Array, values: Array) -> tuple[Array, Array]:
            keys, values = (y.reshape(-1, *parts).astype(jnp.float32) for y in (keys, values))
            return jnp.sum(keys * sharp, axis=-1), values

        # A softmax over what the cache has, a few positions at a time, and no more of them than there are. It begins with the
        # token itself and is kept relative to the highest score so far.
        (highest,), (mixed,) = scores_and_values(key, value)
        among = jnp.arange(_AT_ONCE, dtype=position.dtype)

        def some(number: Array, sums: Any) -> Any:
            highest, total, mixed = sums
            first = number * _AT_ONCE
            at = (layer.astype(position.dtype), first, jnp.zeros_like(first), jnp.zeros_like(first))
            size = (1, _AT_ONCE, *x.shape)
            scores, values = scores_and_values(*(jax.lax.dynamic_slice(cache[y], at, size) for y in ("keys", "values")))
            scores = jnp.where((first + among < position)[:, None, None], scores, -jnp.inf)
            higher = jnp.maximum(highest, jnp.max(scores, axis=0))
            shrunk, shares = jnp.exp(highest - higher), jnp.exp(scores - higher)
            mixed = mixed * shrunk[..., None]
            for share, value in zip(shares, values, strict=True):  # on CPUs several times as fast as one sum
                mixed = mixed + share[..., None] * value
            return higher, total * shrunk + jnp.sum(shares, axis=0), mixed

        start = (highest, jnp.ones_like(highest), mixed)
        _, total, mixed = jax.lax.fori_loop(0, -(-position // _AT_ONCE), some, start)
        x = x + self.attention_out((mixed / total[..., None]).reshape(x.shape).astype(x.dtype))
        return x + self._wide(x), key, value

    def _wide(self, x: Array) -> Array:
        return self.wide_out(jax.nn.gelu(self.wide_in(self.before_wide(x)), approximate=True))


class _GPT2(nnx.Module):
    def __init__(self, config: GPT2Config, rngs: nnx.Rngs) -> None:
        start = nnx.initializers.normal(_SPREAD)
        self.tokens = nnx.Param(start(rngs.params(), (config.num_tokens, config.width), jnp.float32))
        self.positions = nnx.Param(start(rngs.params(), (config.context, config.width), jnp.float32))
        keys = jax.random.split(rngs.params(), config.num_layers)
        self.blocks = nnx.vmap(lambda key: _Block(config, nnx.Rngs(key)))(keys)
        self.last = _Normalization(rngs, config)
        self.config = config

    def apply(self, tokens: Array, key: Array | None = None) -> Array:
        return self.head(self.hidden(tokens, key))

    def hidden(self, tokens: Array, key: Array | None = None) -> Array:
        return self.last(self._through(tokens, key, keep=False)[0])

    def head(self, states: Array) -> Array:
        # Both contract their last axis, so the table is read as it lies and is never transposed.
        contracted = (((states.ndim - 1,), (1,)), ((), ()))
        table = self.tokens[...].astype(states.dtype)
        return jax.lax.dot_general(states, table, contracted, preferred_element_type=jnp.float32)

    def fill(self, cache: Any, tokens: Array) -> Any:
        _, read = self._through(tokens, None, keep=True)
        return {
            name: jax.lax.dynamic_update_slice(cache[name], jnp.swapaxes(new, 1, 2), (0, 0, 0, 0))
            for name, new in zip(("keys", "values"), read, strict=True)
        }

    def step(self, cache: Any, token: Array, position: Any) -> tuple[Array, Any]:
        position = jnp.asarray(position, jnp.int32)
        x = self._look_up(token) + self._row(position)
        structure, blocks = nnx.split(self.blocks)

        def through(x: Array, given: Any) -> tuple[Array, Any]:
            number, block = given
            x, key, value = nnx.merge(structure, block).step(x, cache, number, position)
            return x, {"keys": key[None], "values": value[None]}

        # The scan only reads the cache, and what is new is written at once: so it is written in place and nothing is copied.
        numbers = jnp.arange(self.config.num_layers, dtype=jnp.int32)
        x, new = jax.lax.scan(through, x, (numbers, blocks))
        nothing = jnp.zeros_like(position)
        at = (nothing, position, nothing, nothing)
        cache = jax.tree.map(lambda old, new: jax.lax.dynamic_update_slice(old, new, at), cache, new)
        return self.head(self.last(x)), cache

    def _through(self, tokens: Array, key: Array | None, keep: bool) -> tuple[Array, Any]:
        config, length = self.config, tokens.shape[1]
        if length > config.context:
            raise ValueError(f"tokens must hold at most context={config.context} of them in a row, got {length}.")
        at_start = None if key is None else jax.random.fold_in(key, config.num_layers)
        x = self._look_up(tokens) + self.positions[:length].astype(config.dtype)
        x = drop(x, at_start, config.dropout)
        structure, blocks = nnx.split(self.blocks)

        def through(x: Array, given: Any) -> tuple[Array, Any]:
            number, block = given
            fresh = None if key is None else jax.random.fold_in(key, number)
            x, keys, values = nnx.merge(structure, block)(x, fresh)
            return x, (keys, values) if keep else None

        return jax.lax.scan(through, x, (jnp.arange(config.num_layers, dtype=jnp.int32), blocks))

    def _look_up(self, tokens: Array) -> Array:
        return jnp.take(self.tokens[...], tokens, axis=0, mode="clip").astype(self.config.dtype)

    def _row(self, position: Array) -> Array:
        return jnp.take(self.positions[...], position, axis=0, mode="clip").astype(self.config.dtype)
