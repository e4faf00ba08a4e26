"""L-BFGS by NumPy takes the steps of the compiled one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdsens.solvers import LBFGS, Problem, Status, solve
from mdsens.solvers.host_lbfgs import Point, minimise_on_host


def valley(z):
    """Rosenbrock's function in six dimensions."""
    return jnp.sum(100.0 * (z[1:] - z[:-1] ** 2) ** 2 + (1.0 - z[:-1]) ** 2)


def plateau(z):
    """Flat far away, where curvatures are negative."""
    return jnp.sum(-jnp.exp(-0.5 * z**2) + 1e-3 * z**4)


def cliff(z):
    """Without a value beyond 2."""
    return jnp.sum(jnp.where(z < 2.0, 0.1 * (z - 1.9) ** 2 - jnp.log(jnp.where(z < 2.0, 2.0 - z, 1.0)), jnp.nan))


PATHS = {
    "a valley": (valley, [-1.2, 1.0, 0.5, -0.3, 2.0, 0.0], LBFGS(max_step=None)),
    "short steps": (valley, [-1.2, 1.0, 0.5, -0.3, 2.0, 0.0], LBFGS(max_step=0.05, memory=3)),
    "negative curvatures": (plateau, [2.5, -3.0, 1.2], LBFGS(max_step=0.5, first_step=0.1)),
    "a cliff": (cliff, [-3.0, 0.0, 1.5], LBFGS(max_step=None, first_step=3.0)),
}


@pytest.mark.parametrize("limit", [1, 7, 1000])
@pytest.mark.parametrize("path", PATHS)
def test_both_take_the_same_steps(path, limit):
    function, start, solver = PATHS[path]
    slope = jax.jit(jax.grad(function))

    def at(z):
        gradient = np.asarray(slope(z))
        return Point(z, gradient, np.abs(gradient).max())

    seen = []
    found = minimise_on_host(
        solver, at, at(np.array(start)), tolerance=1e-9, max_steps=limit, watch=lambda point, steps: seen.append(steps)
    )
    problem = Problem(lambda z, _: slope(z), kind="gradient")
    expected = solve(problem, solver, jnp.asarray(start), None, tolerance=1e-9, max_steps=limit)
    assert found.status is expected.status is (Status.CONVERGED if limit == 1000 else Status.MAX_STEPS)
    assert seen == list(range(found.steps + 1))
    # Rounding grows from step to step.
    assert abs(found.steps - expected.steps) <= (2 if limit == 1000 else 0)
    np.testing.assert_allclose(found.point.z, expected.z, rtol=0.0, atol=1e-8)


def test_what_has_no_end_stalls_and_what_is_not_finite_says_so():
    nothing = lambda z: Point(z, np.full(z.shape, np.nan), np.inf)  # noqa: E731
    options = {"tolerance": 1e-9, "max_steps": 50, "watch": lambda point, steps: None}
    assert minimise_on_host(LBFGS(), nothing, nothing(np.ones(3)), **options).status is Status.NOT_FINITE
    # A slope that no step lowers.
    wall = lambda z: Point(z, np.where(z == 1.0, 1.0, -np.inf), 1.0)  # noqa: E731
    end = minimise_on_host(LBFGS(), wall, wall(np.ones(3)), **options)
    assert end.status is Status.STALLED and end.steps == 1
