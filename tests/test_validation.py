"""Bad input gets one clear sentence that names the argument and its value, before anything compiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import plural_jax as pj

REWARDS = [[0.0, 1.0, 5.0], [5.0, 1.0, 0.0]]


def landscape():
    return pj.Landscape(rewards=REWARDS)


def process(**kwargs):
    return pj.density.large_pool(landscape(), **{"phi": [0.3, 0.7], **kwargs})


def sweep(**kwargs):
    def make(phi):
        return pj.density.large_pool(landscape(), phi=jnp.stack([phi, 1 - phi]))

    return pj.sweep(make, **{"phi": [0.2, 0.5], "num_steps": 2, **kwargs})


CASES = {
    "phi negative": (lambda: process(phi=[-0.1, 1.1]), r"phi must not be negative, got \[-0.1, +1.1\]"),
    "phi sum": (lambda: process(phi=[0.3, 0.3]), r"phi must sum to 1, got \[0.3, 0.3\], which sums to 0.6"),
    "phi wrong m": (
        lambda: process(phi=[0.2, 0.3, 0.5]),
        r"phi must hold one weight for each of the 2 preferences.*\(3,\)",
    ),
    "phi NaN": (lambda: process(phi=[np.nan, 1.0]), r"phi must be finite, got nan at index \(0,\)"),
    "phi text": (lambda: process(phi=["a", "b"]), r"phi must be an array of real numbers"),
    "rewards NaN": (
        lambda: pj.Landscape(rewards=[[0.0, np.nan]]),
        r"rewards must be finite, got nan at index \(0, 1\)",
    ),
    "rewards inf": (lambda: pj.Landscape(rewards=[[np.inf, 0.0]]), r"rewards must be finite, got inf"),
    "rewards flat": (lambda: pj.Landscape(rewards=[1.0, 2.0]), r"rewards must be a table.*\(2,\)"),
    "rewards ragged": (
        lambda: pj.Landscape(rewards=[[1.0], [1.0, 2.0]]),
        r"rewards must be an array.*different lengths",
    ),
    "rewards empty": (lambda: pj.Landscape(rewards=np.zeros((2, 0))), r"rewards must be a table.*\(2, 0\)"),
    "measure length": (
        lambda: pj.Landscape(rewards=REWARDS, log_measure=[0.0]),
        r"log_measure must have one.*3 atoms.*\(1,\)",
    ),
    "measure zero": (lambda: pj.Landscape(rewards=REWARDS, log_measure=[-np.inf] * 3), r"log_measure holds no mass"),
    "points": (lambda: pj.Landscape(rewards=REWARDS, points=[[0.0]]), r"points must have shape \[n, d\] with n = 3"),
    "temperature zero": (lambda: process(temperature=0.0), r"temperature must be positive, got 0"),
    "temperature vector": (lambda: process(temperature=[1.0, 2.0]), r"temperature must be a single number"),
    "eps negative": (lambda: process(eps=-1.0), r"eps must not be negative, got -1"),
    "pool size": (
        lambda: pj.density.finite_pool(landscape(), [0.3, 0.7], pool_size=1.5),
        r"pool_size must be at least 2 \(infinity is allowed\), got 1.5",
    ),
    "pool size NaN": (
        lambda: pj.density.finite_pool(landscape(), [0.3, 0.7], pool_size=np.nan),
        r"pool_size must be at least 2.*nan",
    ),
    "empty grid": (lambda: pj.Grid.uniform(0.0, 1.0, 0), r"num.*must be a whole number of at least 1, got 0"),
    "grid order": (lambda: pj.Grid.uniform(1.0, 0.0, 5), r"high must be above low, got low=1.0 and high=0.0"),
    "grid lengths": (lambda: pj.Grid.uniform([0.0, 0.0], 1.0, [3, 4, 5]), r"low, high and num must have one entry"),
    "grid ends": (lambda: pj.Grid.uniform(0.0, np.inf, 5), r"high must be finite, got inf"),
    "no mass": (lambda: process().init([-np.inf] * 3), r"log_p holds no mass: all 3 log-masses are -inf"),
    "start length": (lambda: process().init([0.0]), r"log_p must have one log-mass for each of the 3 atoms"),
    "start NaN": (lambda: process().init([0.0, np.nan, 0.0]), r"log_p must not hold NaN or \+inf, got nan at index 1"),
    "basin without mass": (
        lambda: process().init([0.0, 0.0, -np.inf]),
        r"log_p gives no initial mass to the basin of preference 0",
    ),
    "std": (
        lambda: pj.Landscape.on(pj.Grid.uniform(0.0, 1.0, 4), pj.rewards.quadratic([0.0], 1.0)).gaussian(0.0, 0.0),
        r"std must be positive, got 0",
    ),
    "gaussian without points": (lambda: landscape().gaussian(0.0, 1.0), r"gaussian needs a landscape with points"),
    "reward dimension": (
        lambda: pj.Landscape.on(pj.Grid.uniform(0.0, 1.0, 4), pj.rewards.quadratic([[0.0, 1.0]], 1.0)),
        r"centers have 2 dimension\(s\) but the points have 1",
    ),
    "reward function shape": (
        lambda: pj.Landscape.on(pj.Grid.uniform(0.0, 1.0, 4), lambda x: x[:, 0]),
        r"reward must map points.*\(4,\)",
    ),
    "reward function NaN": (
        lambda: pj.Landscape.on(pj.Grid.uniform(0.0, 1.0, 4), lambda x: x / 0),
        r"rewards must be finite",
    ),
    "gamma": (lambda: pj.rewards.quadratic([0.0], gamma=-1.0), r"gamma must not be negative, got -1"),
    "gamma count": (
        lambda: pj.rewards.quadratic([0.0], gamma=[1.0, 2.0]),
        r"gamma must be a number or one for each of the 1",
    ),
    "width": (lambda: pj.rewards.bump([0.0], 1.0, 0.0), r"width must be positive, got 0"),
    "radius": (lambda: pj.rewards.plateau([0.0], radius=-1.0), r"radius must be positive, got -1"),
    "centers": (lambda: pj.rewards.bump(np.zeros((2, 2, 2)), 1.0, 1.0), r"centers must have shape.*\(2, 2, 2\)"),
    "table shape": (
        lambda: pj.rewards.table(pj.Grid.uniform(0.0, 1.0, 3), [[1.0, 2.0]]),
        r"values must have shape \[m, 3\]",
    ),
    "table method": (
        lambda: pj.rewards.table(pj.Grid.uniform(0.0, 1.0, 2), [[1.0, 2.0]], method="cubic"),
        r"method must be 'nearest' or 'linear', got 'cubic'",
    ),
    "num_steps": (
        lambda: pj.run(process(), process().init(), 0),
        r"num_steps must be a whole number of at least 1, got 0",
    ),
    "num_steps float": (lambda: pj.run(process(), process().init(), 2.5), r"num_steps must be a whole number.*2.5"),
    "every": (
        lambda: pj.run(process(), process().init(), 10, every=3),
        r"every must divide num_steps, got every=3 and num_steps=10",
    ),
    "save": (lambda: pj.run(process(), process().init(), 10, save="all"), r"save must be 'summary'.*got 'all'"),
    "sweep no axis": (lambda: pj.sweep(lambda: process(), num_steps=2), r"sweep needs at least one axis"),
    "sweep axis NaN": (lambda: sweep(phi=[0.1, np.nan]), r"phi must not hold NaN"),
    "sweep axis shape": (lambda: sweep(phi=0.5), r"phi must be a flat sequence"),
    "sweep axis empty": (lambda: sweep(phi=[]), r"phi must be a flat sequence of at least one"),
    "sweep axis name": (
        lambda: pj.sweep(lambda step: process(), step=[1.0], num_steps=2),
        r"'step' cannot be the name of an axis",
    ),
    "sweep bad value": (lambda: sweep(phi=[0.1, 1.5, 0.5]), r"phi must not be negative.*in the configuration phi=1.5"),
    "sweep make": (lambda: pj.sweep(lambda phi: 3, phi=[0.1], num_steps=2), r"make must return a Process.*int"),
    "sweep batch": (lambda: sweep(batch_size=0), r"batch_size must be a whole number of at least 1, got 0"),
    "experiment": (
        lambda: __import__("plural_jax.experiments", fromlist=["x"]).get("e99"),
        r"unknown experiment 'e99'",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_sentence(case):
    call, pattern = CASES[case]
    with pytest.raises(ValueError, match=pattern) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_nothing_compiles_before_the_sentence():
    """Refusing a sweep must not trace `make` into a compiled function first."""
    seen = []

    def make(phi):
        seen.append(isinstance(phi, jax.core.Tracer))
        return pj.density.large_pool(landscape(), phi=jnp.stack([phi, 1 - phi]))

    with pytest.raises(ValueError, match="phi must not be negative"):
        pj.sweep(make, phi=[0.5, 2.0], num_steps=2)
    assert seen and not any(seen)


def test_tracers_pass_unread():
    def weight(phi, temperature):
        built = pj.density.large_pool(landscape(), phi=jnp.stack([phi, 1 - phi]), temperature=temperature)
        return pj.run(built, built.init(landscape().uniform()), 3)[1].basin_mass

    assert np.isfinite(jax.jit(weight)(0.4, 2.0)).all()


def test_accepts_lists_numpy_and_jax():
    made = [process(phi=phi) for phi in ([0.3, 0.7], np.array([0.3, 0.7]), jnp.array([0.3, 0.7]), (0.3, 0.7))]
    for other in made[1:]:
        np.testing.assert_array_equal(made[0].init().log_w, other.init().log_w)
