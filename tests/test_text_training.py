"""Fitting a decoder: the loss against NumPy, padding, buckets and weights, and a model whose lengths are learned."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import plural_jax as pj
from plural_jax.models import text_training
from plural_jax.models.text_training import start_text_training, train_text, used_tokens

END = 9
DECODER = pj.models.gpt2(
    pj.models.GPT2Config(num_layers=1, num_heads=2, width=16, num_tokens=10, context=12, end_of_text=END)
)

init = jax.jit(DECODER.init)
mean_loss = jax.jit(lambda params, texts: pj.models.mean_loss(DECODER, params, texts))
gradient_of = jax.jit(jax.grad(lambda params, texts: pj.models.mean_loss(DECODER, params, texts)))


def fit(training, key, params, texts, *weights):
    """All epochs from the beginning, as one program."""
    return jax.jit(lambda *x: train_text(DECODER, training, x[0], start_text_training(training, x[1]), *x[2:]))(
        key, params, texts, *weights
    )


@pytest.fixture
def key(rng):
    return jax.random.key(int(rng.integers(2**31)))


def texts_of(rng, num, length=12, longest=12):
    """Random texts of 0 to `longest` tokens; those of `length` are cut."""
    rows = rng.integers(0, END, (num, length))
    rows[np.arange(length)[None] >= rng.integers(0, longest + 1, num)[:, None]] = END
    return jnp.asarray(rows, jnp.int32)


def paid(params, texts):
    """Losses and counts of every token, one text at a time, in NumPy from the decoder's logits."""
    total, count = 0.0, 0
    for row in np.asarray(texts):
        used = list(row).index(END) if END in row else len(row)
        targets = list(row[:used]) + ([END] if used < len(row) else [])
        given = jnp.asarray([[END, *row[:-1]]], jnp.int32)
        logits = np.asarray(DECODER.apply(params, given), np.float64)[0]
        for position, target in enumerate(targets):
            z = logits[position]
            total += np.log(np.exp(z - z.max()).sum()) + z.max() - z[target]
            count += 1
    return total, count


def test_the_loss_stops_behind_the_first_end(rng, key):
    params, texts = init(key), texts_of(rng, 7)
    losses, counts = pj.models.token_losses(DECODER, params, texts)
    total, count = paid(params, texts)
    assert int(counts.sum()) == count
    np.testing.assert_allclose(np.where(counts, losses, 0).sum(), total, rtol=1e-5)
    for size in (2, 7):
        np.testing.assert_allclose(pj.models.mean_loss(DECODER, params, texts, size), total / count, rtol=1e-5)
    # What stands behind an end is never looked at, and an end in the middle is an end.
    other = np.array(texts)
    for row in other:
        if END in row:
            row[list(row).index(END) + 1 :] = rng.integers(0, 10)
    np.testing.assert_array_equal(used_tokens(jnp.asarray(other), END), used_tokens(texts, END))
    np.testing.assert_allclose(mean_loss(params, jnp.asarray(other)), total / count, rtol=1e-5)


def assert_same_step(actual, expected, gradient, rate, eps=1e-8):
    """The first step, `rate g / (|g| + eps)`, multiplies a rounding error of g by `rate eps / (|g| + eps)^2`."""
    a, b, g = (np.asarray(x, np.float64) for x in (actual, expected, gradient))
    g = np.abs(g)
    error = np.where(g == 0, 0, 1e-6 * g.max())  # what nothing depends on has no gradient at all
    allowed = 2e-5 + 1e-4 * np.abs(b) + rate * eps * error / (np.maximum(g - error, 0) + eps) ** 2
    excess = np.abs(a - b) - allowed
    assert excess.max() <= 0, f"{excess.max()} too far, where the gradient is {g.flat[excess.argmax()]}"
    # Nearly everything is checked; of the biases of attention a third, those of keys, have no gradient but rounding errors.
    assert np.mean(allowed > 1e-3) < 0.4


def test_one_step_is_adamw_on_the_mean_over_tokens(rng, key):
    """One batch of everything: the step of optax's own AdamW on the NumPy-checked loss; the same whatever the buckets."""
    import optax

    params, texts = init(key), texts_of(rng, 6, longest=7)
    options = {"num_epochs": 1, "batch_size": 6, "learning_rate": 1e-2, "weight_decay": 0.1, "clip": 1e9}
    rule = optax.adamw(1e-2, weight_decay=0.1)
    gradient = gradient_of(params, texts)
    with jax.numpy_dtype_promotion("standard"):
        expected = optax.apply_updates(params, rule.update(gradient, rule.init(params), params)[0])
    for buckets in ((), (2, 9)):
        training = pj.models.TextTraining(buckets=buckets, **options)
        state, info = fit(training, key, params, texts)
        jax.tree.map(lambda a, b, g: assert_same_step(a, b, g, 1e-2), state.params, expected, gradient)
        total, count = paid(params, texts)
        np.testing.assert_allclose(info.loss, total / count, rtol=1e-5)
        assert int(state.step) == 1


def test_batches_hold_similar_lengths_and_every_text_once(rng, key):
    used = jnp.asarray(rng.integers(0, 50, 96), jnp.int32)
    batches = np.asarray(text_training._batches(key, used, 8, None))
    assert sorted(batches.ravel()) == list(range(96))
    lengths = np.asarray(used)[batches]
    # The ranges of lengths of two batches share at most their ends.
    ordered = lengths[np.lexsort((lengths.max(1), lengths.min(1)))]
    assert (ordered[1:].min(1) >= ordered[:-1].max(1)).all()
    assert not np.array_equal(lengths.min(1), np.sort(lengths.min(1)))  # and come in random order
    again = np.asarray(text_training._batches(jax.random.fold_in(key, 1), used, 8, None))
    assert not np.array_equal(again, batches)


def test_weights_are_probabilities(rng, key):
    used = jnp.zeros(4, jnp.int32)
    weights = jnp.asarray([0.0, 1.0, 3.0, 0.0])
    drawn = np.stack([text_training._batches(k, used, 2, weights) for k in jax.random.split(key, 400)]).ravel()
    assert set(drawn) == {1, 2} and abs(np.mean(drawn == 2) - 0.75) < 5 * np.sqrt(0.1875 / 1600)
    # Weights of zero change nothing: the same texts with others beside them, which are never drawn, are learned as well.
    params, texts = init(key), jnp.full((4, 12), 3, jnp.int32).at[0].set(5).at[3].set(7)
    training = pj.models.TextTraining(num_epochs=20, batch_size=4, buckets=(), learning_rate=1e-2)
    state, _ = fit(training, key, params, texts, weights)
    losses = [float(mean_loss(state.params, texts[i : i + 1])) for i in range(4)]
    assert max(losses[1], losses[2]) < 0.5 < 2.0 < min(losses[0], losses[3])


@pytest.mark.end_to_end
def test_lengths_are_learned(rng, key):
    """Texts of two or seven tokens, one to two: a model that trained on padding would stop at once, one without ends never."""
    rows = np.full((384, 12), END)
    rows[:, :2] = rng.integers(0, END, (384, 2))
    rows[:256, 2:7] = rng.integers(0, END, (256, 5))
    texts = jnp.asarray(rng.permutation(rows), jnp.int32)
    # Batches of one length each pull the ends to and fro, so the rate is small at the last.
    training = pj.models.TextTraining(num_epochs=30, batch_size=32, buckets=(4, 8), learning_rate=5e-3, decay=360)
    model = pj.models.language_model(DECODER, training, length=12, temperature=1.0, top_p=1.0)
    fitted = jax.jit(model.fit)(key, model.init(key), texts, None)
    lengths = np.asarray(used_tokens(model.sample(jax.random.fold_in(key, 1), fitted, 600), END))
    shares = np.bincount(lengths, minlength=13) / 600
    assert shares[2] + shares[7] > 0.85 and abs(shares[2] - 1 / 3) < 0.15  # of 24 seeds the worst had 0.953 and 0.03
    # In batches: as many texts, and others.
    batched = pj.models.language_model(DECODER, training, length=12, batch_size=40)
    assert batched.sample(key, fitted, 50).shape == (50, 12)


def test_pretraining_takes_the_texts_in_turn(rng, key):
    texts = texts_of(rng, 24)
    training = pj.models.TextTraining(num_epochs=1, batch_size=8, buckets=(), learning_rate=1e-2, decay=9)
    process = pj.models.text_pretraining(DECODER, training, texts, num_texts=16)
    _, info = pj.run(process, process.init(key), num_steps=3, key=key)
    assert info.step.tolist() == [2, 4, 6] and bool(jnp.isfinite(info.loss).all())
    # The second round takes the last eight and, from the beginning again, the first eight.
    first, _ = process.step(key, process.init(key))
    rolled = pj.models.text_pretraining(DECODER, training, jnp.roll(texts, -16, 0), num_texts=16)
    a, _ = process.step(key, first)
    b, _ = rolled.step(key, first._replace(step=jnp.int32(0)))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), a.optimizer[1], b.optimizer[1])


def test_numbers_that_change_compile_nothing(rng, key):
    texts, traces = texts_of(rng, 8), []

    @jax.jit
    def texts_after(rate, temperature, params):
        traces.append(1)
        training = pj.models.TextTraining(num_epochs=1, batch_size=8, buckets=(), learning_rate=rate)
        model = pj.models.language_model(DECODER, training, length=12, temperature=temperature)
        return model.sample(key, model.fit(key, params, texts, None), 4)

    params = init(key)
    texts_after(1e-3, 0.8, params)
    texts_after(1e-2, 0.5, jax.tree.map(lambda x: 2 * x, params))
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: pj.models.TextTraining(num_epochs=0), "num_epochs must be a whole number of at least 1, got 0"),
        (lambda: pj.models.TextTraining(buckets=(8, 4)), r"buckets must rise, got \(8, 4\)"),
        (lambda: pj.models.TextTraining(learning_rate=-1.0), "learning_rate must be one number that is not negative"),
        (lambda: pj.models.TextTraining(clip=np.nan), "clip must be one number that is not negative, got nan"),
        (
            lambda: pj.models.text_pretraining(DECODER, pj.models.TextTraining(), np.zeros((2, 13), int), num_texts=2),
            "texts must be at most as long as the context of 12, got length 13",
        ),
        (
            lambda: pj.models.text_pretraining(DECODER, pj.models.TextTraining(), np.full((2, 3), 10), num_texts=2),
            "texts must hold tokens from 0 to 9, got 10 to 10",
        ),
        (
            lambda: pj.models.text_pretraining(DECODER, pj.models.TextTraining(), np.zeros((2, 3)), num_texts=2),
            "texts must be whole numbers",
        ),
        (
            lambda: pj.models.text_pretraining(DECODER, pj.models.TextTraining(), np.zeros((2, 3), int), num_texts=3),
            "num_texts must be at most the number of texts, got 3 of 2",
        ),
        (
            lambda: pj.models.language_model(DECODER, pj.models.TextTraining(), length=13),
            "length must be at most the decoder's context of 12, got 13",
        ),
        (
            lambda: pj.models.language_model(DECODER, pj.models.TextTraining(), length=4, pretrained={}),
            "pretrained must hold parameters of this decoder",
        ),
        (
            lambda: pj.models.language_model(DECODER, pj.models.TextTraining(), length=4, top_p=0.0),
            "top_p",
        ),
    ],
)
def test_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()
