"""Inception-v3 and FID against PyTorch, live where it is installed and as recorded where it is not."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plural_jax import metrics
from plural_jax.models import inception, inception_blocks
from tests.golden import inception as golden

#: Of the largest feature. Sums of thousands of float32 products in another order differ by 1e-6 in every layer.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    return golden.random_weights(inception.weight_shapes())


@pytest.fixture(scope="module")
def extractor(weights: dict[str, np.ndarray]) -> inception.FeatureExtractor:
    return inception.inception_from_state_dict(weights, batch_size=golden.NUM_IMAGES)


@pytest.fixture(scope="module")
def features(extractor: inception.FeatureExtractor) -> np.ndarray:
    return np.asarray(extractor(golden.random_images()))


def _largest_error(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_the_network_has_the_size_of_the_weight_file() -> None:
    shapes = inception.weight_shapes()
    convolutions = [name for name in shapes if name.endswith(".conv.weight")]
    assert len(convolutions) == 94 and len(shapes) == 94 * 5
    # With the classifier of 1,008 outputs these are the 23,885,392 numbers of the file.
    assert sum(map(np.prod, shapes.values())) + 2049 * 1008 == 23_885_392
    assert shapes["Mixed_5b.branch_pool.conv.weight"] == (32, 192, 1, 1)
    assert shapes["Mixed_6b.branch7x7_2.conv.weight"] == (128, 128, 1, 7)
    assert shapes["Mixed_7c.branch3x3dbl_3b.conv.weight"] == (384, 384, 3, 1)
    assert shapes["Mixed_7c.branch_pool.conv.weight"] == (192, 2048, 1, 1)
    assert shapes["Mixed_7a.branch7x7x3_4.bn.running_var"] == (192,)


@pytest.mark.parametrize(("size", "dtype"), [(32, jnp.float64), (299, jnp.float32)])
def test_features_are_float32_for_images_of_any_size(
    extractor: inception.FeatureExtractor, size: int, dtype: Any
) -> None:
    shape = jax.eval_shape(extractor, jax.ShapeDtypeStruct((5, size, size, 3), dtype))
    assert shape.shape == (5, inception_blocks.NUM_FEATURES) and shape.dtype == jnp.float32


def test_features_as_pytorch_recorded_them(features: np.ndarray) -> None:
    expected = np.load(golden.FILE)["features"]
    assert expected.std() > 0.01 * expected.mean() > 0, "the weights must let something through"
    assert np.abs(expected[0] - expected[1]).max() > 100 * TOLERANCE * np.abs(expected).max()
    assert _largest_error(features[:, :: golden.STEP], expected) < TOLERANCE


def test_features_and_fid_as_pytorch_computes_them(
    weights: dict[str, np.ndarray],
    extractor: inception.FeatureExtractor,
    features: np.ndarray,
    rng: np.random.Generator,
) -> None:
    pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    others = (rng.integers(0, 256, (golden.NUM_IMAGES, 32, 32, 3)) / 127.5 - 1).astype(np.float32)
    expected = [golden.torch_features(weights, images) for images in (golden.random_images(), others)]
    assert _largest_error(features, expected[0]) < TOLERANCE
    real = metrics.inception_moments(golden.random_images(), extractor)
    found = metrics.fid(others, real, extractor)
    assert abs(found - _fid(*expected)) < 1e-2
    assert found == pytest.approx(_fid(*expected), rel=1e-3)


def _fid(first: np.ndarray, second: np.ndarray) -> float:
    """Through the samples instead of the covariances, of which a few images fill only a corner."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    centered = [(x - x.mean(axis=0)) / np.sqrt(len(x) - 1) for x in (first, second)]
    root = np.linalg.svd(centered[0] @ centered[1].T, compute_uv=False).sum()
    squares = sum(np.sum(x**2) for x in centered)
    return float(np.sum((first.mean(axis=0) - second.mean(axis=0)) ** 2) + squares - 2 * root)


def test_features_as_pytorch_fid_computes_them(
    weights: dict[str, np.ndarray], features: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    module = pytest.importorskip("pytorch_fid.inception", reason="compares with pytorch-fid, which is not installed")
    state = {name: torch.from_numpy(value) for name, value in weights.items()}
    state |= {
        name.replace("running_mean", "num_batches_tracked"): torch.tensor(0) for name in state if "running_mean" in name
    }
    state |= {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    # In place of the download. Loading is strict: every name and shape must be right.
    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *args, **kwargs: state)
    network = module.InceptionV3().eval()
    with torch.no_grad():
        images = torch.from_numpy(golden.random_images().transpose(0, 3, 1, 2).copy())
        expected = network((images + 1) / 2)[0][:, :, 0, 0].numpy()
    assert _largest_error(features, expected) < TOLERANCE


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> inception.FeatureExtractor:
    """An extractor whose features are scaled pixels, in batches of three."""
    monkeypatch.setattr(
        inception_blocks, "apply", lambda params, x: x.reshape(x.shape[0], -1).astype(jnp.float32) * params["scale"]
    )
    return inception.FeatureExtractor({"scale": jnp.float32(2.0)}, batch_size=3)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 9, 10])
def test_batches_change_nothing(shallow: inception.FeatureExtractor, rng: np.random.Generator, n: int) -> None:
    images = (rng.integers(0, 256, (n, 2, 2, 3)) / 127.5 - 1).astype(np.float32)
    expected = 2 * images.reshape(n, -1)
    np.testing.assert_array_equal(shallow(images), expected)
    found = metrics.inception_moments(images, shallow)
    assert found.num_images == n
    np.testing.assert_allclose(found.mean, expected.mean(axis=0, dtype=np.float64), rtol=1e-6, atol=1e-7)
    if n > 1:
        covariance = np.cov(expected.astype(np.float64), rowvar=False)
        np.testing.assert_allclose(found.covariance, covariance, rtol=1e-6, atol=1e-7)


def test_fid_takes_images_or_moments(shallow: inception.FeatureExtractor, rng: np.random.Generator) -> None:
    first, second = (rng.integers(0, 256, (n, 2, 2, 3)) / 127.5 - 1 for n in (7, 20))
    found = metrics.fid(first, second, shallow)
    expected = metrics.classifier_frechet_distance(2 * first.reshape(7, -1), 2 * second.reshape(20, -1))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    both = [metrics.inception_moments(images, shallow) for images in (first, second)]
    assert metrics.fid(both[0], second, shallow) == metrics.fid(first, both[1], shallow) == found
    # What a picture cannot hold does not count.
    assert metrics.fid(first + 0.4 / 127.5 * rng.uniform(-1, 1, first.shape), second, shallow) == found
    with pytest.raises(ValueError, match="images must hold at least two"):
        metrics.fid(first[:1], second, shallow)
    with pytest.raises(TypeError, match="extractor must come from load_inception"):
        metrics.fid(first, second, lambda images: images.reshape(len(images), -1))
    for wrong in (first[0], first[..., :1], first[:0]):
        with pytest.raises(ValueError, match="images must have shape"):
            metrics.fid(wrong, second, shallow)
    with pytest.raises(ValueError, match="images must be floating-point"):
        metrics.fid(np.zeros((2, 4, 4, 3), np.uint8), second, shallow)


def test_weights_come_from_a_file(
    weights: dict[str, np.ndarray], extractor: inception.FeatureExtractor, tmp_path: Path
) -> None:
    file = tmp_path / "inception.npz"
    # The classifier of the file, and the counters, are of no use here.
    np.savez(file, **weights, **{"fc.weight": np.zeros((1008, 1)), "Conv2d_1a_3x3.bn.num_batches_tracked": np.int64(0)})
    digits = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    named = file.rename(tmp_path / f"inception-{digits}.npz")
    loaded = inception.load_inception(named, batch_size=golden.NUM_IMAGES)
    assert jax.tree.structure(loaded) == jax.tree.structure(extractor)
    for ours, expected in zip(jax.tree.leaves(loaded), jax.tree.leaves(extractor), strict=True):
        np.testing.assert_array_equal(ours, expected)

    damaged = named.rename(tmp_path / "inception-01234567.npz")
    with pytest.raises(ValueError, match=rf"damaged: its SHA-256 begins with {digits}, not 01234567"):
        inception.load_inception(damaged)
    with pytest.raises(FileNotFoundError, match="path must be a file"):
        inception.load_inception(tmp_path / "elsewhere.pth")


def test_other_weights_are_refused(weights: dict[str, np.ndarray]) -> None:
    name = "Mixed_6a.branch3x3.conv.weight"
    wrong: list[tuple[dict[str, Any], str]] = [
        ({k: v for k, v in weights.items() if k != name}, rf"must hold '{name}', which is missing \(1 names"),
        (weights | {name: weights[name][:1]}, r"must have shape \(384, 288, 3, 3\), got \(1, 288, 3, 3\)"),
        (weights | {name: weights[name] * np.nan}, rf"weights\['{name}'\] must be finite"),
        (weights | {"fc.weight": np.zeros((1000, 2048))}, "another Inception-v3, with 1000 outputs"),
        (weights | {"AuxLogits.fc.weight": np.zeros((1000, 768))}, "another Inception-v3"),
    ]
    for state, message in wrong:
        with pytest.raises(ValueError, match=message):
            inception.inception_from_state_dict(state)
    with pytest.raises(ValueError, match="batch_size"):
        inception.inception_from_state_dict(weights, batch_size=0)


def test_where_weights_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for variable in ("PLURAL_JAX_DATA", "TORCH_HOME"):
        monkeypatch.delenv(variable, raising=False)
    assert inception.find_inception() is None

    def put(path: str) -> Path:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        return file

    put("cache/torch/hub/checkpoints/inception_v3_google-0cc3c7bd.pth")
    assert inception.find_inception() is None
    downloaded = put("cache/torch/hub/checkpoints/pt_inception-2015-12-05-6726825d.pth")
    assert inception.find_inception() == downloaded
    cached = put("cache/plural_jax/inception.npz")
    assert inception.find_inception() == cached
    monkeypatch.setenv("PLURAL_JAX_DATA", str(tmp_path / "data"))
    assert inception.find_inception() == cached
    put("data/inception.txt")
    in_data = put("data/inception/pt_inception-2015-12-05-6726825d.pth")
    assert inception.find_inception() == in_data
    given = put("given.safetensors")
    assert inception.find_inception(given) == given
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        inception.find_inception(tmp_path / "elsewhere.pth")
