"""Couplings, the loss and the steps of OT-CFM, against linear assignment, closed forms and TorchCFM; flows against Gaussians."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from jax.tree_util import Partial

import plural_jax as pj
from plural_jax.models import FlowTraining, Integrator, flow_matching, flow_training
from plural_jax.models.flow_matching import couple_many, matching_loss, path
from plural_jax.models.flow_training import start_training
from plural_jax.models.network import Network

# Each step by itself would be traced and compiled in every call.
couple = jax.jit(flow_matching.couple)
train = jax.jit(flow_training.train)


@pytest.fixture
def batch(rng):
    """Noise and samples of a minibatch, [24, 3, 2]."""
    return tuple(jnp.asarray(rng.normal(size=(24, 3, 2)), jnp.float32) for _ in range(2))


def test_coupling_is_the_best_assignment(batch):
    noise, samples = (np.asarray(x, np.float64).reshape(24, -1) for x in batch)
    order = np.asarray(couple(*batch))
    assert sorted(order) == list(range(24))
    cost = ((noise[None] - samples[:, None]) ** 2).sum(-1)  # [sample, noise]
    rows, columns = scipy.optimize.linear_sum_assignment(cost)
    np.testing.assert_allclose(cost[np.arange(24), order].sum(), cost[rows, columns].sum(), rtol=1e-5)
    np.testing.assert_array_equal(order, columns)


def test_many_couplings_are_those_of_each_batch(rng):
    noise, samples = (jnp.asarray(rng.normal(size=(3, 8, 2)), jnp.float32) for _ in range(2))
    each = [couple(a, b) for a, b in zip(noise, samples, strict=True)]
    np.testing.assert_array_equal(jax.jit(couple_many)(noise, samples), jnp.stack(each))
    np.testing.assert_array_equal(jax.jit(jax.vmap(couple))(noise, samples), jnp.stack(each))  # what is not a CPU does


def test_loss_and_coupling_agree_with_torchcfm(batch, rng):
    torch = pytest.importorskip("torch", reason="compares with TorchCFM, which needs PyTorch")
    torchcfm = pytest.importorskip("torchcfm", reason="compares with TorchCFM, which is not installed")
    from torchcfm.optimal_transport import OTPlanSampler

    noise, samples = batch
    plan = OTPlanSampler(method="exact").get_map(torch.tensor(np.asarray(noise)), torch.tensor(np.asarray(samples)))
    order = np.asarray(couple(noise, samples))
    np.testing.assert_allclose(plan[order, np.arange(24)], 1 / 24, rtol=1e-6)  # all mass on our pairs

    matcher = torchcfm.ConditionalFlowMatcher(sigma=0.0)
    paired = np.asarray(noise)[order]
    time = rng.uniform(size=24).astype(np.float32)
    t, xt, ut = matcher.sample_location_and_conditional_flow(
        torch.tensor(paired), torch.tensor(np.asarray(samples)), t=torch.tensor(time)
    )
    x, u = path(jnp.asarray(paired), samples, jnp.asarray(time))
    np.testing.assert_allclose(x, xt, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(u, ut, rtol=1e-5, atol=1e-6)
    theirs = torch.mean((torch.sin(xt) + t[:, None, None] - ut) ** 2)
    ours = matching_loss(lambda t, x: jnp.sin(x) + t[:, None, None], jnp.asarray(paired), samples, jnp.asarray(time))
    np.testing.assert_allclose(ours, float(theirs), rtol=1e-5)


def test_weighted_loss_is_that_of_repeated_samples(batch, rng):
    noise, samples = batch
    time = jnp.asarray(rng.uniform(size=24), jnp.float32)
    times = rng.integers(0, 3, 24)
    again = np.repeat(np.arange(24), times)
    field = lambda t, x: jnp.cos(x)  # noqa: E731
    weighted = matching_loss(field, noise, samples, time, jnp.asarray(times, jnp.float32))
    np.testing.assert_allclose(weighted, matching_loss(field, noise[again], samples[again], time[again]), rtol=1e-5)


MEAN, STD = 2.0, 0.5


@pytest.fixture(scope="module")
def gaussian_flow():
    """A flow pretrained on N(2, 0.25) in one dimension: the network, and its averaged parameters."""
    data = MEAN + STD * jax.random.normal(jax.random.key(3), (20_000, 1), jnp.float32)
    network = pj.models.dense_field(1, width=48, depth=2)
    training = FlowTraining(num_steps=160, batch_size=64, learning_rate=1e-2, decay=640, average=0.98)
    process = pj.models.pretraining(network, training, data)
    final, trace = pj.run(process, process.init(jax.random.key(0)), num_steps=4, key=jax.random.key(1))
    assert trace.loss[-1] < trace.loss[0]
    return network, final.average


@pytest.mark.end_to_end
def test_a_gaussian_target_has_the_known_velocity(gaussian_flow):
    """With optimal couplings x_1 = mean + std x_0, so u(t, x) is the constant velocity of the path through x."""
    network, params = gaussian_flow
    start, time = np.meshgrid(np.linspace(-1.5, 1.5, 7), np.linspace(0.05, 0.95, 7))
    x = (1 - time) * start + time * (MEAN + STD * start)
    exact = MEAN + (STD - 1) * start
    found = network.apply(params, jnp.asarray(time.ravel(), jnp.float32), jnp.asarray(x.reshape(-1, 1), jnp.float32))
    # A minibatch of 64 has couplings of its own, and their velocities scatter around the exact ones.
    np.testing.assert_allclose(np.ravel(found), exact.ravel(), atol=0.12)


@pytest.mark.end_to_end
@pytest.mark.parametrize("solver", ["tsit5", "euler"])
def test_a_gaussian_target_has_the_known_density_which_integrates_to_one(gaussian_flow, solver):
    network, params = gaussian_flow
    integrator = Integrator("tsit5", rtol=1e-6, atol=1e-6) if solver == "tsit5" else Integrator(solver, num_steps=10)
    near, wide = np.linspace(MEAN - 1.5 * STD, MEAN + 1.5 * STD, 9), np.linspace(-2.0, 6.0, 161)
    x = jnp.asarray(np.concatenate([near, wide])[:, None], jnp.float32)
    found = np.asarray(pj.models.log_density(network, params, x, integrator))
    np.testing.assert_allclose(found[:9], scipy.stats.norm.logpdf(near, MEAN, STD), atol=0.12)
    if solver == "tsit5":  # Euler's steps change the density
        np.testing.assert_allclose(np.trapezoid(np.exp(found[9:]), wide), 1.0, atol=2e-3)
    noise = jax.random.normal(jax.random.key(7), (4000, 1), jnp.float32)
    samples = np.asarray(pj.models.integrate(network, params, noise, integrator))
    assert abs(samples.mean() - MEAN) < 0.06
    assert abs(samples.std() - STD) < 0.05


def test_average_follows_the_stated_decay(rng):
    """Three steps, replayed from the parameters that each left behind."""
    network = pj.models.dense_field(1, width=4, depth=1)
    training = FlowTraining(num_steps=1, batch_size=8, average=0.5)
    data = jnp.asarray(rng.normal(size=(16, 1)), jnp.float32)
    state = start_training(training, network.init(jax.random.key(0)))
    expected = state.params
    for step in range(3):
        state, _ = train(network, training, jax.random.key(step), state, data)
        keep = min(0.5, (1 + step) / (10 + step))
        expected = jax.tree.map(lambda a, p, k=keep: (k * a + (1 - k) * p).astype(a.dtype), expected, state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), state.average, expected)


def test_learning_rate_rises_and_falls():
    """Adam's first steps have the length of the rate, whatever the gradient."""
    network = pj.models.dense_field(1, width=2, depth=1)
    training = FlowTraining(num_steps=1, batch_size=4, learning_rate=1e-2, warm_up=4, decay=8)
    state = start_training(training, network.init(jax.random.key(0)))
    data = jnp.full((4, 1), 30.0, jnp.float32)  # far away, so that gradients keep their signs
    moves = []
    for step in range(9):
        before = state.params
        state, _ = train(network, training, jax.random.key(step), state, data)
        moves.append(float(jnp.abs(jax.tree.leaves(state.params)[0] - jax.tree.leaves(before)[0]).max()))
    expected = [1e-2 * min(1, (s + 1) / 4) * 0.5 * (1 + np.cos(np.pi * s / 8)) for s in range(9)]
    np.testing.assert_allclose(moves[:2], expected[:2], rtol=0.05)
    assert np.argmax(moves) in (2, 3, 4) and moves[8] < 1e-6


def test_weights_choose_the_samples():
    """Samples without weight are never trained on: their value would make the loss infinite."""
    network = pj.models.dense_field(1, width=4, depth=1)
    training = FlowTraining(num_steps=4, batch_size=8)
    data = jnp.array([[0.5], [np.inf], [0.1]], jnp.float32)
    state = start_training(training, network.init(jax.random.key(0)))
    _, info = train(network, training, jax.random.key(1), state, data, jnp.array([1.0, 0.0, 2.0]))
    assert jnp.isfinite(info.loss)
    _, info = train(network, training, jax.random.key(1), state, data)
    assert not jnp.isfinite(info.loss)


def test_bytes_are_images():
    network = pj.models.dense_field(3, width=4, depth=1)
    training = FlowTraining(num_steps=1, batch_size=2)
    images = np.random.default_rng(0).integers(0, 256, (4, 3)).astype(np.uint8)
    state = start_training(training, network.init(jax.random.key(0)))
    step = lambda data: train(network, training, jax.random.key(1), state, data)[1].loss  # noqa: E731
    np.testing.assert_allclose(step(jnp.asarray(images)), step(pj.data.to_signed(jnp.asarray(images))), rtol=1e-6)


def test_images_are_mirrored_half_of_the_time():
    """A step on one lopsided image: without flipping all paths end in it, with it in its mirror image as often."""
    # A velocity of zero, so that the loss is E u^2.
    still = Network(
        Partial(lambda key: jnp.zeros((), jnp.float32)), Partial(lambda params, time, x, key: params * x), (8, 8, 3)
    )
    image = jnp.zeros((1, 8, 8, 3), jnp.float32).at[:, :, :4].set(1.0)
    state = start_training(FlowTraining(), still.init(jax.random.key(0)))
    seen = []
    for flip in (False, True):
        training = FlowTraining(num_steps=1, batch_size=64, coupling="exact", flip=flip)
        _, info = train(still, training, jax.random.key(1), state, image)
        seen.append(float(info.loss))
    # With two kinds of images a coupling can choose the nearer one, which makes the paths shorter.
    assert seen[1] < seen[0] - 0.005


@pytest.mark.end_to_end
def test_retraining_loop_takes_a_flow(rng):
    """A flow is a `Model` as any other: one preference moves it, another number compiles nothing."""
    training = FlowTraining(num_steps=30, batch_size=16, learning_rate=1e-2, average=0.9)
    model = pj.models.flow(pj.models.dense_field(1, 16, 2), training, integrator=Integrator("euler", num_steps=4))
    reward = pj.rewards.quadratic(centers=[[-3.0], [3.0]], gamma=0.5)
    make = lambda phi: pj.retraining.loop(model, reward, phi, num_candidates=64, num_curated=32)  # noqa: E731
    key = jax.random.key(int(rng.integers(2**31)))
    ends = []
    for phi in ([1.0, 0.0], [0.0, 1.0]):
        process = make(phi)
        state = process.init(jax.random.key(0))
        ends.append(pj.run(process, state, num_steps=6, key=key)[1].reward_mean[-1])
    assert ends[0][0] > ends[0][1] + 3 and ends[1][1] > ends[1][0] + 3


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: FlowTraining(num_steps=0), "num_steps must be"),
        (lambda: FlowTraining(coupling="sinkhorn"), "coupling must be 'exact' or 'independent', got 'sinkhorn'"),
        (lambda: FlowTraining(average=1.0), "average must be one number that is not negative and below 1, got 1"),
        (lambda: FlowTraining(learning_rate=-1.0), "learning_rate must be one number that is not negative"),
        (lambda: Integrator("rk4"), "solver must be one of euler, midpoint, heun, tsit5, dopri5, got 'rk4'"),
        (lambda: Integrator("euler"), "num_steps must be given for the solver 'euler'"),
        (lambda: Integrator(rtol=0.0), "rtol must be positive"),
        (lambda: pj.models.unet("huge"), "config must be a UNetConfig or one of tiny, 0.5M"),
        (lambda: pj.models.UNetConfig(size=30), "size must be a multiple of 8"),
        (lambda: pj.models.UNetConfig(heads=3), "heads must divide channels"),
        (lambda: pj.models.UNetConfig(dtype="float16"), "dtype must be 'float32' or 'bfloat16'"),
        (
            lambda: pj.models.pretraining(pj.models.unet("tiny"), FlowTraining(), np.zeros((4, 3))),
            "samples must have shape",
        ),
        (lambda: pj.models.flow(pj.models.unet("tiny"), FlowTraining(), pretrained={}), "pretrained must hold"),
        (lambda: pj.models.flow(pj.models.unet("tiny"), FlowTraining(), bounds=(1, -1)), "bounds must be"),
    ],
)
def test_refusals(make, says):
    with pytest.raises(ValueError, match=says):
        make()
