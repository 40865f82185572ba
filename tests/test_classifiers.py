"""Classifiers: layer by layer against PyTorch, published accuracies on real images, files, pieces, rewards and refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plural_jax.models import classifiers
from plural_jax.models.classifiers import VGG, ResNet, layers
from plural_jax.models.classifiers.base import normalize
from plural_jax.rewards.classes import class_probability
from tests.real_data import real_data

TORCH = "compares with PyTorch, which is not installed"


@pytest.fixture
def key(rng):
    return jax.random.key(int(rng.integers(2**31)))


@pytest.fixture(scope="module")
def small():
    """A ResNet of 8 layers whose statistics are not those of a start."""
    classifier = classifiers.new_classifier(ResNet(depth=8, num_classes=4, width=4), jax.random.key(1))
    leaves, tree = jax.tree.flatten(classifier.statistics)
    moved = [
        jnp.abs(leaf + 0.3 * jax.random.normal(jax.random.key(i), leaf.shape, leaf.dtype))
        for i, leaf in enumerate(leaves)
    ]
    return dataclasses.replace(classifier, statistics=jax.tree.unflatten(tree, moved), batch_size=None)


def images_of(rng, num, size=32):
    return rng.uniform(-1, 1, size=(num, size, size, 3)).astype(np.float32)


def torch_norms(torch, network):
    """Statistics and scales like those of a trained network."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            with torch.no_grad():
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.7, 1.3)
                module.bias.normal_(0, 0.1)
    return network.eval()


def torch_vgg(torch, hidden, pixels):
    """Configuration A from the layers of torch.nn; `pixels` per side go into the first linear layer."""
    nn, features, inputs = torch.nn, [], 3
    for number in (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"):
        if number == "M":
            features.append(nn.MaxPool2d(2, 2))
            continue
        features += [nn.Conv2d(inputs, number, 3, padding=1), nn.BatchNorm2d(number), nn.ReLU(inplace=False)]
        inputs = number
    linear, inputs = [], 512 * pixels**2
    for number in hidden:
        linear += [nn.Linear(inputs, number), nn.ReLU(), nn.Dropout()]
        inputs = number
    linear.append(nn.Linear(inputs, 10))

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(*features)
            self.classifier = nn.Sequential(*linear) if hidden else linear[0]

        def forward(self, x):
            x = nn.functional.adaptive_avg_pool2d(self.features(x), (pixels, pixels))
            return self.classifier(torch.flatten(x, 1))

    return torch_norms(torch, Network())


def as_torch(torch, classifier, images):
    """Images normalized as the layout's authors do, channels first."""
    x = (images.astype(np.float64) + 1) / 2
    x = (x - np.array(classifier.mean)) / np.array(classifier.std)
    return torch.tensor(x.transpose(0, 3, 1, 2), dtype=torch.float32)


@pytest.mark.parametrize(
    ("hidden", "pixels", "layout", "std"),
    [
        ((), 1, "kuangliu", 0.2023),
        ((512, 512), 1, "chenyaofo", 0.2023),
        ((4096, 4096), 1, "huyvnphan", 0.2471),
        ((32, 16), 7, "chenyaofo", 0.2023),
    ],
)
def test_vgg_layer_by_layer_against_torch(tmp_path, rng, hidden, pixels, layout, std):
    torch = pytest.importorskip("torch", reason=TORCH)
    torch.manual_seed(int(rng.integers(2**31)))
    network = torch_vgg(torch, hidden, pixels)
    torch.save(network.state_dict(), tmp_path / "vgg11_bn.pt")
    classifier = classifiers.load_classifier(tmp_path / "vgg11_bn.pt", VGG(hidden=hidden))
    assert classifier.name == f"vgg11 ({layout}'s layout, vgg11_bn.pt)" and classifier.std[0] == std
    images = images_of(rng, 3)
    x = as_torch(torch, classifier, images)
    module = layers.merge(classifier.network, classifier.params, classifier.statistics)
    y = normalize(jnp.asarray(images), classifier.mean, classifier.std)
    np.testing.assert_allclose(y, x.numpy().transpose(0, 2, 3, 1), atol=1e-5)
    with torch.no_grad():
        logits = network(x).numpy()
        for i in range(8):
            # PyTorch's layers up to the next convolution
            parts = iter(network.features[_start(network, torch, i) : _start(network, torch, i + 1)])
            for part in parts:
                x = part(x)
            y = module.stage(y, i, training=False)
            expected = x.numpy().transpose(0, 2, 3, 1)
            assert np.abs(expected).max() > 0.1
            np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(classifier.features(images), x.numpy()[:, :, 0, 0], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(classifier.logits(images), logits, rtol=1e-3, atol=1e-4 * np.abs(logits).max())
    np.testing.assert_allclose(
        classifier.probabilities(images), torch.softmax(torch.tensor(logits), 1).numpy(), atol=1e-4
    )


def _start(network, torch, number):
    """Where the convolution of that number is."""
    where = [i for i, layer in enumerate(network.features) if isinstance(layer, torch.nn.Conv2d)]
    return [*where, len(network.features)][number]


def test_resnet_against_torch(tmp_path, rng):
    """Option A written a second time, with a prefix of data-parallel training and PyTorch's counters."""
    torch = pytest.importorskip("torch", reason=TORCH)
    torch.manual_seed(int(rng.integers(2**31)))
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, outputs, 3, 2 if inputs != outputs else 1, 1, bias=False)
            self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
            self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
            self.extra = outputs - inputs

        def forward(self, x):
            y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
            if self.extra:
                zeros = torch.zeros(len(x), self.extra // 2, x.shape[2] // 2, x.shape[3] // 2)
                x = torch.cat([zeros, x[:, :, ::2, ::2], zeros], 1)
            return torch.relu(x + y)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
            self.layer1 = nn.Sequential(Block(16, 16), Block(16, 16))
            self.layer2 = nn.Sequential(Block(16, 32), Block(32, 32))
            self.layer3 = nn.Sequential(Block(32, 64), Block(64, 64))
            self.linear = nn.Linear(64, 7)

        def forward(self, x):
            x = self.layer3(self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x))))))
            features = x.mean((2, 3))
            return self.linear(features), features

    network = torch_norms(torch, Network())
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}, "best": 1.0}, tmp_path / "x.th"
    )
    classifier = classifiers.load_classifier(tmp_path / "x.th")
    assert classifier.network == ResNet(14, 7) and classifier.mean == classifiers.IMAGENET[0]
    images = images_of(rng, 3)
    with torch.no_grad():
        expected = [a.numpy() for a in network(as_torch(torch, classifier, images))]
    for found, wanted in zip(classifier(images), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())


def test_batch_normalization_in_training(rng):
    """Against NumPy: the batch's own statistics, and the running ones afterwards."""
    x = rng.normal(1.0, 2.0, size=(4, 3, 3, 2)).astype(np.float32)
    norm = layers.BatchNorm(2)
    norm.mean[...] = jnp.array([0.5, -1.0], jnp.float32)
    y = norm(jnp.asarray(x), training=True)
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(y, (x - mean) / np.sqrt(var + 1e-5), atol=1e-5)
    np.testing.assert_allclose(norm.mean[...], 0.9 * np.array([0.5, -1.0]) + 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * x.var((0, 1, 2), ddof=1), rtol=1e-5)
    assert norm(jnp.asarray(x, jnp.bfloat16), training=True).dtype == jnp.bfloat16


def test_pieces_are_the_whole(small, rng):
    images = images_of(rng, 11, 8)
    whole = small(images)
    for size in (4, 11, 1):  # 3 pieces with a remainder, one piece, one image each
        for found, expected in zip(dataclasses.replace(small, batch_size=size)(images), whole, strict=True):
            assert found.dtype == jnp.float32 and found.shape == expected.shape
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_memory_does_not_grow_with_the_images():
    """Without pieces one feature map of 2,000 images would take more than what is allowed here."""
    classifier = classifiers.new_classifier(ResNet(depth=8, width=16), jax.random.key(0), batch_size=25)
    images = jax.ShapeDtypeStruct((2000, 32, 32, 3), jnp.float32)
    extra = jax.jit(lambda c, x: c.logits(x)).lower(classifier, images).compile().memory_analysis().temp_size_in_bytes
    one_feature_map = 2000 * 32 * 32 * 16 * 4
    assert extra < 2000 * 32 * 32 * 3 * 4 * 1.5 + one_feature_map / 8


def test_a_classifier_is_a_pytree(small, rng):
    """Argument of jit, mapped over images and over classifiers, differentiable by the images; one program for equal networks."""
    images = jnp.asarray(images_of(rng, 6, 8))
    logits = small.logits(images)
    jitted = jax.jit(lambda c, x: c.probabilities(x))
    np.testing.assert_allclose(jitted(small, images), jax.nn.softmax(logits), rtol=1e-5, atol=1e-6)
    again = dataclasses.replace(small, params=jax.tree.map(lambda p: p * 1.5, small.params))
    jitted(again, images)
    assert jitted._cache_size() == 1
    each = jax.vmap(small.logits)(images.reshape(2, 3, 8, 8, 3))
    np.testing.assert_allclose(each.reshape(6, -1), logits, rtol=1e-5, atol=1e-5)
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), small, again)
    mapped = jax.vmap(lambda c: c.logits(images))(both)
    np.testing.assert_allclose(mapped[1], again.logits(images), rtol=1e-4, atol=1e-5)
    towards = jnp.asarray(rng.normal(size=images.shape), jnp.float32)
    gradient = jax.grad(lambda x: small.logits(x)[:, 0].sum())(images)
    eps = jnp.float32(1e-4)  # small, because the network has kinks
    difference = (small.logits(images + eps * towards) - small.logits(images - eps * towards))[:, 0].sum() / (2 * eps)
    # In a random direction the slope is about the gradient's length, and can be much less.
    np.testing.assert_allclose(jnp.vdot(gradient, towards), difference, atol=0.05 * jnp.linalg.norm(gradient))


def test_accuracy_counts(small, rng):
    images = images_of(rng, 8, 8)
    right = np.argmax(small.logits(images), axis=1)
    labels = np.where(np.arange(8) < 3, (right + 1) % 4, right)
    assert classifiers.accuracy(small, images, labels.astype(np.uint8)) == 5 / 8


@pytest.mark.parametrize("network", [ResNet(8, 3, 2), VGG(((4,), (6, 4)), (5,), 3, 0.5)])
def test_saved_and_loaded(tmp_path, key, rng, network):
    classifier = classifiers.new_classifier(network, key, mean=(0.1, 0.2, 0.3), batch_size=7)
    classifiers.save_classifier(tmp_path / "c.npz", classifier)
    found = classifiers.load_classifier(tmp_path / "c.npz", network)
    assert jax.tree.structure(found) == jax.tree.structure(classifier)
    jax.tree.map(np.testing.assert_array_equal, found, classifier)
    renamed = classifiers.load_classifier(tmp_path / "c.npz", name="mine", std=(0.5, 0.5, 0.5))
    assert renamed.name == "mine" and renamed.std == (0.5, 0.5, 0.5) and renamed.mean == (0.1, 0.2, 0.3)
    with pytest.raises(ValueError, match=r"holds .*, but network=ResNet\(depth=20"):
        classifiers.load_classifier(tmp_path / "c.npz", ResNet())
    arrays = dict(np.load(tmp_path / "c.npz"))
    lost = next(name for name in arrays if name.endswith("kernel"))
    np.savez(tmp_path / "d.npz", **{name: a for name, a in arrays.items() if name != lost})
    with pytest.raises(ValueError, match=f"is damaged: {lost} is missing"):
        classifiers.load_classifier(tmp_path / "d.npz")


def names_of_resnet(width=2):
    arrays = {"conv1.weight": (width, 3, 3, 3), "linear.weight": (3, 4 * width), "linear.bias": (3,)}
    sizes = {"bn1": width}
    for i, outputs in enumerate((width, 2 * width, 4 * width)):
        arrays[f"layer{i + 1}.0.conv1.weight"] = (outputs, outputs // 2 if i else width, 3, 3)
        arrays[f"layer{i + 1}.0.conv2.weight"] = (outputs, outputs, 3, 3)
        sizes |= {f"layer{i + 1}.0.bn1": outputs, f"layer{i + 1}.0.bn2": outputs}
    for name, size in sizes.items():
        arrays |= {f"{name}.{part}": (size,) for part in ("weight", "bias", "running_mean", "running_var")}
    return {name: np.ones(shape, np.float32) for name, shape in arrays.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bn1.running_var": None}, "the state dict has no 'bn1.running_var', which a resnet8 needs"),
        (
            {"layer4.0.conv1.weight": np.ones(3)},
            "the state dict holds 'layer4.0.conv1.weight', which a resnet8 does not",
        ),
        ({"bn1.bias": np.ones(3)}, r"'bn1.bias' of the state dict must have shape \(2,\) for a resnet8, got \(3,\)"),
        ({"layer2.0.shortcut.0.weight": np.ones(3)}, "shortcuts must have no parameters"),
        ({"conv1.weight": None}, "holds no network that is known here"),
    ],
)
def test_state_dicts_that_do_not_fit(tmp_path, change, message):
    arrays = {name: a for name, a in (names_of_resnet() | change).items() if a is not None}
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        classifiers.load_classifier(tmp_path / "x.npz")


def test_a_vgg_without_normalization(tmp_path):
    arrays = {"features.0.weight": np.ones((4, 3, 3, 3)), "classifier.weight": np.ones((2, 4))}
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match="must be of a VGG with batch normalization"):
        classifiers.load_classifier(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda c: c.logits(np.zeros((2, 8, 8))), r"images must have shape \[n, height, width, 3\], got \(2, 8, 8\)"),
        (lambda c: c.logits(np.zeros((0, 8, 8, 3))), r"images must have shape .*, got \(0, 8, 8, 3\)"),
        (lambda c: c.logits(np.zeros((2, 8, 8, 3), np.uint8)), r"images must be floats in \[-1, 1\], got uint8"),
        (lambda c: c.logits(np.zeros((2, 6, 8, 3))), "images must have a multiple of 4 pixels each way"),
        (lambda c: classifiers.accuracy(c, np.zeros((2, 8, 8, 3)), np.zeros(2)), "labels must be whole numbers"),
        (lambda c: classifiers.accuracy(c, np.zeros((2, 8, 8, 3)), np.zeros(3, int)), "one for each of 2 images"),
        (lambda c: dataclasses.replace(c, std=(0.0, 1.0, 1.0)), "std must be positive"),
        (lambda c: dataclasses.replace(c, mean=(0.5,)), "mean must hold one number for each of the three colours"),
        (lambda c: dataclasses.replace(c, batch_size=0), "batch_size must be a whole number of at least 1"),
        (lambda c: ResNet(depth=21), "depth must be 6 n \\+ 2 with n at least 1, such as 20 or 56, got 21"),
        (lambda c: ResNet(depth=2), "depth must be 6 n"),
        (lambda c: VGG(stages=((4,), ())), "stages must hold at least one convolution each"),
        (lambda c: VGG(width=0.0), "width must be positive"),
        (lambda c: VGG().check_size(16, 32), "images must have a multiple of 32 pixels each way for a vgg11, got 16 x 32"),
    ],
)  # fmt: skip
def test_refused(small, make, message):
    with pytest.raises(ValueError, match=message):
        make(small)


def test_class_rewards(small, rng):
    """Gamma times P_c(x), for the wanted classes alone; gamma changes without compiling, and moves with its gradient."""
    images = jnp.asarray(images_of(rng, 5, 8))
    p = np.asarray(small.probabilities(images))
    reward = class_probability(small.probabilities, [2, 0], gamma=[5.0, 2.0])
    found = reward(images)
    assert found.shape == (5, 2) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, p[:, [2, 0]] * [5, 2], rtol=1e-5)
    # A bound method keeps the classifier's arrays as leaves.
    assert len(jax.tree.leaves(reward)) == len(jax.tree.leaves(small)) + 1
    jitted = jax.jit(lambda r, x: r(x))
    for gamma in (1.0, 3.0):
        changed = class_probability(small.probabilities, [2, 0], gamma=gamma)
        np.testing.assert_allclose(jitted(changed, images), gamma * p[:, [2, 0]], rtol=1e-5)
    assert jitted._cache_size() == 1
    slope = jax.grad(lambda g: class_probability(small.probabilities, [1], g)(images).sum())(4.0)
    np.testing.assert_allclose(slope, p[:, 1].sum(), rtol=1e-5)
    # In the retraining loop, where rewards see samples of a model.
    constant = class_probability(lambda x: jnp.stack([jnp.cos(x), jnp.sin(x)], 1) ** 2, [1])
    np.testing.assert_allclose(constant(jnp.array([0.0, jnp.pi / 2])), [[0.0], [5.0]], atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": []}, "classes must be at least one number"),
        ({"classes": [0, -1]}, "classes must be at least one number, none negative"),
        ({"classes": [0.5]}, "classes must be whole numbers"),
        ({"gamma": -1.0}, "gamma must not be negative, got -1.0"),
        ({"gamma": [1.0, 2.0, 3.0]}, "gamma must be a number or one for each of 2 classes"),
        ({"gamma": np.nan}, "gamma must be finite"),
        ({"probabilities": 3}, "probabilities must be a function of samples, got 3"),
    ],
)
def test_class_rewards_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        class_probability(**{"probabilities": jax.nn.softmax, "classes": [0, 1], **arguments})


def test_a_class_that_is_not_there():
    with pytest.raises(ValueError, match=r"classes must be among those that probabilities returns, got \(0, 3\)"):
        class_probability(jax.nn.softmax, [0, 3])(jnp.zeros((2, 3)))


def real_test_images(num):
    """The first CIFAR-10 test images in [-1, 1], and their labels."""
    with np.load(real_data("cifar10", "test.npz")) as packed:
        differences, labels = packed["residual"][:, :num], packed["labels"][:num]
    pixels = np.cumsum(np.cumsum(differences, axis=2, dtype=np.uint8), axis=3, dtype=np.uint8)
    pixels[0] += pixels[1]
    pixels[2] += pixels[1]
    return pixels.transpose(1, 2, 3, 0).astype(np.float32) / 127.5 - 1, labels


def published(depth):
    return classifiers.load_classifier(real_data("cifar10_resnet", f"resnet{depth}.npz"), ResNet(depth))


def test_resnet20_on_real_images():
    """On the first thousand test images; all of them give 91.73 %, as published (`pytest -m slow`)."""
    images, labels = real_test_images(1000)
    assert classifiers.accuracy(published(20), images, labels) == pytest.approx(0.915, abs=1.5e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "expected"), [(20, 0.9173), (56, 0.9339)])
def test_published_accuracies(depth, expected):
    images, labels = real_test_images(10_000)
    assert classifiers.accuracy(published(depth), images, labels) == pytest.approx(expected, abs=1e-4)
