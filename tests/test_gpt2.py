"""GPT-2 against a forward pass in NumPy's float64 and against transformers, its cache, and its files."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plural_jax.models.gpt2 import GPT2S, GPT2Config, gpt2
from plural_jax.models.gpt2_files import load_gpt2, save_gpt2
from plural_jax.models.network import num_params

SMALL = GPT2Config(num_layers=3, num_heads=2, width=12, num_tokens=41, context=9, end_of_text=40)


def _moved(params, seed, by=0.3):
    """Parameters far from the start, where nothing is zero and the attention is not flat."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    fresh = [x + by * jax.random.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, fresh)


@pytest.fixture(scope="module")
def small():
    model = gpt2(SMALL)
    return model, _moved(model.init(jax.random.key(0)), 1), jax.jit(model.apply)


@pytest.fixture
def tokens(rng):
    return rng.integers(0, SMALL.num_tokens, (4, SMALL.context)).astype(np.int32)


def _normalized(x, part):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * part["scale"] + part["bias"]


def _oracle(params, config, tokens):
    """Logits of one text, written from the formulas, head by head and position by position."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    size = config.width // config.num_heads
    x = np.stack([p["tokens"][t] + p["positions"][i] for i, t in enumerate(tokens)])
    for layer in range(config.num_layers):
        b = jax.tree.map(lambda a, layer=layer: a[layer], p["blocks"])
        both = _normalized(x, b["before_attention"]) @ b["attention_in"]["kernel"] + b["attention_in"]["bias"]
        mixed = np.zeros_like(x)
        for head in range(config.num_heads):
            query, key, value = (
                both[:, k * config.width + head * size : k * config.width + (head + 1) * size] for k in range(3)
            )
            for i in range(len(tokens)):
                scores = np.array([query[i] @ key[j] for j in range(i + 1)]) / np.sqrt(size)
                shares = np.exp(scores - scores.max())
                mixed[i, head * size : (head + 1) * size] = shares / shares.sum() @ value[: i + 1]
        x = x + mixed @ b["attention_out"]["kernel"] + b["attention_out"]["bias"]
        y = _normalized(x, b["before_wide"]) @ b["wide_in"]["kernel"] + b["wide_in"]["bias"]
        y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        x = x + y @ b["wide_out"]["kernel"] + b["wide_out"]["bias"]
    return _normalized(x, p["last"]) @ p["tokens"].T


def test_logits_are_the_formulas(small, tokens):
    model, params, apply = small
    logits = apply(params, tokens)
    assert logits.dtype == jnp.float32
    for row, text in zip(logits, tokens, strict=True):
        expected = _oracle(params, SMALL, text)
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-4)
        assert np.std(expected) > 0.1  # so that the tolerance means something
    np.testing.assert_allclose(apply(params, tokens[:, :5]), logits[:, :5], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(model.head(params, model.hidden(params, tokens)), logits, rtol=1e-4, atol=1e-4)


def test_what_comes_later_changes_nothing(small, tokens, rng):
    _, params, apply = small
    padded = tokens.copy()
    padded[:, 5:] = SMALL.end_of_text
    other = padded.copy()
    other[:, 6:] = rng.integers(0, SMALL.num_tokens, other[:, 6:].shape)
    before, after = apply(params, padded), apply(params, other)
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert not np.allclose(before[:, 7:], after[:, 7:], atol=1e-2)
    one = np.concatenate([padded[:1], tokens[1:]])
    np.testing.assert_array_equal(apply(params, one)[0], before[0])  # texts do not mix


@pytest.mark.parametrize("filled", [0, 1, 4])
def test_the_cache_gives_the_same_logits(small, tokens, filled):
    model, params, apply = small
    expected = apply(params, tokens)
    cache = model.start_cache(len(tokens), SMALL.context)
    if filled:
        cache = model.fill(params, cache, tokens[:, :filled])
    step = jax.jit(model.step)
    for position in range(filled, SMALL.context):
        logits, cache = step(params, cache, tokens[:, position], position)
        assert logits.dtype == jnp.float32
        np.testing.assert_allclose(logits, expected[:, position], rtol=1e-4, atol=1e-4)
    assert step._cache_size() == 1


def test_derivative_against_finite_differences(small, tokens, rng):
    model, params, _ = small
    weights = jnp.asarray(rng.normal(size=(4, 6, SMALL.num_tokens)), jnp.float32)
    direction = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)

    @jax.jit
    def along(params, h):
        moved = jax.tree.map(lambda p, d: p + h * d, params, direction)
        return jnp.mean(weights * jax.nn.log_softmax(model.apply(moved, tokens[:, :6])))

    # Richardson's extrapolation: in some directions the third derivative is large.
    coarse, fine = ((along(params, h) - along(params, -h)) / (2 * h) for h in np.float32([4e-3, 2e-3]))
    slope = jax.grad(along, argnums=1)(params, np.float32(0))
    np.testing.assert_allclose(slope, (4 * fine - coarse) / 3, rtol=0.02, atol=2e-3)
    gradient = jax.jit(jax.grad(along))(params, np.float32(0))
    total = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, direction)))
    np.testing.assert_allclose(total, slope, rtol=1e-3, atol=1e-4)
    flat, _ = jax.tree_util.tree_flatten_with_path(gradient)
    silent = [jax.tree_util.keystr(path) for path, g in flat if not jnp.any(g != 0)]
    assert not silent


def test_the_start_is_gpt2s():
    config = GPT2Config(num_layers=4, num_heads=2, width=64, num_tokens=500, context=64, end_of_text=0)
    params = jax.tree.map(np.asarray, gpt2(config).init(jax.random.key(3)))
    blocks = params["blocks"]
    for place, spread in (
        (params["tokens"], 0.02),
        (params["positions"], 0.02),
        (blocks["attention_in"]["kernel"], 0.02),
        (blocks["wide_in"]["kernel"], 0.02),
        (blocks["attention_out"]["kernel"], 0.02 / np.sqrt(8)),
        (blocks["wide_out"]["kernel"], 0.02 / np.sqrt(8)),
    ):
        np.testing.assert_allclose(np.std(place), spread, rtol=0.05)
        assert abs(np.mean(place)) < 0.1 * spread
    kernels = blocks["wide_in"]["kernel"]
    assert not np.allclose(kernels[0], kernels[1], atol=1e-3)  # every layer has numbers of its own
    assert all(not np.any(blocks[part]["bias"]) for part in blocks)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))


def test_the_paper_preset_has_its_size():
    model = gpt2("paper")
    params = jax.eval_shape(model.init, jax.random.key(0))
    width, tokens = 384, 50257
    block = 12 * width**2 + 13 * width
    assert num_params(params) == tokens * width + 128 * width + 6 * block + 2 * width
    logits = jax.eval_shape(model.apply, params, jax.ShapeDtypeStruct((2, 5), jnp.int32))
    assert logits.shape == (2, 5, tokens) and logits.dtype == jnp.float32


def test_dropout_needs_a_key(tokens):
    model = gpt2(dataclasses.replace(SMALL, dropout=0.2))
    params = _moved(model.init(jax.random.key(0)), 1)
    apply = jax.jit(model.apply)
    one, two = apply(params, tokens, jax.random.key(0)), apply(params, tokens, jax.random.key(1))
    assert not np.allclose(one, two, atol=1e-2)
    np.testing.assert_array_equal(one, apply(params, tokens, jax.random.key(0)))
    np.testing.assert_allclose(apply(params, tokens)[0], _oracle(params, SMALL, tokens[0]), rtol=1e-4, atol=1e-4)


def test_half_precision_is_close(small, tokens):
    _, params, apply = small
    half = gpt2(dataclasses.replace(SMALL, dtype="bfloat16"))
    exact, near = apply(params, tokens), half.apply(params, tokens)
    assert near.dtype == jnp.float32
    assert 0 < jnp.linalg.norm(exact - near) < 0.05 * jnp.linalg.norm(exact)
    cache = half.fill(params, half.start_cache(4, 3), tokens[:, :2])
    logits, _ = half.step(params, cache, tokens[:, 2], 2)
    assert jnp.linalg.norm(exact[:, 2] - logits) < 0.05 * jnp.linalg.norm(exact[:, 2])


def test_equal_configurations_compile_once(small, tokens):
    _, params, _ = small
    count = 0

    @jax.jit
    def apply(model, params, tokens):
        nonlocal count
        count += 1
        return model.apply(params, tokens)

    for model in (gpt2(SMALL), gpt2(GPT2Config(**dataclasses.asdict(SMALL)))):
        apply(model, params, tokens)
    assert count == 1
    apply(gpt2(dataclasses.replace(SMALL, num_heads=3)), params, tokens)
    assert count == 2


def test_seeds_map_over_models(small, tokens):
    model, params, apply = small
    many = jax.tree.map(lambda *x: jnp.stack(x), params, _moved(params, 5))
    both = jax.jit(jax.vmap(model.apply, (0, None)))(many, tokens)
    np.testing.assert_allclose(both[0], apply(params, tokens), rtol=1e-4, atol=1e-4)
    assert not np.allclose(both[1], both[0], atol=0.1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"num_heads": 5}, "num_heads must divide width, got num_heads=5 and width=384"),
        ({"num_tokens": 50256}, "end_of_text must be one of the num_tokens=50256 tokens, got 50256"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1"),
        ({"dtype": "float16"}, "dtype must be 'float32' or 'bfloat16', got 'float16'"),
    ],
)
def test_bad_configurations(given, message):
    with pytest.raises(ValueError, match=message):
        GPT2Config(**given)


def test_refused_calls(small):
    model, params, _ = small
    with pytest.raises(ValueError, match="config must be a GPT2Config or one of tiny, paper, got 'big'"):
        gpt2("big")
    with pytest.raises(ValueError, match="at most context=9 of them in a row, got 10"):
        model.apply(params, jnp.zeros((1, 10), jnp.int32))
    with pytest.raises(ValueError, match="length must be at most the model's context=9, got 10"):
        model.start_cache(1, 10)


# Files


def test_a_saved_model_comes_back(small, tmp_path):
    model, params, _ = small
    save_gpt2(tmp_path / "a" / "b", model, params)
    read, back = load_gpt2(tmp_path / "a" / "b")
    assert read.config == SMALL
    assert jax.tree.structure(read) == jax.tree.structure(model)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    other = dataclasses.replace(SMALL, dropout=0.5, end_of_text=0)
    assert load_gpt2(tmp_path / "a" / "b", other)[0].config == other
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == ["config.json", "model.safetensors"]


def _rewrite(folder, change):
    """Change the arrays of a saved model."""
    from safetensors.numpy import load_file, save_file

    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")


def test_other_names_are_understood(small, tmp_path):
    model, params, _ = small
    save_gpt2(tmp_path, model, params)

    def change(arrays):
        arrays = {name.removeprefix("transformer."): array for name, array in arrays.items()}
        masks = {f"h.{i}.attn.bias": np.tril(np.ones((1, 1, 9, 9), np.float32)) for i in range(3)}
        return (
            arrays | masks | {"h.0.attn.masked_bias": np.float32([-1e4]), "lm_head.weight": arrays["wte.weight"].copy()}
        )

    _rewrite(tmp_path, change)
    jax.tree.map(np.testing.assert_array_equal, load_gpt2(tmp_path)[1], params)


def _without(name):
    return lambda arrays: {key: array for key, array in arrays.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("transformer.h.1.mlp.c_fc.bias"), r"has no array 'h\.1\.mlp\.c_fc\.bias'"),
        (
            lambda a: a | {"transformer.wpe.weight": np.zeros((3, 12), np.float32)},
            r"has 'wpe\.weight' of shape \(3, 12\), but .* needs \(9, 12\)",
        ),
        (lambda a: a | {"lm_head.weight": np.zeros((41, 12), np.float32)}, "an output head of its own"),
        (lambda a: a | {"transformer.h.3.ln_1.weight": np.zeros(12, np.float32)}, r"has not: h\.3\.ln_1\.weight"),
    ],
)
def test_other_arrays_are_refused(small, tmp_path, change, message):
    model, params, _ = small
    save_gpt2(tmp_path, model, params)
    _rewrite(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        load_gpt2(tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"activation_function": "relu"}, "has activation_function='relu', and only 'gelu_new' is known here"),
        ({"scale_attn_by_inverse_layer_idx": True}, "has scale_attn_by_inverse_layer_idx=True"),
        ({"n_inner": 50}, "has n_inner=50, and only 4 n_embd = 48"),
        ({"model_type": "llama"}, "a model of type 'llama', not 'gpt2'"),
        ({"attn_pdrop": 0.3}, "different resid_pdrop, embd_pdrop, attn_pdrop"),
        ({"eos_token_id": [1, 2]}, r"has eos_token_id=\[1, 2\]: say with config"),
    ],
)
def test_other_configurations_are_refused(small, tmp_path, given, message):
    model, params, _ = small
    save_gpt2(tmp_path, model, params)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | given))
    with pytest.raises(ValueError, match=message):
        load_gpt2(tmp_path)


def test_missing_files_and_other_models_are_refused(small, tmp_path):
    model, params, _ = small
    with pytest.raises(ValueError, match=r"must be a folder with config\.json"):
        load_gpt2(tmp_path)
    save_gpt2(tmp_path, model, params)
    with pytest.raises(ValueError, match="describes a model with num_heads=2, but config="):
        load_gpt2(tmp_path, dataclasses.replace(SMALL, num_heads=3))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"a folder with model\.safetensors in one file"):
        load_gpt2(tmp_path)
    (tmp_path / "config.json").write_text("[1")
    with pytest.raises(ValueError, match="is no configuration in JSON"):
        load_gpt2(tmp_path)
    with pytest.raises(ValueError, match="params must be those of"):
        save_gpt2(tmp_path, GPT2S["tiny"], params)


# The same network elsewhere


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    return pytest.importorskip("transformers", reason="compares with transformers, which is not installed")


def _theirs(network, tokens):
    import torch

    network.eval()
    with torch.no_grad():
        return network(torch.tensor(tokens, dtype=torch.long)).logits.numpy()


def test_transformers_reads_ours(transformers, small, tokens, tmp_path):
    model, params, apply = small
    save_gpt2(tmp_path, model, params)
    network, report = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert network.config.eos_token_id == SMALL.end_of_text
    np.testing.assert_allclose(apply(params, tokens), _theirs(network, tokens), rtol=1e-4, atol=1e-4)


def test_we_read_transformers(transformers, tokens, tmp_path, rng):
    import torch

    torch.manual_seed(int(rng.integers(2**31)))
    network = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=41, n_positions=9, n_embd=12, n_layer=3, n_head=2, bos_token_id=40, eos_token_id=40
        )
    )
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.3 * torch.randn_like(p))
    network.save_pretrained(tmp_path)
    model, params = load_gpt2(tmp_path)
    assert model.config == dataclasses.replace(SMALL, dropout=0.1)
    theirs = _theirs(network, tokens)
    np.testing.assert_allclose(jax.jit(model.apply)(params, tokens), theirs, rtol=1e-4, atol=1e-4)
    assert np.std(theirs) > 0.1
