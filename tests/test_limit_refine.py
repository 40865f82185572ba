"""The exact limit off the grid, its derivatives, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import plural_jax as pj

GRID = pj.Grid.uniform(-4.0, 4.0, 161)
TRACES = []


@jax.jit
@jax.vmap
def refined(phi, distance, gamma, temperature):
    TRACES.append(phi.shape)
    land = pj.Landscape.on(GRID, pj.rewards.quadratic(jnp.stack([-distance / 2, distance / 2]), gamma))
    weights = jnp.stack([phi, 1 - phi])
    on_grid = pj.density.solve_limit(land, weights, temperature=temperature)
    return on_grid, pj.density.solve_limit(land, weights, temperature=temperature, refine=True)


def batch(*rows):
    return tuple(jnp.asarray(column) for column in zip(*rows, strict=True))


def test_one_mode_becomes_two_at_the_stated_distance(rng):
    gamma, temperature = rng.uniform(0.5, 1.5, 3), rng.uniform(0.5, 1.5, 3)
    d = np.asarray(
        [float(pj.theory.transition_distance(g, temperature=t)) for g, t in zip(gamma, temperature, strict=True)]
    )
    np.testing.assert_allclose(d, np.sqrt(2 * temperature / gamma), rtol=1e-12)
    for factor, modes in ((0.99, 1), (1.01, 2)):
        on_grid, limit = refined(
            *batch(*((0.5, factor * x, g, t) for x, g, t in zip(d, gamma, temperature, strict=True)))
        )
        assert limit.converged.all() and (limit.gap <= 1e-10).all()
        assert (np.sum(limit.weights > 0, axis=1) == modes).all()
        assert (limit.objective >= on_grid.objective - 1e-14).all()
    assert len(TRACES) == 1  # numbers change, nothing compiles again


def test_modes_satisfy_the_likelihood_equations(rng):
    """Atoms of quadratic rewards are those of the most likely Gaussian location mixture: EM's fixed point, in NumPy."""
    phi, d = rng.uniform(0.3, 0.7, 3), rng.uniform(3.0, 5.0, 3)
    on_grid, limit = refined(*batch(*((p, x, 0.6, 1.2) for p, x in zip(phi, d, strict=True))))
    for b in range(3):
        share, centers = np.array([phi[b], 1 - phi[b]]), np.array([-d[b] / 2, d[b] / 2])
        w, x = np.asarray(limit.weights[b]), np.asarray(limit.points[b, :, 0])
        near = w * np.exp(-0.5 * (centers[:, None] - x) ** 2)
        near = share[:, None] * near / near.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(near.sum(axis=0), w, atol=1e-10)
        np.testing.assert_allclose(centers @ near / near.sum(axis=0), x, atol=1e-9)
        # slot by slot the grid atom next to the moved one
        np.testing.assert_allclose(np.asarray(GRID.points)[limit.support[b], 0], x, atol=0.03)
    assert (limit.objective > on_grid.objective).all()


@pytest.mark.parametrize("refine", [False, True])
def test_derivatives_against_finite_differences(rng, refine):
    names = ("points", "weights", "log_z") if refine else ("weights", "log_z")

    @jax.jit
    def numbers(v):
        phi, distance, gamma = v
        land = pj.Landscape.on(GRID, pj.rewards.quadratic(jnp.stack([-distance / 2, distance / 2]), gamma))
        limit = pj.density.solve_limit(land, jnp.stack([phi, 1 - phi]), refine=refine)
        return jnp.concatenate([getattr(limit, name).ravel() for name in names])

    v = jnp.asarray([rng.uniform(0.3, 0.7), rng.uniform(3.0, 4.0), rng.uniform(0.5, 0.8)])
    step = 1e-6
    differences = np.stack([(numbers(v + e) - numbers(v - e)) / (2 * step) for e in step * np.eye(3)], axis=1)
    jacobian = jax.jit(jax.jacrev(numbers))(v)
    np.testing.assert_allclose(jacobian, differences, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"phi": [0.5, 0.6]}, "phi must sum to 1"),
        ({"phi": [0.5, 0.5], "temperature": 0.0}, "temperature must be positive, got 0.0"),
        ({"phi": [0.5, 0.5], "initial": [-np.inf] * 3}, "initial holds no mass"),
        ({"phi": [0.5, 0.5], "refine": True}, "refine=True needs a landscape made by Landscape.on"),
    ],
)
def test_bad_input(arguments, message):
    land = pj.Landscape(rewards=[[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]])
    with pytest.raises(ValueError, match=message):
        pj.density.solve_limit(land, **arguments)
