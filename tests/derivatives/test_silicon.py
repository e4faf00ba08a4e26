"""Silicon of Stillinger and Weber: lattice constant, elastic constants and their total derivatives, against matscipy.

The independent side relaxes the lattice constant itself and takes central differences of everything (Richardson's).
"""

import jax
import numpy as np
import pytest
import scipy.optimize
from ase.build import bulk

import mdsens as ms
from mdsens.common.units import EV_PER_CUBIC_ANGSTROM
from mdsens.observables import elastic_constants, lattice_constants
from mdsens.potentials.base import parameter_paths

NAMES = ("epsilon", "sigma", "a", "lam", "gamma", "costheta0", "A", "B")
FLOOR = 1e-6
"""On the scale θ d/dθ, relative to the quantity itself."""


@pytest.fixture(scope="module")
def crystal(silicon):
    # Through equilibrium the primitive cell has every symmetry; it says the same as the cubic one with fewer unknowns.
    return ms.relax(ms.System.from_ase(bulk("Si", cubic=True)), silicon, cell="free", fmax=1e-12)


def quantities(system, potential):
    C = elastic_constants(system, potential)
    clamped = elastic_constants(system, potential, relaxed=False)
    return jax.numpy.stack([lattice_constants(system, potential)[0], C[0, 0], C[0, 1], C[3, 3], clamped[3, 3]])


@pytest.fixture(scope="module")
def derived(crystal):
    return ms.value_and_jacobian(quantities, crystal)


def by_matscipy(potential):
    """The same numbers: the lattice constant where matscipy's stress vanishes, and its elastic constants there."""
    manybody = pytest.importorskip("matscipy.calculators.manybody", reason="matscipy is not installed (pip install matscipy)")
    elasticity = pytest.importorskip("matscipy.elasticity")
    theta = {name: float(getattr(potential, name)) for name in NAMES}
    form = manybody.StillingerWeber(
        {
            "__ref__": "",
            "el": "Si",
            "lambda1": theta.pop("lam"),
            "p": potential.p,
            "costheta0": -theta.pop("costheta0"),  # matscipy adds it to the cosine
            **theta,
        }
    )

    def crystal(a):
        atoms = bulk("Si", cubic=True, a=a)
        atoms.calc = manybody.Manybody(**form)
        return atoms

    a = scipy.optimize.brentq(lambda a: crystal(a).get_stress()[:3].sum(), 5.3, 5.6, xtol=1e-14, rtol=1e-15)
    atoms = crystal(a)
    # With the whole spectrum, since conjugate gradients do not get to 1e-13 in a crystal of such symmetry.
    values, vectors = np.linalg.eigh(atoms.calc.get_property("hessian", atoms).toarray())
    spectrum = {"eigenvalues": values[3:], "eigenvectors": vectors[:, 3:]}
    born = EV_PER_CUBIC_ANGSTROM * atoms.calc.get_property("born_constants", atoms)
    whole = born + EV_PER_CUBIC_ANGSTROM * elasticity.nonaffine_elastic_contribution(atoms, **spectrum)
    return np.array([a, whole[0, 0, 0, 0], whole[0, 0, 1, 1], whole[1, 2, 1, 2], born[1, 2, 1, 2]])


def test_values(derived, silicon):
    value, _ = derived
    np.testing.assert_allclose(value, by_matscipy(silicon), rtol=1e-9)
    np.testing.assert_allclose(value, [5.43095, 151.42, 76.42, 56.45, 109.76], rtol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_total_derivatives(derived, silicon, name):
    value, J = derived
    theta = float(getattr(silicon, name))
    step = 1e-4 * theta
    leaves, structure = jax.tree.flatten(silicon)
    k = parameter_paths(silicon).index(name)

    def at(change):
        return by_matscipy(jax.tree.unflatten(structure, [leaf + change * (m == k) for m, leaf in enumerate(leaves)]))

    values = {m: at(m * step) for m in (-2, -1, 1, 2)}
    difference = (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * step)
    error = np.abs(theta * (np.asarray(getattr(J, name)) - difference)) / np.abs(value)
    assert error.max() < FLOOR, error


def test_scaling_identities(derived, silicon):
    """a ∝ σ, C ∝ ε/σ³."""
    value, J = derived
    np.testing.assert_allclose(silicon.sigma * J.sigma, np.array([1, -3, -3, -3, -3]) * value, rtol=1e-9)
    np.testing.assert_allclose(silicon.epsilon * J.epsilon, np.array([0, 1, 1, 1, 1]) * value, rtol=1e-9, atol=1e-9)
