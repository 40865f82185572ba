"""A decoder as a `Model`: texts by nucleus sampling, refit by next-token prediction on what was curated.

Texts are int32 [n, length]: tokens, then end-of-text from the end on. How long a text gets is the decoder's own choice: it is
trained on the end of every text that has one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from plural_jax import _validate
from plural_jax._typing import ArrayLike
from plural_jax.model import Model
from plural_jax.models.gpt2 import Decoder
from plural_jax.models.text_sampling import check_sampling, generate
from plural_jax.models.text_training import TextTraining, start_text_training, token_losses, train_text


def language_model(
    decoder: Decoder,
    training: TextTraining,
    *,
    length: int,
    pretrained: Any = None,
    temperature: ArrayLike = 0.8,
    top_p: ArrayLike = 0.95,
    batch_size: int | None = None,
) -> Model:
    """A decoder that is refit, from where it is, to curated texts.

    Args:
        decoder: such as `pj.models.gpt2()`.
        training: how a round refits it. The optimizer starts anew in every round.
        length: of the texts in tokens; longer ones are cut, and have no end to learn.
        pretrained: parameters that every run starts from; default: random ones.
        temperature: of sampling: logits are divided by it, positive. May be traced.
        top_p: mass of the nucleus that tokens are drawn from, in (0, 1]. May be traced.
        batch_size: texts that are generated together; default: all.

    Returns:
        A `Model` whose params are the decoder's and whose samples are int32 [n, length]. It has no `log_prob`, since samples do
        not come from the decoder's own law but from its nucleus; see `pj.models.token_losses`.

    Raises:
        ValueError: a length beyond the decoder's context; pretrained parameters of another decoder; what `generate` refuses.

    Example:
        >>> import jax
        >>> import plural_jax as pj
        >>> training = pj.models.TextTraining(num_epochs=1, batch_size=4, buckets=())
        >>> model = pj.models.language_model(pj.models.gpt2("tiny"), training, length=6)
        >>> model.sample(jax.random.key(1), model.init(jax.random.key(0)), 3).shape
        (3, 6)

    Source: C.6 of the paper; Radford et al. 2019; Holtzman et al. 2020.
    """
    length = _validate.positive_integer(length, "length")
    if length > decoder.config.context:
        raise ValueError(f"length must be at most the decoder's context of {decoder.config.context}, got {length}.")
    check_sampling(temperature, top_p)
    if batch_size is not None:
        batch_size = _validate.positive_integer(batch_size, "batch_size")
    if pretrained is not None:
        wanted = jax.eval_shape(decoder.init, jax.random.key(0))
        shapes = lambda tree: jax.tree.map(jnp.shape, tree)  # noqa: E731
        if shapes(wanted) != shapes(pretrained):
            raise ValueError("pretrained must hold parameters of this decoder, got others; is it the same preset?")
    rates = jnp.asarray(temperature, jnp.float32), jnp.asarray(top_p, jnp.float32)
    return Model(
        init=Partial(_start, decoder, pretrained),
        sample=Partial(_Sample(length, batch_size), decoder, rates),
        fit=Partial(_fit, decoder, training),
    )


def _start(decoder: Decoder, pretrained: Any, key: Array) -> Any:
    return decoder.init(key) if pretrained is None else pretrained


@dataclass(frozen=True)
class _Sample:
    length: int
    batch_size: int | None

    def __call__(self, decoder: Decoder, rates: tuple[Array, Array], key: Array, params: Any, num: int) -> Array:
        size = min(self.batch_size or num, num)
        batches = -(-num // size)

        def one(key: Array) -> Array:
            temperature, top_p = rates
            return generate(decoder, params, key, size, length=self.length, temperature=temperature, top_p=top_p)

        if batches == 1:
            return one(key)
        return jax.lax.map(one, jax.random.split(key, batches)).reshape(-1, self.length)[:num]


def _fit(decoder: Decoder, training: TextTraining, key: Array, params: Any, texts: Array, weights: Array | None) -> Any:
    return train_text(decoder, training, key, start_text_training(training, params), texts, weights)[0].params


def mean_loss(decoder: Decoder, params: Any, texts: Array, batch_size: int = 32) -> Array:
    """Mean loss of a decoder per token of texts, in nats, float32 []; its exponential is the perplexity.

    `- sum_{texts, j} log P(x_j | x_<j) / number of (text, j)`, ends included

    Args:
        decoder: such as `pj.models.gpt2()`.
        params: its parameters.
        texts: int32 [n, length].
        batch_size: texts that are looked at together.

    Example:
        >>> import jax
        >>> import plural_jax as pj
        >>> decoder = pj.models.gpt2("tiny")
        >>> params = jax.tree.map(jnp.zeros_like, decoder.init(jax.random.key(0)))  # every token is equally likely
        >>> loss = mean_loss(decoder, params, jnp.ones((3, 4), jnp.int32))
        >>> bool(abs(jnp.exp(loss) - decoder.config.num_tokens) < 1e-2)
        True
    """
    n, length = texts.shape
    size = min(batch_size, n)
    count = -(-n // size)
    # Whole batches; a second copy of a text counts for nothing.
    rows = jnp.arange(count * size, dtype=jnp.int32)
    batches = texts[rows % n].reshape(count, size, length)

    def one(given: tuple[Array, Array]) -> tuple[Array, Array]:
        batch, real = given
        losses, counts = token_losses(decoder, params, batch)
        counts = counts & real[:, None]
        return jnp.sum(jnp.where(counts, losses, 0)), jnp.sum(counts, dtype=jnp.float32)

    losses, counts = jax.lax.map(one, (batches, (rows < n).reshape(count, size)))
    return jnp.sum(losses) / jnp.sum(counts, dtype=jnp.float32)
