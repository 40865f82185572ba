"""Fitting a decoder to texts: next-token prediction in batches of similar length, alone and as a `Process` that pretrains.

    loss = - sum_texts sum_j log P(x_j | x_<j) / (number of texts * tokens of a text on average),    j up to and with the end

Texts are int32 [n, length]: tokens, then end-of-text from the end on. Padding is not trained on, because the loss stops at the
first end-of-text: a model that learned the padding would stop at once. It is hardly paid for either: a batch holds texts of
similar length, and is cut to the smallest of the given `buckets` that holds them.

Shapes: n texts, l tokens of a batch.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.tree_util import Partial

from plural_jax import _validate
from plural_jax._pytree import pytree_dataclass, set_field, static_field
from plural_jax._typing import ArrayLike
from plural_jax.models.gpt2 import Decoder
from plural_jax.models.schedules import clipped_adam
from plural_jax.process import Process

#: Batches among which texts are sorted by length, at most: all of a small set, while a large one stays in random order.
_WINDOW = 32


@pytree_dataclass
class TextTraining:
    """How a decoder is fit. Numbers may be traced; sizes are static.

    Attributes:
        num_epochs: passes over the texts in one fit.
        batch_size: texts in a step.
        buckets: lengths that a batch may be cut to, rising; longer batches keep the length of the texts. Every bucket is
            compiled; under `vmap` all of them are computed, so give none there.
        learning_rate: of AdamW, after the warm-up.
        weight_decay: of AdamW.
        warm_up: steps over which the rate rises linearly from zero.
        decay: steps after which it has fallen to zero along a cosine; 0 for never.
        clip: largest norm of a gradient.
    """

    num_epochs: int = static_field(default=2)
    batch_size: int = static_field(default=8)
    buckets: tuple[int, ...] = static_field(default=(16, 24, 32, 48))
    learning_rate: ArrayLike = 5e-5
    weight_decay: ArrayLike = 0.01
    warm_up: ArrayLike = 0.0
    decay: ArrayLike = 0.0
    clip: ArrayLike = 1.0

    def __post_init__(self) -> None:
        for name in ("num_epochs", "batch_size"):
            _validate.positive_integer(getattr(self, name), name)
        buckets = tuple(_validate.positive_integer(b, "buckets") for b in self.buckets)
        if any(b <= a for a, b in itertools.pairwise(buckets)):
            raise ValueError(f"buckets must rise, got {self.buckets}.")
        set_field(self, "buckets", buckets)
        for name in ("learning_rate", "weight_decay", "warm_up", "decay", "clip"):
            value = getattr(self, name)
            known = _validate.concrete(value)
            if np.ndim(value) or (known is not None and not (np.isfinite(known) and known >= 0)):
                raise ValueError(f"{name} must be one number that is not negative, got {_validate.shown(value)}.")
            # NumPy's own numbers: making a configuration must not start JAX's devices.
            set_field(self, name, np.float32(value) if known is not None else jnp.asarray(value, jnp.float32))


class TextTrainingState(NamedTuple):
    """What the next step needs.

    Attributes:
        params: of the decoder.
        optimizer: state of AdamW.
        step: steps so far, int32 [].
    """

    params: Any
    optimizer: Any
    step: Array


class TextTrainingInfo(NamedTuple):
    """A round of training in numbers.

    Attributes:
        loss: mean over the round's tokens, in nats, [].
        step: steps so far, int32 [].
    """

    loss: Array
    step: Array


def token_losses(decoder: Decoder, params: Any, texts: Array, key: Array | None = None) -> tuple[Array, Array]:
    """What a decoder pays for each token of texts, and which of them count.

    `-log P(x_j | x_<j)`, `j` up to and with the first end-of-text; a text that was cut has no end to predict

    Args:
        decoder: such as `pj.models.gpt2()`.
        params: its parameters.
        texts: int32 [n, l].
        key: for dropout; None: nothing is dropped.

    Returns:
        Losses in nats, float32 [n, l], and whether each counts, bool [n, l].

    Example:
        >>> import jax
        >>> import plural_jax as pj
        >>> decoder = pj.models.gpt2("tiny")
        >>> texts = jnp.full((1, 4), decoder.config.end_of_text, jnp.int32).at[0, 0].set(7)
        >>> losses, counts = token_losses(decoder, decoder.init(jax.random.key(0)), texts)
        >>> counts[0].tolist()  # the token and the end after it
        [True, True, False, False]
    """
    end = decoder.config.end_of_text
    before = jnp.concatenate([jnp.full_like(texts[:, :1], end), texts[:, :-1]], axis=1)
    logits = decoder.head(params, decoder.hidden(params, before, key))
    chosen = jnp.take_along_axis(logits, texts[..., None], axis=-1)[..., 0]
    losses = jax.nn.logsumexp(logits, axis=-1) - chosen
    return losses, jnp.arange(texts.shape[1], dtype=jnp.int32) <= used_tokens(texts, end)[:, None]


def used_tokens(texts: Array, end_of_text: int) -> Array:
    """Tokens of each text before its end, int32 [n]."""
    return jnp.sum(jnp.cumsum(texts == end_of_text, axis=1, dtype=jnp.int32) == 0, axis=1, dtype=jnp.int32)


def start_text_training(training: TextTraining, params: Any) -> TextTrainingState:
    """The state before the first step from given parameters."""
    return TextTrainingState(params, _optimizer(training).init(params), jnp.int32(0))


def train_text(
    decoder: Decoder,
    training: TextTraining,
    key: Array,
    state: TextTrainingState,
    texts: Array,
    weights: Array | None = None,
) -> tuple[TextTrainingState, TextTrainingInfo]:
    """Train for `training.num_epochs` passes over texts.

    Args:
        decoder: what is fit.
        training: how.
        key: PRNG key.
        state: from `start_text_training` or an earlier call.
        texts: int32 [n, length].
        weights: [n], non-negative; a pass is then n draws with these probabilities. Default: every text once in a pass.

    Returns:
        The new state and what happened. Where the batch size does not divide n, a pass leaves a few texts out, others each time.
    """
    n, length = texts.shape
    size = min(training.batch_size, n)
    buckets = (*(b for b in training.buckets if b < length), length)
    ordering, dropping = jax.random.split(key)
    used = used_tokens(texts, decoder.config.end_of_text)
    batches = jnp.concatenate(
        [_batches(k, used, size, weights) for k in jax.random.split(ordering, training.num_epochs)]
    )
    optimizer = _optimizer(training)

    # By the tokens of an average batch, not of its own: batches of short texts would count for more, and texts get shorter.
    counted = jnp.minimum(used + 1, length).astype(jnp.float32)
    mean = (
        jnp.mean(counted)
        if weights is None
        else jnp.sum(counted * weights.astype(jnp.float32)) / jnp.sum(weights.astype(jnp.float32))
    )
    usual = size * mean.astype(jnp.float32)

    def loss_of(bucket: int, params: Any, rows: Array, key: Array) -> tuple[Array, Array]:
        losses, counts = token_losses(decoder, params, rows[:, :bucket], key)
        return jnp.sum(jnp.where(counts, losses, 0)) / usual, jnp.sum(counts, dtype=jnp.float32)

    branches = [jax.value_and_grad(partial(loss_of, bucket), has_aux=True) for bucket in buckets]

    def one(state: TextTrainingState, given: tuple[Array, Array]) -> tuple[TextTrainingState, tuple[Array, Array]]:
        indices, key = given
        # One more than the tokens: the end is trained on, where the text has one.
        needed = jnp.minimum(jnp.max(used[indices]) + 1, length)
        which = jnp.searchsorted(jnp.asarray(buckets, jnp.int32), needed).astype(jnp.int32)
        (loss, count), gradient = jax.lax.switch(which, branches, state.params, texts[indices], key)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes types, which a user of strict promotion need not know
            updates, memory = optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        return TextTrainingState(params, memory, state.step + 1), (loss * usual, count)

    keys = jax.random.split(dropping, batches.shape[0])
    state, (losses, counts) = jax.lax.scan(one, state, (batches, keys))
    return state, TextTrainingInfo(jnp.sum(losses) / jnp.sum(counts), state.step)


def text_pretraining(decoder: Decoder, training: TextTraining, texts: ArrayLike, *, num_texts: int) -> Process:
    """Fitting a decoder to texts as a process, each round of which trains on the next `num_texts` of a random order.

    `pj.run(process, process.init(key), num_steps=R, key=..., checkpoint=FOLDER, progress=...)` trains for R rounds, with
    progress, and goes on where it was killed; `state.params` is what `pj.models.language_model(..., pretrained=)` wants.

    Args:
        decoder: such as `pj.models.gpt2()`.
        training: how; `decay` counts steps over all rounds.
        texts: int32 [n, length], in random order: rounds take them as they come, and begin again at the end.
        num_texts: texts of a round, at most n.

    Returns:
        A stochastic process with `TextTrainingState` and `TextTrainingInfo`; `init(key)`, or `init(key, params)` to go on.

    Raises:
        ValueError: texts that are no table of whole numbers within the vocabulary, or longer than the decoder's context.

    Example:
        >>> import jax
        >>> import plural_jax as pj
        >>> decoder = pj.models.gpt2("tiny")
        >>> training = pj.models.TextTraining(num_epochs=1, batch_size=4, buckets=())
        >>> process = pj.models.text_pretraining(decoder, training, jnp.ones((16, 6), jnp.int32), num_texts=8)
        >>> state, info = pj.run(process, process.init(jax.random.key(0)), num_steps=2, key=jax.random.key(1))
        >>> int(state.step), info.loss.shape
        (4, (2,))

    Source: C.6 of the paper.
    """
    table = check_texts(decoder, texts)
    num_texts = _validate.positive_integer(num_texts, "num_texts")
    if num_texts > table.shape[0]:
        raise ValueError(f"num_texts must be at most the number of texts, got {num_texts} of {table.shape[0]}.")
    return Process(init=Partial(_first, decoder, training), step=Partial(_Rounds(num_texts), decoder, training, table))


def check_texts(decoder: Decoder, texts: ArrayLike, name: str = "texts") -> Array:
    """Texts as int32 [n, length], if the decoder can read them."""
    shape = np.shape(texts)
    if len(shape) != 2 or 0 in shape or not jnp.issubdtype(jnp.asarray(texts).dtype, jnp.integer):
        raise ValueError(f"{name} must be whole numbers [n, length], got shape {shape}.")
    if shape[1] > decoder.config.context:
        raise ValueError(
            f"{name} must be at most as long as the context of {decoder.config.context}, got length {shape[1]}."
        )
    known = _validate.concrete(texts)
    if known is not None and not (known.min() >= 0 and known.max() < decoder.config.num_tokens):
        raise ValueError(
            f"{name} must hold tokens from 0 to {decoder.config.num_tokens - 1}, got {known.min()} to {known.max()}."
        )
    return jnp.asarray(texts, jnp.int32)


@dataclass(frozen=True)
class _Rounds:
    """Rounds over consecutive texts; equal for equal sizes."""

    num_texts: int

    def __call__(
        self, decoder: Decoder, training: TextTraining, texts: Array, key: Array | None, state: TextTrainingState
    ) -> tuple[TextTrainingState, TextTrainingInfo]:
        if key is None:
            raise ValueError("key must be a PRNG key, because batches are drawn at random, got None.")
        steps = training.num_epochs * (self.num_texts // min(training.batch_size, self.num_texts))
        first = (state.step // steps) * self.num_texts
        rows = (first + jnp.arange(self.num_texts, dtype=jnp.int32)) % texts.shape[0]
        return train_text(decoder, training, key, state, texts[rows])


def _first(decoder: Decoder, training: TextTraining, key: Array, params: Any = None) -> TextTrainingState:
    return start_text_training(training, decoder.init(key) if params is None else params)


def _batches(key: Array, used: Array, size: int, weights: Array | None) -> Array:
    """Batches of one pass, int32 [steps, size]: a random order, sorted by length within windows, batches in random order."""
    n = used.shape[0]
    ordering, mixing = jax.random.split(key)
    if weights is None:
        order = jax.random.permutation(ordering, jnp.arange(n, dtype=jnp.int32))
    else:
        order = jax.random.categorical(ordering, jnp.log(weights), shape=(n,)).astype(jnp.int32)
    steps = n // size
    order = order[: steps * size]
    # A sort by (window, length) whose ties keep their random order.
    window = jnp.arange(steps * size, dtype=jnp.int32) // (_WINDOW * size)
    order = order[jnp.lexsort((used[order], window))]
    return jax.random.permutation(mixing, order.reshape(steps, size))


def _optimizer(training: TextTraining) -> optax.GradientTransformation:
    return clipped_adam(training, optax.add_decayed_weights(training.weight_decay))
