"""Texts from a language model: a cache of what was read, nucleus sampling without a sort, and one compiled loop."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from plural_jax import _validate
from plural_jax._typing import ArrayLike
from plural_jax.models.gpt2 import Decoder
from plural_jax.models.network import Params

_TRIES = 4
_FEWEST = 32  # rows, below which a network's step hardly gets cheaper


def generate(
    model: Decoder,
    params: Params,
    key: Array,
    num: int,
    *,
    length: int,
    temperature: ArrayLike = 0.8,
    top_p: ArrayLike = 0.95,
    prompt: ArrayLike | None = None,
) -> Array:
    """Texts, drawn token by token until all of them have ended.

        y_t ~ nucleus(softmax(logits(end_of_text, y_1, ..., y_{t-1}) / temperature), top_p)

    Compiled once for a configuration, `num`, `length` and the length of the prompt; other numbers compile nothing.

    Args:
        model: for example `gpt2("paper")`.
        params: its parameters.
        key: a random key.
        num: of texts; static.
        length: of the result, in tokens; a text that has not ended by then is cut. At most the model's context; static.
        temperature: at 0, always one of the most likely tokens.
        top_p: mass of the nucleus, see `nucleus_sample`; 1 draws from all tokens.
        prompt: int [num, p] with which the texts begin, 0 < p < length, read in one pass; a row with an end of text in it is
            taken for a text that has ended there.

    Returns:
        int32 [num, length]: every text, from its end on filled up with end of text.

    Raises:
        ValueError: numbers outside of these ranges.

    Example:
        >>> import jax
        >>> from plural_jax.models.gpt2 import gpt2
        >>> model = gpt2("tiny")
        >>> params = model.init(jax.random.key(0))
        >>> generate(model, params, jax.random.key(1), 3, length=5).shape
        (3, 5)

    Source: C.6 of the paper.
    """
    num, length = _validate.positive_integer(num, "num"), _validate.positive_integer(length, "length")
    if length > model.config.context:
        raise ValueError(f"length must be at most the model's context={model.config.context}, got {length}.")
    check_sampling(temperature, top_p)
    if prompt is not None:
        prompt = jnp.asarray(prompt)
        if prompt.ndim != 2 or prompt.shape[0] != num or not 0 < prompt.shape[1] < length:
            raise ValueError(f"prompt must have shape [num={num}, p] with 0 < p < length={length}, got {prompt.shape}.")
        if not jnp.issubdtype(prompt.dtype, jnp.integer):
            raise ValueError(f"prompt must hold tokens, which are integers, got {prompt.dtype}.")
        prompt = prompt.astype(jnp.int32)
    numbers = (jnp.asarray(temperature, jnp.float32), jnp.asarray(top_p, jnp.float32))
    return _generate(model, params, key, *numbers, prompt, num=num, length=length)


@functools.partial(jax.jit, static_argnames=("num", "length"))
def _generate(
    model: Decoder,
    params: Params,
    key: Array,
    temperature: Array,
    top_p: Array,
    prompt: Array | None,
    *,
    num: int,
    length: int,
) -> Array:
    end = model.config.end_of_text
    # Beyond a text's end everything is end of text already, so a loop that stops early leaves nothing to be done.
    result = tokens = jnp.full((num, length), end, jnp.int32)
    cache = model.start_cache(num, length)
    token, ended, begin = jnp.full(num, end, jnp.int32), jnp.zeros(num, bool), 0
    if prompt is not None:
        begin = prompt.shape[1]
        over = jnp.cumsum(prompt == end, axis=1, dtype=jnp.int32) > 0
        prompt = jnp.where(over, end, prompt)
        tokens = tokens.at[:, :begin].set(prompt)
        # The network reads the end of text and the prompt; its last token is for the loop, which needs what follows it.
        cache = model.fill(params, cache, jnp.concatenate([token[:, None], prompt[:, :-1]], axis=1))
        token, ended = prompt[:, -1], over[:, -1]

    def one_more(state: Any) -> Any:
        position, token, ended, tokens, cache = state
        logits, cache = model.step(params, cache, token, position)
        fresh = nucleus_sample(jax.random.fold_in(key, position), logits, temperature, top_p)
        token = jnp.where(ended, end, fresh)
        tokens = jax.lax.dynamic_update_slice(tokens, token[:, None], (jnp.zeros_like(position), position))
        return position + 1, token, ended | (token == end), tokens, cache

    position, rows = jnp.asarray(begin, jnp.int32), jnp.arange(num, dtype=jnp.int32)
    for few in (*_fewer(num), 0):

        def goes_on(state: Any, few: int = few) -> Array:
            position, _, ended, *_ = state
            return (position < length) & (jnp.sum(~ended, dtype=jnp.int32) > few)

        state = jax.lax.while_loop(goes_on, one_more, (position, token, ended, tokens, cache))
        position, token, ended, tokens, cache = state
        result = result.at[rows].set(tokens)
        if few:
            # Those that have not ended come first; where the length is reached it does not matter who goes on.
            stay = jnp.argsort(ended)[:few]
            token, ended, tokens, rows = (x[stay] for x in (token, ended, tokens, rows))
            cache = model.keep(cache, stay)
    return result


def _fewer(num: int) -> list[int]:
    """Numbers of texts at which the loop goes on with fewer rows, since those that have ended cost as much as the others."""
    return [num // k for k in (2, 4) if num // k >= _FEWEST]


def nucleus_sample(key: Array, logits: Array, temperature: ArrayLike, top_p: ArrayLike) -> Array:
    """One token of each row from its nucleus: the most likely tokens, as few as have a mass of at least `top_p` together.

        p = softmax(logits / temperature);  q(v) = p(v) / p(nucleus) in the nucleus, 0 elsewhere
        nucleus = {v: the mass of strictly more likely tokens is below top_p}

    Tokens that are exactly as likely as the last one of the nucleus are all in it, where a sort would keep some of them.

    The law is exact but nothing is sorted: a token is drawn from the whole softmax and kept if it is in the nucleus, which one
    sum over the row decides. A token that is not kept says more: the nucleus lies strictly above it, so the next one is drawn
    from what is more likely. That set shrinks to a fraction each time, never below the nucleus, and what is kept has the nucleus'
    law whatever set it came from. At `top_p` = 0.95 the first draws do for nearly all rows.

    Args:
        key: a random key.
        logits: [n, v].
        temperature: a scalar; at 0, one of the most likely tokens.
        top_p: a scalar in (0, 1]; 1 draws from all tokens.

    Returns:
        int32 [n]. Where logits hold NaN a token means nothing.

    Raises:
        ValueError: a temperature or `top_p` outside of its range.

    Example:
        >>> import jax
        >>> logits = jnp.log(jnp.array([[0.5, 0.3, 0.2]]).repeat(1000, axis=0))
        >>> tokens = nucleus_sample(jax.random.key(0), logits, 1.0, 0.6)
        >>> print(jnp.unique(tokens))
        [0 1]

    Source: C.6 of the paper; Holtzman et al. 2020.
    """
    check_sampling(temperature, top_p)
    dtype = logits.dtype
    n, num_tokens = logits.shape
    temperature, top_p = jnp.asarray(temperature, dtype), jnp.asarray(top_p, dtype)
    # Two levels of about the square root of v: a token is drawn by its column and then its row of a table. Neighbouring tokens
    # lie in different columns, so that sums over all columns at once run along the logits as they lie in memory.
    columns = math.ceil(math.sqrt(num_tokens))
    rows = math.ceil(num_tokens / columns)
    # Below, a temperature of 0 leaves 0 for the most likely and minus infinity for all others.
    cold = jnp.maximum(temperature, jnp.finfo(dtype).tiny)
    shifted = (logits - jnp.max(logits, axis=1, keepdims=True)) / cold
    shifted = jnp.pad(shifted, ((0, 0), (0, rows * columns - num_tokens)), constant_values=-jnp.inf)
    mass = jnp.exp(shifted).reshape(n, rows, columns)
    sums = jnp.sum(mass, axis=1)
    enough = top_p * jnp.sum(sums, axis=1, keepdims=True)

    def goes_on(state: Any) -> Array:
        return ~jnp.all(state[-1])

    def try_again(state: Any) -> Any:
        number, above, sums, token, done = state
        at = jax.random.uniform(jax.random.fold_in(key, number), (2, n, _TRIES), dtype)
        column = _place(sums[:, None], at[0])
        inside = jnp.take_along_axis(mass, column[:, None, :], axis=2).swapaxes(1, 2)  # [n, tries, rows]
        row = _place(jnp.where(inside > above[:, None, None], inside, jnp.zeros_like(inside)), at[1])
        drawn = jnp.take_along_axis(inside, row[..., None], axis=2)  # [n, tries, 1]
        # For every try, the masses of what is more likely by columns: their sum decides, and they begin the next round.
        more = _masses_above(mass, drawn[..., 0])  # [n, tries, columns]
        # Not "below": sums that are NaN must not go on for ever, and at 1 the least likely token must not be lost to rounding.
        kept = ~(jnp.sum(more, axis=2) >= enough) | (top_p >= 1)
        first = jnp.argmax(kept, axis=1)[:, None]
        found = jnp.take_along_axis(row * columns + column, first, axis=1)[:, 0]
        token = jnp.where(done, token, found.astype(jnp.int32))
        highest = jnp.argmax(drawn[..., 0], axis=1)[:, None]  # used where nothing was kept
        above = jnp.take_along_axis(drawn[..., 0], highest, axis=1)[:, 0]
        sums = jnp.take_along_axis(more, highest[..., None], axis=1)[:, 0]
        return number + 1, above, sums, token, done | jnp.any(kept, axis=1)

    start = (jnp.int32(0), jnp.full(n, -1, dtype), sums, jnp.zeros(n, jnp.int32), jnp.zeros(n, bool))
    return jnp.minimum(jax.lax.while_loop(goes_on, try_again, start)[3], num_tokens - 1)


def _masses_above(mass: Array, bounds: Array) -> Array:
    """For each column of the tables [n, rows, columns], the mass of what is above each bound, [n, m]: [n, m, columns]."""

    def at_once(mass: Array, bounds: Array) -> Array:
        return jnp.sum(jnp.where(mass[:, None] > bounds[..., None, None], mass[:, None], 0), axis=2)

    def one_by_one(mass: Array, bounds: Array) -> Array:
        # A table stays in the cache of a processor and its sums in registers: 7 ms of 95 for 200 rows of 50,257.
        def table(given: tuple[Array, Array]) -> Array:
            mass, bounds = given

            def row(number: Array, sums: Array) -> Array:
                part = jax.lax.dynamic_index_in_dim(mass, number, keepdims=False)
                return sums + jnp.where(part > bounds[:, None], part, 0)

            return jax.lax.fori_loop(0, mass.shape[0], row, jnp.zeros((bounds.shape[0], mass.shape[1]), mass.dtype))

        return jax.lax.map(table, (mass, bounds))

    return jax.lax.platform_dependent(mass, bounds, cpu=one_by_one, default=at_once)


def _place(mass: Array, at: Array) -> Array:
    """In which of the masses along the last axis the share `at`, in [0, 1), of their sum lies; never in an empty one."""
    ends = jnp.cumsum(mass, axis=-1)
    last = ends[..., -1]
    # A product may round up to the end itself, where nothing lies.
    at = jnp.minimum(at * last, jnp.nextafter(last, jnp.zeros_like(last)))
    return jnp.minimum(jnp.sum(ends <= at[..., None], axis=-1, dtype=jnp.int32), mass.shape[-1] - 1)


def check_sampling(temperature: ArrayLike, top_p: ArrayLike) -> None:
    for name, value in (("temperature", temperature), ("top_p", top_p)):
        if np.ndim(value):  # of a tracer too
            raise ValueError(f"{name} must be a single number, got shape {np.shape(value)}.")
        _validate.finite(value, name)
    given = _validate.concrete(temperature), _validate.concrete(top_p)
    if given[0] is not None and given[0] < 0:
        raise ValueError(f"temperature must be at least 0, got {given[0]:g}.")
    if given[1] is not None and not 0 < given[1] <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, got {given[1]:g}.")
