"""Training of classifiers: it learns, resumes bit for bit, agrees with PyTorch step by step and with itself on two devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plural_jax.models import classifiers
from plural_jax.models.classifiers import VGG, ResNet, TrainingConfig, layers, training, vgg

NETWORK = VGG(((8,), (16,)), num_classes=3, width=0.5)
RECIPE = TrainingConfig(
    NETWORK, epochs=4, batch_size=32, learning_rate=0.1, warmup_epochs=0.5, label_smoothing=0.05, crop=1, average=0.8
)


def stripes(seed, num):
    """Noisy bytes [num, 8, 8, 3] whose class is what they show: rows, columns or a chessboard."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, size=num)
    row, column = np.indices((8, 8)) // 2 % 2
    shown = np.stack([row, column, row ^ column])[labels][..., None] * rng.uniform(60, 120, size=(num, 1, 1, 3))
    return (shown + rng.uniform(0, 120, size=(num, 8, 8, 3))).astype(np.uint8), labels


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """An unbroken run, and one that was interrupted after its second epoch and resumed."""
    images, labels = stripes(1, 203)  # eleven images of each epoch wait for another
    given = {"key": jax.random.key(3), "test": stripes(2, 64)}
    folder = tmp_path_factory.mktemp("training") / "run"
    with pytest.raises(KeyboardInterrupt):
        classifiers.train_classifier(images, labels, RECIPE, checkpoint=folder, progress=Interrupt(2), **given)
    resumed = Interrupt(None)
    broken = classifiers.train_classifier(images, labels, RECIPE, checkpoint=folder, progress=resumed, **given)
    assert resumed.told == [2, 1, 1]
    return classifiers.train_classifier(images, labels, RECIPE, checkpoint=folder.with_name("whole"), **given), broken


class Interrupt:
    """A meter at which the user loses patience."""

    def __init__(self, after):
        self.after, self.told = after, []

    def start(self, total, description):
        pass

    def advance(self, amount):
        self.told.append(amount)
        if sum(self.told) == self.after:
            raise KeyboardInterrupt

    def stop(self):
        pass


@pytest.mark.end_to_end
def test_it_learns(runs):
    """From chance, a third, to nearly all of fresh images; the result is the average and measures what the history says."""
    (classifier, history), _ = runs
    assert history.loss.shape == (4,) and classifier.name == "vgg5 x 0.5 (trained for 4 epochs)"
    assert history.loss[-1] < 0.6 * history.loss[0] and history.accuracy[-1] > history.accuracy[0]
    images, labels = stripes(5, 200)
    assert classifiers.accuracy(classifier, images.astype(np.float32) / 127.5 - 1, labels) > 0.9
    images, labels = stripes(2, 64)
    measured = classifiers.accuracy(classifier, images.astype(np.float32) / 127.5 - 1, labels)
    assert history.test_accuracy[-1] == pytest.approx(float(measured), abs=1e-6)
    assert {leaf.dtype for leaf in jax.tree.leaves(classifier)} == {jnp.dtype(jnp.float32)}


@pytest.mark.end_to_end
def test_an_interrupted_run_resumes_bit_for_bit(runs):
    jax.tree.map(np.testing.assert_array_equal, *runs)


@pytest.mark.parametrize("padding", ["black", "reflect"])
def test_augmentation_is_a_crop_and_a_mirror_image(rng, padding):
    """Each result is one of the (2 crop + 1)^2 x 2 images that it can be, and all of these come up equally often."""
    images = rng.integers(0, 256, size=(3, 6, 6, 3)).astype(np.uint8)
    index, key = jnp.asarray(np.arange(2400) % 3, jnp.int32), jax.random.key(int(rng.integers(2**31)))
    found = np.asarray(training.augment(key, jnp.asarray(images), index, 2, padding, True))
    assert found.dtype == np.float32
    mode = {"mode": "constant"} if padding == "black" else {"mode": "reflect"}
    counts = np.zeros((5, 5, 2), int)
    for i in range(2400):
        padded = np.pad(images[i % 3], ((2, 2), (2, 2), (0, 0)), **mode).astype(np.float32) / 127.5 - 1
        fits = [
            (a, b, m)
            for a in range(5)
            for b in range(5)
            for m in range(2)
            if np.abs(padded[a : a + 6, b : b + 6][:, :: 1 - 2 * m] - found[i]).max() < 1e-6
        ]
        assert len(fits) == 1
        counts[fits[0]] += 1
    # 48 expected of each kind: chi-squared with 49 degrees of freedom is below 95 in all but 1 of 10,000 runs.
    assert ((counts - 48) ** 2 / 48).sum() < 95
    plain = training.augment(key, jnp.asarray(images), index[:3], 0, padding, False)
    np.testing.assert_allclose(plain, images.astype(np.float32) / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize("size", [3, 4])
def test_cutout_is_a_square_around_each_pixel_alike(rng, size):
    """Each mask is one of the 5 x 6 squares cut off at the edges, and all of these come up equally often."""
    key = jax.random.key(int(rng.integers(2**31)))
    found = np.asarray(training.cut_out(key, (2400, 5, 6, 3), size))[..., 0]
    place = np.arange(6)
    along = (place >= (start := place[:, None] - size // 2)) & (place < start + size)
    squares = along[:5, None, :5, None] & along[None, :, None]
    counts = np.array([(found == square).all((1, 2)).sum() for square in squares.reshape(-1, 5, 6)])
    assert counts.sum() == 2400
    # 80 expected of each: chi-squared with 29 degrees of freedom is below 67 in all but 1 of 10,000 runs.
    assert ((counts - 80) ** 2 / 80).sum() < 67


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle"])
def test_learning_rates(schedule):
    config = dataclasses.replace(RECIPE, epochs=10, warmup_epochs=2, schedule=schedule, learning_rate=0.3)
    rates = np.array([training.learning_rate(config, jnp.int32(s), 5) for s in range(50)])
    np.testing.assert_allclose(rates[:10], 0.3 * np.arange(1, 11) / 10, rtol=1e-6)
    along = np.arange(40) / 40
    falling = np.cos(np.pi * along / 2) ** 2 if schedule == "cosine" else 1 - along
    np.testing.assert_allclose(rates[10:], 0.3 * falling, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_dropping(rng, rate):
    """Each number is zero or larger by 1 / (1 - rate), with the right chance and by itself, and otherwise in another layer."""
    y, key = jnp.asarray(rng.uniform(1, 2, size=(400, 50)), jnp.float32), jax.random.key(int(rng.integers(2**31)))
    drop = training.dropping(key, rate)
    kept = np.asarray(drop(y, 1)) != 0
    np.testing.assert_allclose(drop(y, 1), np.where(kept, y / (1 - rate), 0), rtol=1e-6)
    # 20,000 draws: five standard errors of their mean are 0.016, of each column's 0.115.
    assert kept.mean() == pytest.approx(1 - rate, abs=0.017)
    assert np.abs(kept.mean(0) - (1 - rate)).max() < 0.12
    other = np.asarray(drop(y, 2)) != 0
    assert (kept == other).mean() == pytest.approx(rate**2 + (1 - rate) ** 2, abs=0.02)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_steps_against_torch(rng, dropout):
    """Three steps of Nesterov's momentum with label smoothing and decay of the kernels alone, batch statistics included.

    A hidden layer's numbers are dropped with the library's masks, which PyTorch is given.
    """
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    nn = torch.nn
    torch.manual_seed(int(rng.integers(2**31)))
    layers_ = []
    for a, b in ((3, 4), (4, 8)):
        layers_ += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2, 2)]
    network = nn.Module()
    network.features = nn.Sequential(*layers_)
    network.classifier = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    kernels = [p for name, p in network.named_parameters() if p.ndim > 1]
    others = [p for name, p in network.named_parameters() if p.ndim == 1]
    optimizer = torch.optim.SGD(
        [{"params": kernels, "weight_decay": 0.05}, {"params": others}], lr=0.1, momentum=0.9, nesterov=True
    )
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.1)

    def arrays():
        return vgg.from_state_dict({name: tensor.numpy().copy() for name, tensor in network.state_dict().items()})

    config, params, statistics = arrays()
    recipe = TrainingConfig(
        config, weight_decay=0.05, label_smoothing=0.1, epochs=1, warmup_epochs=0, dropout=dropout, average=0.9
    )
    state = training._Start(recipe)(jax.random.key(0))
    trees = jax.tree.map(jnp.asarray, (params, statistics))
    state, mean = state._replace(params=trees[0], statistics=trees[1], average=trees), trees
    for step, rate in enumerate((0.1, 0.2, 0.05)):
        x, y = rng.normal(size=(6, 8, 8, 3)).astype(np.float32), rng.integers(0, 3, size=6)
        optimizer.zero_grad()
        for group in optimizer.param_groups:
            group["lr"] = rate
        features = network.features(torch.tensor(x.transpose(0, 3, 1, 2))).mean((2, 3))
        hidden = network.classifier[:2](features)
        key = jax.random.fold_in(jax.random.key(0), step)
        mask = np.asarray(training.dropping(key, dropout)(jnp.ones(hidden.shape, jnp.float32), 1))
        logits = network.classifier[2](hidden * torch.tensor(mask))
        expected = loss_of(logits, torch.tensor(y))
        expected.backward()
        optimizer.step()
        state, loss, right = training._descend(
            recipe, state, jnp.asarray(x), jnp.asarray(y, jnp.int32), jnp.float32(rate), jnp.int32(step), key
        )
        assert loss == pytest.approx(float(expected.detach()), rel=1e-4)
        assert right == pytest.approx(float((logits.argmax(1).numpy() == y).mean()))
        keep = min(0.9, (1 + step) / (10 + step))
        mean = jax.tree.map(lambda a, b, keep=keep: keep * a + (1 - keep) * b, mean, (state.params, state.statistics))
    _, params, statistics = arrays()
    for found, wanted in zip(
        jax.tree.leaves((state.params, state.statistics)), jax.tree.leaves((params, statistics)), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.average, mean)


def test_in_bfloat16(rng):
    """Close to float32, from which arrays and losses are."""
    params, statistics = layers.initialize(NETWORK, jax.random.key(int(rng.integers(2**31))))
    x, y = jnp.asarray(rng.normal(size=(16, 8, 8, 3)), jnp.float32), jnp.asarray(rng.integers(0, 3, 16), jnp.int32)
    found = []
    for dtype in ("float32", "bfloat16"):
        recipe = dataclasses.replace(RECIPE, dtype=dtype, average=None)
        state = training._Start(recipe)(jax.random.key(0))._replace(params=params, statistics=statistics)
        given = jnp.float32(0.1), jnp.int32(0), jax.random.key(0)
        found.append(jax.jit(training._descend, static_argnums=0)(recipe, state, x, y, *given))
    (exact, loss, _), (rough, rough_loss, _) = found
    assert rough_loss.dtype == jnp.float32 and loss != rough_loss
    assert rough_loss == pytest.approx(float(loss), rel=0.03)
    assert {leaf.dtype for leaf in jax.tree.leaves(rough)} == {jnp.dtype(jnp.float32), jnp.dtype(jnp.int32)}
    # Where two pixels of a maximum are nearly equal, rounding decides which learns: only the direction as a whole is the same.
    one, other = (
        np.concatenate([np.ravel(a - b) for a, b in zip(*map(jax.tree.leaves, (moved.params, params)), strict=True)])
        for moved in (exact, rough)
    )
    assert one @ other > 0.9 * np.linalg.norm(one) * np.linalg.norm(other)


IMAGES, LABELS = np.zeros((40, 8, 8, 3), np.uint8), np.zeros(40, int)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TrainingConfig(epochs=0), "epochs must be a whole number of at least 1"),
        (lambda: TrainingConfig(learning_rate=0.0), "learning_rate must be positive, got 0.0"),
        (lambda: TrainingConfig(momentum=1.0), "momentum must not be negative and below 1, got 1.0"),
        (lambda: TrainingConfig(weight_decay=-1.0), "weight_decay must not be negative, got -1.0"),
        (lambda: TrainingConfig(cutout=-1), "cutout must not be negative, got -1"),
        (lambda: TrainingConfig(VGG(hidden=(8,)), dropout=1.0), "dropout must not be negative and below 1, got 1.0"),
        (lambda: TrainingConfig(dropout=0.5), "dropout must be 0 for a network without hidden linear layers, got 0.5"),
        (lambda: TrainingConfig(epochs=2, warmup_epochs=2.0), "warmup_epochs must not be negative and below 2"),
        (lambda: TrainingConfig(schedule="steps"), "schedule must be one of cosine, one-cycle, got 'steps'"),
        (lambda: TrainingConfig(padding="zero"), "padding must be one of black, reflect, got 'zero'"),
        (lambda: TrainingConfig(dtype="float16"), "dtype must be one of float32, bfloat16, got 'float16'"),
        (lambda: training.training_process(IMAGES[:9], LABELS[:9], RECIPE), "batch_size must be at most .* 32 of 9"),
        (lambda: training.training_process(IMAGES[0], LABELS, RECIPE), "images must have shape"),
        (lambda: training.training_process(IMAGES.astype(int), LABELS, RECIPE), "images must be uint8 or floats"),
        (lambda: training.training_process(IMAGES, LABELS[1:], RECIPE), "labels must be whole numbers"),
        (
            lambda: training.training_process(IMAGES, LABELS + 3, RECIPE),
            "labels must be from 0 to 2 for 3 classes, got 3",
        ),
        (lambda: training.training_process(IMAGES, LABELS, RECIPE, test=(IMAGES[0], LABELS)), "test images must have"),
        (lambda: training.training_process(IMAGES, LABELS, dataclasses.replace(RECIPE, crop=8)), "crop must be below"),
        (lambda: training.training_process(IMAGES[:, :6], LABELS, RECIPE), "images must have a multiple of 4 pixels"),
        (
            lambda: training.training_process(IMAGES, LABELS, RECIPE, mesh=jax.make_mesh((1,), ("x",))),
            r"mesh must have one axis, 'batch', got axes \('x',\)",
        ),
        (lambda: training.training_process(IMAGES, LABELS, RECIPE).step(None, None), "key must be a PRNG key"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_divergence_is_told():
    recipe = TrainingConfig(ResNet(8, 3, 2), epochs=2, batch_size=32, learning_rate=1e30, warmup_epochs=0)
    with pytest.raises(ValueError, match=r"training diverged \(a loss is NaN\); learning_rate=1e\+30 may be too large"):
        classifiers.train_classifier(*stripes(1, 64), recipe, key=jax.random.key(0))
