"""What two devices of one machine share, in a process of its own that has two: flows, classifiers, limits."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import traceback

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

import plural_jax as pj
from plural_jax.experiments import image_presets, images, phase
from plural_jax.models import classifiers
from plural_jax.models.flow_training import start_training, train
from tests.test_classifier_training import RECIPE, stripes

pytestmark = pytest.mark.end_to_end


def a_flow(mesh):
    """Two devices give the numbers of one, up to the order of sums."""
    network = pj.models.dense_field(2, width=8, depth=1)
    training = pj.models.FlowTraining(num_steps=4, batch_size=8, learning_rate=1e-2)
    data = jax.random.normal(jax.random.key(3), (32, 2))
    state = start_training(training, network.init(jax.random.key(0)))
    alone, shared = (
        jax.jit(lambda s, d, m=m: train(network, training, jax.random.key(1), s, d, mesh=m))(state, data)[0]
        for m in (None, mesh)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), alone.params, shared.params)
    assert len(jax.tree.leaves(shared.params)[0].sharding.device_set) == 2
    euler = pj.models.Integrator("euler", num_steps=3)
    samples = [
        pj.models.flow(network, training, integrator=euler, batch_size=4, mesh=m).sample(
            jax.random.key(5), alone.params, 7
        )
        for m in (None, mesh)
    ]
    np.testing.assert_allclose(*samples, rtol=1e-5, atol=1e-6)


def an_image_flow(mesh):
    """Convolutions and attention too; a sum over host devices for each of many arrays once made them wait for ever."""
    sizes = {"size": 4, "channels": 4, "multipliers": (1,), "blocks": 1, "attention": (4,), "heads": 2}
    # What is dropped would differ between devices.
    network = pj.models.unet(pj.models.UNetConfig(**sizes, dropout=0.0))
    training = pj.models.FlowTraining(num_steps=8, batch_size=8, learning_rate=1e-2)
    data = jax.random.normal(jax.random.key(3), (8, 4, 4, 3))
    state = start_training(training, network.init(jax.random.key(0)))
    alone, shared = (
        jax.jit(lambda s, d, m=m: train(network, training, jax.random.key(1), s, d, mesh=m))(state, data)
        for m in (None, mesh)
    )
    np.testing.assert_allclose(alone[1].loss, shared[1].loss, rtol=1e-4)
    np.testing.assert_allclose(alone[1].gradient_norm, shared[1].gradient_norm, rtol=1e-3)
    # Adam makes steps of the same length from gradients near zero, which rounding decides.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-3), alone[0].params, shared[0].params)


def presets(mesh):
    """Host devices share what keeps them busy in fixed steps; for a tiny network one compiles sooner."""
    assert images.mesh_of(image_presets.PRESETS["tiny"]) is None
    assert images.mesh_of(image_presets.PRESETS["cpu"]) == mesh
    assert images.mesh_of(image_presets.PRESETS["paper"]) is None


def a_classifier(mesh):
    """The same numbers up to the order of sums."""
    recipe = dataclasses.replace(RECIPE, epochs=1)
    images, labels = stripes(1, 64)
    found = [classifiers.train_classifier(images, labels, recipe, key=jax.random.key(3), mesh=m) for m in (None, mesh)]
    assert len(found[1][1].loss.devices()) == 2, found[1][1].loss.devices()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), *found)


def limits(mesh):
    """Batched LAPACK calls of two host devices once waited for each other, forever, in the threads of both."""
    ds = phase.run(phase.Config(num_preferences=(5.0,), distance=(1.0, 2.0), num=31))
    # Distance 2 is the transition, where Newton's method off the grid may say that it fell short.
    assert ds.gap.max() < 1e-5, ds.gap
    assert ds.sel(distance=1.0).converged.all(), ds.converged


CASES = {case.__name__: case for case in (a_flow, an_image_flow, presets, a_classifier, limits)}


def main():
    """Try every case; the last line says, as JSON, which failed and how."""
    jax.config.update("jax_num_cpu_devices", 2)
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))
    failed = {}
    for name, case in CASES.items():
        try:
            case(mesh)
        except Exception:
            failed[name] = traceback.format_exc()
    print(json.dumps(failed))


@pytest.fixture(scope="module")
def failed():
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    words = [sys.executable, "-c", "from tests.test_two_devices import main; main()"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=root, timeout=600)
    assert done.returncode == 0, done.stderr[-1000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", CASES)
def test_two_devices_agree_with_one(failed, name):
    assert name not in failed, failed[name]
