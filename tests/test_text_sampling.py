"""Nucleus sampling against NumPy's sorted definition, and generated texts against the enumeration of all short ones."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from plural_jax.models.gpt2 import GPT2Config, gpt2
from plural_jax.models.text_sampling import _generate, generate, nucleus_sample

DRAWS = 20_000
SMALL = GPT2Config(num_layers=2, num_heads=2, width=8, num_tokens=6, context=8, end_of_text=5)
sample = jax.jit(nucleus_sample)


def _law(logits, temperature, top_p):
    """The nucleus' law of one row by its definition: sort, and keep as few as have the mass."""
    p = np.asarray(logits, np.float64) / temperature
    p = np.exp(p - p.max())
    p /= p.sum()
    order = np.argsort(-p)
    # A token is kept while the mass before it is too little.
    kept = order[np.concatenate([[0.0], np.cumsum(p[order])[:-1]]) < top_p]
    law = np.zeros_like(p)
    law[kept] = p[kept]
    return law / law.sum()


def _agrees(counts, law):
    """Nothing outside of the law's support, and a chi-square of which a right sampler fails one in a million."""
    assert not np.any(counts[law == 0])
    counts, expected = counts[law > 0], law[law > 0] * counts.sum()
    rare = expected < 8
    if rare.any():  # together, or the chi-square is none
        counts = np.append(counts[~rare], counts[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
        if expected[-1] < 8 and len(expected) > 1:
            counts = np.append(counts[:-2], counts[-2:].sum())
            expected = np.append(expected[:-2], expected[-2:].sum())
    if len(counts) > 1:
        assert stats.chisquare(counts, expected).pvalue > 1e-6


@pytest.mark.parametrize("top_p", [0.05, 0.3, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("temperature", [0.4, 0.8, 2.0])
def test_the_law_of_the_nucleus(rng, temperature, top_p):
    # The border of the nucleus must not lie so close to a sum that rounding decides.
    distance = 0.0
    while distance < 1e-5:
        logits = (2 * rng.normal(size=40)).astype(np.float32)
        sums = np.cumsum(np.sort(np.exp(logits / temperature, dtype=np.float64))[::-1])
        distance = 1.0 if top_p == 1 else np.min(np.abs(sums[:-1] / sums[-1] - top_p))
    law = _law(logits, temperature, top_p)
    key = jax.random.key(int(rng.integers(2**31)))
    tokens = sample(key, np.tile(logits, (DRAWS, 1)), np.float32(temperature), np.float32(top_p))
    assert tokens.dtype == jnp.int32
    _agrees(np.bincount(tokens, minlength=40), law)
    assert sample._cache_size() == 1  # other numbers compile nothing


def test_rows_have_laws_of_their_own(rng):
    logits = (0.5 * rng.normal(size=(3, 10))).astype(np.float32)
    key = jax.random.key(int(rng.integers(2**31)))
    tokens = np.asarray(sample(key, np.repeat(logits, 5000, axis=0), 1.0, 0.9)).reshape(3, 5000)
    for row, given in zip(tokens, logits, strict=True):
        _agrees(np.bincount(row, minlength=10), _law(given, 1.0, 0.9))
    assert abs(np.corrcoef(tokens[0], tokens[1])[0, 1]) < 0.1


def test_a_large_vocabulary_with_a_small_nucleus(rng):
    """Nearly flat: the worst case, where hardly any first draw is kept."""
    logits = (0.01 * rng.normal(size=(6, 50257))).astype(np.float32)
    tokens = np.asarray(sample(jax.random.key(int(rng.integers(2**31))), logits, 0.8, 1e-4))
    for row, token in zip(logits, tokens, strict=True):
        p = np.exp(row.astype(np.float64) / np.float32(0.8))
        assert p[p > p[token]].sum() < 1.001e-4 * p.sum()
    assert len(set(tokens.tolist())) > 1


def test_equally_likely_tokens_at_the_border_are_all_kept():
    logits = np.log(np.float32([0.4, 0.2, 0.2, 0.2]))
    tokens = sample(jax.random.key(0), np.tile(logits, (4000, 1)), 1.0, 0.5)
    _agrees(np.bincount(tokens, minlength=4), np.array([0.4, 0.2, 0.2, 0.2]))
    tokens = sample(jax.random.key(1), np.tile(logits, (4000, 1)), 1.0, 0.3)
    assert not np.any(tokens)


def test_the_cold_limit_and_excluded_tokens(rng):
    logits = rng.normal(size=(7, 30)).astype(np.float32)
    np.testing.assert_array_equal(sample(jax.random.key(0), logits, 0.0, 1.0), logits.argmax(1))
    logits[:, 3:] = -np.inf
    tokens = sample(jax.random.key(1), np.tile(logits, (50, 1)), 1.0, 1.0)
    assert set(np.unique(tokens)) == {0, 1, 2}
    extreme = np.float32([[1e4, -1e4, 0.0]])
    assert sample(jax.random.key(2), extreme, 1.0, 0.9) == 0


def test_logits_that_are_not_numbers_end(rng):
    logits = rng.normal(size=(3, 11)).astype(np.float32)
    logits[1, 4] = np.nan
    tokens = np.asarray(sample(jax.random.key(0), logits, 1.0, 0.5))
    assert ((tokens >= 0) & (tokens < 11)).all()


def test_double_precision_stays(rng):
    logits = 2 * rng.normal(size=12)
    tokens = sample(jax.random.key(int(rng.integers(2**31))), np.tile(logits, (DRAWS, 1)), 0.7, 0.9)
    _agrees(np.bincount(tokens, minlength=12), _law(logits, 0.7, 0.9))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": -0.1}, "temperature must be at least 0, got -0.1"),
        ({"temperature": np.nan}, "temperature must be finite"),
        ({"temperature": [1.0, 2.0]}, "temperature must be a single number"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, got 1.5"),
    ],
)
def test_refused_numbers(given, message):
    with pytest.raises(ValueError, match=message):
        nucleus_sample(jax.random.key(0), jnp.zeros((1, 3)), **({"temperature": 1.0, "top_p": 0.9} | given))
    with pytest.raises(ValueError, match=message):
        generate(gpt2(SMALL), None, jax.random.key(0), 2, length=3, **given)


# Texts


@pytest.fixture(scope="module")
def small():
    """A model with opinions; end of text is neither rare nor sure."""
    model = gpt2(SMALL)
    leaves, tree = jax.tree.flatten(model.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [x + 0.5 * jax.random.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys, strict=True)]
    return model, jax.tree.unflatten(tree, moved), jax.jit(model.apply)


def _texts(model, params, apply, length, temperature, top_p):
    """Every text that has at most `length` tokens, and its probability."""
    end, tokens = SMALL.end_of_text, SMALL.num_tokens
    every = np.array(list(itertools.product(range(tokens), repeat=length)), np.int32)
    logits = np.asarray(apply(params, np.concatenate([np.full((len(every), 1), end), every[:, :-1]], 1)))
    known, texts = {}, {}
    for row, given in zip(every, logits, strict=True):
        text, probability = [], 1.0
        for t in range(length):
            law = known.setdefault(tuple(row[:t]), _law(given[t], temperature, top_p))
            text.append(int(row[t]))
            probability *= law[row[t]]
            if row[t] == end:
                break
        texts[tuple(text + [end] * (length - len(text)))] = probability
    return texts


@pytest.mark.parametrize(("temperature", "top_p"), [(0.8, 0.9), (1.5, 1.0)])
def test_texts_have_the_models_law(small, rng, temperature, top_p):
    model, params, _ = small
    texts = _texts(*small, 3, temperature, top_p)
    np.testing.assert_allclose(sum(texts.values()), 1, rtol=1e-6)
    key = jax.random.key(int(rng.integers(2**31)))
    before = _generate._cache_size()
    rows = generate(model, params, key, 8000, length=3, temperature=temperature, top_p=top_p)
    assert rows.shape == (8000, 3) and rows.dtype == jnp.int32
    names = {text: number for number, text in enumerate(texts)}
    counts = np.bincount([names[tuple(row)] for row in np.asarray(rows).tolist()], minlength=len(names))
    _agrees(counts, np.array(list(texts.values())))
    # Another temperature and nucleus, with which the first case came first or not, compile nothing.
    assert _generate._cache_size() <= before + 1


def test_ended_texts_stay_ended_and_others_go_on(small):
    model, params, _ = small
    rows = np.asarray(generate(model, params, jax.random.key(5), 300, length=8, temperature=1.5, top_p=1.0))
    ends = rows == SMALL.end_of_text
    lengths = np.where(ends.any(1), ends.argmax(1), 8)
    assert len(set(lengths)) > 3
    for row, length in zip(ends, lengths, strict=True):
        assert row[length:].all()


def test_the_loop_ends_with_the_last_text(small):
    """Counted in the loop itself: a network that says end of text at position 2 is asked three times."""
    model, params, _ = small
    asked = []

    def step(params, cache, token, position):
        jax.debug.callback(lambda p: asked.append(int(p)), position)
        logits = jnp.zeros((token.shape[0], SMALL.num_tokens), jnp.float32)
        return logits.at[:, jnp.where(position == 2, SMALL.end_of_text, 1)].set(50.0), cache

    step = jax.tree_util.Partial(step)
    rows = generate(model._replace(step=step), params, jax.random.key(0), 2, length=8)
    jax.effects_barrier()
    np.testing.assert_array_equal(rows, [[1, 1, 5, 5, 5, 5, 5, 5]] * 2)
    assert sorted(asked) == [0, 1, 2]


def test_texts_that_have_ended_are_left_out(small, rng):
    """A network by hand, whose cache knows how long each text shall be: none is lost or mixed up when rows are left out."""
    model, _, _ = small
    num, sizes = 160, []
    lengths = rng.permuted(np.arange(num) % 7 + 1).astype(np.int32)  # of 8 tokens; a prompt of one token has been read

    def fill(params, cache, tokens):
        return {"lengths": jnp.asarray(lengths)}

    def step(params, cache, token, position):
        jax.debug.callback(lambda p, size=token.shape[0]: sizes.append((int(p), size)), position)
        fresh = jnp.where(position >= cache["lengths"], 5, (token + cache["lengths"]) % 5)
        return 100 * jax.nn.one_hot(fresh, 6, dtype=jnp.float32), cache

    by_hand = {"start_cache": lambda n, length: {"lengths": jnp.zeros(n, lengths.dtype)}, "fill": fill, "step": step}
    by_hand["keep"] = lambda cache, rows: {"lengths": cache["lengths"][rows]}
    model = model._replace(**{name: jax.tree_util.Partial(function) for name, function in by_hand.items()})
    prompt = rng.integers(0, 5, (num, 1)).astype(np.int32)
    rows = generate(model, None, jax.random.key(0), num, length=8, prompt=prompt)
    jax.effects_barrier()
    place = np.arange(8)
    expected = np.where(place < lengths[:, None], (prompt + lengths[:, None] * place) % 5, 5)
    np.testing.assert_array_equal(rows, expected)
    left = {p: int(np.sum(lengths >= p)) for p in range(1, 8)}  # before position p
    fewest = {p: next(size for size in (40, 80, 160) if n <= size) for p, n in left.items()}
    assert dict(sizes) == fewest and len(sizes) == 7 and set(fewest.values()) == {40, 80, 160}


def test_a_prompt_is_continued(small, rng):
    """The cold limit is a function of the prompt: the most likely tokens by the uncached network."""
    model, params, apply = small
    prompt = rng.integers(0, 5, (6, 3)).astype(np.int32)
    rows = np.asarray(generate(model, params, jax.random.key(0), 6, length=8, temperature=0, prompt=prompt))
    np.testing.assert_array_equal(rows[:, :3], prompt)
    end = SMALL.end_of_text
    for row in rows:
        length = int(np.argmax(row == end)) if end in row else 8
        logits = np.asarray(apply(params, np.concatenate([[end], row[:-1]])[None]))[0]
        np.testing.assert_array_equal(logits.argmax(1)[3 : length + 1], row[3 : length + 1])
    ended = prompt.copy()
    ended[0, 1] = end
    rows = np.asarray(generate(model, params, jax.random.key(0), 6, length=8, temperature=0, prompt=ended))
    assert (rows[0, 1:] == end).all()


def test_numbers_and_models_compile_nothing(small):
    model, params, _ = small
    generate(model, params, jax.random.key(0), 2, length=4)
    before = _generate._cache_size()
    other = jax.tree.map(lambda x: 2 * x, params)
    generate(gpt2(SMALL), other, jax.random.key(1), 2, length=4, temperature=0.3, top_p=0.5)
    assert _generate._cache_size() == before
    one = generate(model, params, jax.random.key(3), 50, length=4)
    np.testing.assert_array_equal(one, generate(model, params, jax.random.key(3), 50, length=4))
    assert not np.array_equal(one, generate(model, params, jax.random.key(4), 50, length=4))


def test_seeds_map_over_texts(small):
    model, params, _ = small
    keys = jax.random.split(jax.random.key(0), 3)
    many = jax.vmap(lambda key: generate(model, params, key, 20, length=4))(keys)
    for key, rows in zip(keys, many, strict=True):
        np.testing.assert_array_equal(rows, generate(model, params, key, 20, length=4))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"length": 9}, "length must be at most the model's context=8, got 9"),
        ({"length": 0}, "length must be a whole number of at least 1, got 0"),
        (
            {"prompt": np.zeros((2, 4), np.int32)},
            r"prompt must have shape \[num=2, p\] with 0 < p < length=4, got \(2, 4\)",
        ),
        ({"prompt": np.zeros((3, 2), np.int32)}, r"prompt must have shape \[num=2, p\]"),
        ({"prompt": np.zeros((2, 2))}, "prompt must hold tokens, which are integers, got float"),
    ],
)
def test_refused_calls(small, given, message):
    model, params, _ = small
    with pytest.raises(ValueError, match=message):
        generate(model, params, jax.random.key(0), 2, **({"length": 4} | given))
