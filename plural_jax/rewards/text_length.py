"""Lengths of texts in words, counted on the device, and what prefers one.

Texts are tokens, integers [n, length]: a text's own, and end-of-text from its end on. A word is what `str.split()` makes of the
decoded text, and a token knows neither where words nor where characters begin: a white space of three bytes may be spread over
three tokens, and bytes that are no valid UTF-8 decode to U+FFFD, which is part of a word. So texts are read byte by byte, by an
automaton whose state is the beginning of a white space that the last bytes may be, and whether a word was begun before it. What a
token does to each state, and how many words it begins, is written down once.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from plural_jax import _validate
from plural_jax._pytree import pytree_dataclass, static_field
from plural_jax._typing import ArrayLike
from plural_jax.landscape import as_float

if TYPE_CHECKING:
    from plural_jax.data.byte_pairs import BytePairs


@pytree_dataclass
class WordCounter:
    """See `word_counter`.

    Attributes:
        next_state: int8 [tokens, states], the state after a token.
        begun: int16 [tokens, states], how many words it begins.
        end_of_text: number of the token that ends a text.
    """

    next_state: Array
    begun: Array
    end_of_text: int = static_field()

    @jax.jit
    def __call__(self, tokens: ArrayLike) -> Array:
        tokens = jnp.asarray(tokens)
        if tokens.ndim == 0 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(f"tokens must be integers [n, length], got {tokens.dtype} {list(tokens.shape)}.")

        def read(carry: tuple[Array, Array], token: Array) -> tuple[tuple[Array, Array], None]:
            state, words = carry
            words = words + self.begun[token, state].astype(jnp.int32)
            return (self.next_state[token, state].astype(jnp.int32), words), None

        start = jnp.zeros(tokens.shape[:-1], jnp.int32)
        carry, _ = jax.lax.scan(read, (start, start), jnp.moveaxis(tokens.astype(jnp.int32), -1, 0))
        # A row that was cut ends here; one that has ended is not changed by another end.
        (_, words), _ = read(carry, jnp.full_like(start, self.end_of_text))
        return words


def word_counter(byte_pairs: BytePairs) -> WordCounter:
    r"""The number of words of each text, L of C.6: exactly what splitting the decoded text on white space gives, for any tokens.

    `L(y) = len(decode(y).split())`, computed on the device and inside of `jit` and `vmap`

    Args:
        byte_pairs: what decodes the tokens; its `pieces()` and its `end_of_text` are used.

    Returns:
        `tokens [..., length] -> int32 [...]`, a pytree of two tables (2.9 MB for GPT-2's tokens). The tokens must be of the
        encoding, which is not checked.

    Raises:
        ValueError: a token of more than 32,767 words. When called: tokens that are no integers.

    Example:
        >>> from plural_jax.data.byte_pairs import small_byte_pairs
        >>> codes = small_byte_pairs([], num_tokens=257)  # of single bytes
        >>> count = word_counter(codes)
        >>> count(codes.encode(["it rains", "", "it\u3000pours\u00a0and \u2014 pours"], length=24)).tolist()
        [2, 0, 5]
    """
    pieces, end = byte_pairs.pieces(), byte_pairs.end_of_text
    automaton = _automaton()
    num_states = len(automaton.ended)
    state = np.tile(np.arange(num_states), (len(pieces), 1))
    begun = np.zeros((len(pieces), num_states), np.int64)
    lengths = np.array([len(piece) for piece in pieces])
    joined = np.frombuffer(b"".join(pieces), np.uint8)
    starts = np.cumsum(lengths) - lengths
    for position in range(lengths.max(initial=0)):
        rows = np.flatnonzero(lengths > position)
        byte = joined[starts[rows] + position][:, None]
        begun[rows] += automaton.begun[byte, state[rows]]
        state[rows] = automaton.next_state[byte, state[rows]]
    begun[end] = automaton.ended
    state[end] = num_states - 1
    if begun.max(initial=0) > np.iinfo(np.int16).max:
        raise ValueError(f"byte_pairs must not have tokens of more than 32767 words, got one of {begun.max()}.")
    return WordCounter(jnp.asarray(state, jnp.int8), jnp.asarray(begun, jnp.int16), end)


class _Automaton(NamedTuple):
    """What a byte does: int [256, states] each; the last state is that of a text that has ended.

    Attributes:
        next_state: the state after it.
        begun: how many words it begins, or is known to have begun.
        ended: [states], how many more if the text ends here.
    """

    next_state: np.ndarray
    begun: np.ndarray
    ended: np.ndarray


@cache
def _automaton() -> _Automaton:
    """The automaton over bytes; state `2 i + j` has read the i-th beginning of a white space, in a word (j = 1) or not."""
    spaces = {character.encode() for character in map(chr, range(sys.maxunicode + 1)) if character.isspace()}
    beginnings = sorted({space[:size] for space in spaces for size in range(len(space))})
    number = {beginning: i for i, beginning in enumerate(beginnings)}

    def read(beginning: bytes, word: int, byte: bytes) -> tuple[bytes, int, int]:
        """Beginning, whether in a word, and words begun, after a byte."""
        bytes_so_far = beginning + byte
        if bytes_so_far in spaces:
            return b"", 0, 0
        if bytes_so_far in number:
            return bytes_so_far, word, 0
        # No white space, whatever follows: a character of a word, or what becomes one or more U+FFFD.
        if not beginning or 0x80 <= byte[0] < 0xC0:
            return b"", 1, 1 - word
        # The beginning had no end and is a U+FFFD; the byte begins anew.
        after, inside, more = read(b"", 1, byte)
        return after, inside, 1 - word + more

    num_states = 2 * len(beginnings) + 1
    next_state = np.full((256, num_states), num_states - 1)
    begun = np.zeros((256, num_states), np.int64)
    for beginning, i in number.items():
        for word in (0, 1):
            for byte in range(256):
                after, inside, words = read(beginning, word, bytes([byte]))
                next_state[byte, 2 * i + word] = 2 * number[after] + inside
                begun[byte, 2 * i + word] = words
    # A beginning that the text's end cuts off is a U+FFFD.
    ended = [1 if beginning and not word else 0 for beginning in beginnings for word in (0, 1)]
    return _Automaton(next_state, begun, np.array([*ended, 0]))


@pytree_dataclass
class LengthReward:
    """See `length_reward`."""

    counter: WordCounter
    targets: Array
    scale: Array

    @jax.jit
    def __call__(self, tokens: ArrayLike) -> Array:
        return -self.scale * _distances(self.counter(tokens), self.targets)


def length_reward(counter: WordCounter, targets: ArrayLike, scale: ArrayLike = 1.0) -> LengthReward:
    """Rewards for texts near a wanted number of words (C.6).

    `r_i(y) = -scale_i |L(y) - T_i|`

    Args:
        counter: L, from `word_counter`.
        targets: T, the wanted number of words of each of m preferences, [m]; it may be traced.
        scale: reward per word of distance, a number or [m], not negative; it may be traced.

    Returns:
        A reward `tokens [n, length] -> [n, m]`, in the floating type of the targets.

    Raises:
        ValueError: a counter that is none; targets or scale of the wrong shape, NaN or infinite; a negative scale.

    Example:
        >>> from plural_jax.data.byte_pairs import small_byte_pairs
        >>> codes = small_byte_pairs([], num_tokens=257)
        >>> reward = length_reward(word_counter(codes), [2, 5])
        >>> reward(codes.encode(["it rains and pours", "it rains"], length=24)).tolist()
        [[-2.0, -1.0], [-0.0, -3.0]]
    """
    wanted = _targets(counter, targets)
    value = _validate.real_array(scale, "scale")
    _validate.finite(scale, "scale")
    if np.shape(scale) not in ((), wanted.shape):
        raise ValueError(
            f"scale must be a number or one for each of {len(wanted)} targets, got shape {np.shape(scale)}."
        )
    if value is not None and (value < 0).any():
        raise ValueError(f"scale must not be negative, got {_validate.shown(value)}.")
    return LengthReward(counter, wanted, jnp.broadcast_to(jnp.asarray(scale).astype(wanted.dtype), wanted.shape))


@pytree_dataclass
class NearestTarget:
    """See `nearest_target`."""

    counter: WordCounter
    targets: Array
    width: Array

    @jax.jit
    def __call__(self, tokens: ArrayLike) -> Array:
        distances = _distances(self.counter(tokens), self.targets)
        nearest = jnp.argmin(distances, axis=-1).astype(jnp.int32)
        return jnp.where(jnp.min(distances, axis=-1) <= self.width, nearest, -1)


def nearest_target(counter: WordCounter, targets: ArrayLike, width: ArrayLike = 2.0) -> NearestTarget:
    """The target in whose bin a text's length lies, which is what leakage between lengths is measured with (E8).

    `b(y) = argmin_i |L(y) - T_i|` where that distance is at most `width`, else -1

    Args:
        counter: L, from `word_counter`.
        targets: T, the wanted number of words of each of m preferences, [m]; it may be traced.
        width: how many words a length may be off on either side, not negative; it may be traced.

    Returns:
        A basin `tokens [n, length] -> int32 [n]`: the number of the nearest target, of the first one where two are as near, and
        -1 where none is near enough.

    Raises:
        ValueError: a counter that is none; targets or width of the wrong shape, NaN or infinite; a negative width.

    Example:
        >>> from plural_jax.data.byte_pairs import small_byte_pairs
        >>> codes = small_byte_pairs([], num_tokens=257)
        >>> basin = nearest_target(word_counter(codes), [2, 5], width=1)
        >>> basin(codes.encode(["it", "it rains and pours", ""], length=24)).tolist()
        [0, 1, -1]

    Source: E8; bins of 2 words on either side are a default of this project.
    """
    wanted = _targets(counter, targets)
    value = _validate.real_array(width, "width")
    _validate.finite(width, "width")
    if np.ndim(width):
        raise ValueError(f"width must be a number, got shape {np.shape(width)}.")
    if value is not None and value < 0:
        raise ValueError(f"width must not be negative, got {_validate.shown(value)}.")
    return NearestTarget(counter, wanted, jnp.asarray(width).astype(wanted.dtype))


def _distances(lengths: Array, targets: Array) -> Array:
    return jnp.abs(lengths[..., None].astype(targets.dtype) - targets)


def _targets(counter: WordCounter, targets: ArrayLike) -> Array:
    if not isinstance(counter, WordCounter):
        raise ValueError(f"counter must be made by word_counter, got {counter!r}.")
    _validate.finite(targets, "targets")
    if np.ndim(targets) != 1 or 0 in np.shape(targets):
        raise ValueError(
            f"targets must hold one number of words for each preference, [m], got shape {np.shape(targets)}."
        )
    return as_float(targets)
