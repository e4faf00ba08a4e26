"""Observables that refer to other equilibria, on clusters of two and three atoms whose energies are -ε and -3ε at any σ."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from differences import richardson
from helpers import refused

import mdsens as ms
from mdsens import studies
from mdsens.studies.input.recipes import Components

MINIMUM = 2.0 ** (1.0 / 6.0)
LJ = ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=6.0, onset=5.0)
WIDER = studies.with_values(LJ, {"sigma": 1.1, "epsilon": 2.0})
TRIANGLE = ms.System([[0.0, 0.0, 0.0], [MINIMUM, 0.0, 0.0], [MINIMUM / 2.0, 0.9, 0.1]])


@pytest.fixture(scope="module")
def triangle():
    return ms.relax(TRIANGLE, LJ, fmax=1e-12)


@pytest.fixture(scope="module")
def formation():
    """Of three atoms from pairs: -3ε + 1.5ε."""
    return ms.observables.formation_energy(ms.relax(ms.System([[0.0, 0.0, 0.0], [1.1, 0.0, 0.0]]), LJ, fmax=1e-12))


@pytest.mark.slow
def test_studies_relax_what_an_observable_refers_to(triangle, formation):
    both = {"alone": formation, "component": Components(lambda s, p: formation(s, p)[None], ((0,),))}
    both["component"] = Components(_Vector(formation), ((0,),))
    found = studies.sweep(TRIANGLE, LJ, {"sigma": [1.0, 1.1, 1.3], "epsilon": [1.0, 2.0]}, both, derivatives=True)
    assert not found.failures
    for name in both:
        np.testing.assert_allclose(np.ravel(found.column(name)), -1.5 * found.column("epsilon"), rtol=1e-10)
    order = [found.names.index(name) for name in ("epsilon", "sigma")]
    slopes = np.array([point.derivatives["alone"][order] for point in found.points])
    np.testing.assert_allclose(slopes, np.tile([-1.5, 0.0], (6, 1)), atol=1e-6)

    path = studies.continuation(triangle, {"sigma": 1.2}, observables={"E": formation})
    np.testing.assert_allclose(path.values["E"], -1.5, rtol=1e-10)
    bars = studies.uncertainty(triangle, {"E": formation}, {"epsilon": 0.1, "sigma": 0.05}, samples=4)
    assert bars.trusted and float(bars.std["E"]) == pytest.approx(0.15, rel=1e-6)
    np.testing.assert_allclose(bars.sampling.mean["E"] + 1.5, 0.0, atol=1.0)


class _Vector(eqx.Module):
    inner: object

    def __call__(self, system, potential):
        return self.inner(system, potential)[None]


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [False, True])
def test_a_fit_to_a_formation_energy_finds_its_parameter(formation, optimizer):
    import optax

    start = studies.with_values(LJ, {"sigma": 1.2})
    more = {"optimizer": optax.adam(0.05), "max_steps": 300, "tolerance": 1e-10} if optimizer else {}
    target = studies.Target(formation, -1.8, 0.01)
    fit = studies.calibrate(TRIANGLE, start, {"E": target}, wrt="epsilon", **more)
    assert fit.converged and float(fit.potential.epsilon) == pytest.approx(1.2, rel=1e-4)


@pytest.mark.slow
def test_second_derivatives_see_the_references_response(triangle, formation):
    product = ms.hessian_vector(formation, triangle, {"sigma": 1.0, "epsilon": 1.0})
    np.testing.assert_allclose([product.sigma, product.epsilon], 0.0, atol=1e-6)
    # Inside a function of one's own references cannot be found, and there is no second derivative.
    first = ms.gradient(lambda s, p: 2.0 * formation(s, p), triangle)
    np.testing.assert_allclose([first.sigma, first.epsilon], [0.0, -3.0], atol=1e-6)
    with pytest.raises(ms.MdsensError):
        ms.hessian_vector(lambda s, p: 2.0 * formation(s, p), triangle, {"sigma": 1.0})


@pytest.mark.slow
def test_another_potential_relaxes_the_references_again_or_is_refused(triangle, formation):
    again = triangle.again(WIDER)
    assert float(formation(again.system, WIDER)) == pytest.approx(-3.0, rel=1e-10)
    value, slope = ms.value_and_gradient(formation, again)
    np.testing.assert_allclose([value, slope.epsilon, slope.sigma], [-3.0, -1.5, 0.0], atol=1e-6)
    assert float(ms.jacobian(_Vector(formation), again).epsilon[0]) == pytest.approx(-1.5, rel=1e-6)
    compiled = eqx.filter_jit(lambda system, potential: formation(system, potential))
    assert float(compiled(triangle.system, LJ)) == pytest.approx(-1.5, rel=1e-10)
    assert np.isnan(compiled(again.system, WIDER))
    slope = jax.grad(lambda p: formation(triangle.system, p))(LJ)
    np.testing.assert_allclose([slope.epsilon, slope.sigma], [-1.5, 0.0], atol=1e-9)
    assert np.isnan(jax.grad(lambda p: formation(triangle.system, p))(WIDER).sigma) or not jnp.isfinite(
        formation(triangle.system, WIDER) * jnp.nan
    )


@pytest.mark.slow
def test_a_reference_under_pressure_has_a_response_of_its_own(triangle):
    """Energies of crystals under pressure are not at their minimum in the volume."""
    start = bulk("Ar", "fcc", a=1.5)
    squeezed = ms.relax(ms.System(start.positions, cell=start.cell.array, pbc=True), LJ, cell="isotropic", pressure=2000.0)
    formation = ms.observables.formation_energy(squeezed)

    def again(eq):
        reference = ms.relax(squeezed.system, eq.potential, cell="isotropic", pressure=2000.0, fmax=1e-11)
        return eq.energy - 3.0 * reference.energy

    difference = richardson(triangle, "sigma", observable=again)
    np.testing.assert_allclose(ms.gradient(formation, triangle).sigma, difference, rtol=1e-6)
    with pytest.raises(ms.MdsensError):
        ms.gradient(lambda s, p: formation(s, p), triangle)
    refused(lambda: ms.observables.formation_energy(squeezed.system), "Equilibrium")
