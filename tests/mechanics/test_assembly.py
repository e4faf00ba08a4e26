"""Forces, slopes by parameters and Hessians as NumPy's algebra, against JAX's derivatives of the energy itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from jax.flatten_util import ravel_pytree

import mdsens as ms
from mdsens.common.modules import with_fields
from mdsens.common.voigt import unit_strains
from mdsens.equilibrium import descent
from mdsens.mechanics.assembly import assemble
from mdsens.mechanics.evaluation import evaluate, slopes_by_parameters, slopes_of_work
from mdsens.mechanics.forces import gradient
from mdsens.mechanics.hessian_operator import stored_operator
from mdsens.mechanics.landscape import Landscape
from mdsens.mechanics.programs import second_derivatives, second_derivatives_along, traced_slopes
from mdsens.mechanics.strain_algebra import StoredState, slopes_along_motion, strain_form, strain_form_along
from mdsens.mechanics.strained_bonds import stored_derivatives
from mdsens.mechanics.strained_bonds import strain_form as jax_strain_form
from mdsens.mechanics.unknown import Unknown, cell_freedom, reference_at
from mdsens.potentials.base import total_energy

STRESS = [1.0, 2.0, 3.0, 0.1, 0.2, 0.3]


class Glue(ms.EmbeddedPotential):
    """An embedding that does not vanish for an atom that is alone."""

    strength: float
    width: float
    cutoff: float = ms.static(5.0)

    def pair_energy(self, r, i, j):
        return (self.cutoff - r) ** 3 / r

    def density(self, r, i, j):
        return self.strength * jnp.exp(-r / self.width) * (self.cutoff - r) ** 3

    def embedding(self, rho, i):
        return -self.width * jnp.sqrt(rho + 0.1)


def by_pair(value):
    return {"Ar-Ar": value, "Ar-Kr": 1.1 * value, "Kr-Kr": 1.3 * value}


def argon():
    atoms = bulk("Ar", "fcc", a=5.2, cubic=True)
    atoms.set_chemical_symbols(["Ar", "Ar", "Kr", "Ar"])
    return atoms


LONG = ms.LennardJones(epsilon=by_pair(0.01), sigma=by_pair(3.4), cutoff=8.5)
CASES = {
    "sites": (lambda: bulk("Si", cubic=True), ms.StillingerWeber.silicon()),
    "pairs": (argon, LONG),
    "embedded": (lambda: bulk("Cu", cubic=True), Glue(strength=1.0, width=1.0)),
    "a sum with two lists": (argon, LONG + ms.LennardJones(epsilon=by_pair(0.01), sigma=by_pair(3.0), cutoff=5.5)),
}


@pytest.fixture(params=CASES)
def rattled(request):
    make, potential = CASES[request.param]
    atoms = make()
    atoms.rattle(0.1, seed=1)
    return ms.System.from_ase(atoms), potential


def strained(system, potential, cell, pressure=0.0, frozen=()):
    """A state away from its reference, in strain too."""
    system = ms.System(
        system.positions,
        cell=system.cell,
        pbc=system.pbc,
        species=system.symbols,
        frozen=np.isin(np.arange(len(system)), frozen),
    )
    reference = reference_at(system.with_neighbors(potential), cell_freedom(system, cell, pressure))
    z = reference.start
    if isinstance(z, Unknown):
        z = z._replace(strain=0.1 * jnp.asarray(np.random.default_rng(0).normal(size=z.strain.shape)))
    return z, Landscape(reference, potential)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=0.0, atol=1e-13 * np.abs(b).max())


@pytest.mark.parametrize(("cell", "load"), [("fixed", 0.0), ("isotropic", 2.0), ("free", STRESS)])
def test_forces_and_their_slopes(rattled, cell, load):
    z, landscape = strained(*rattled, cell, load)
    found = evaluate(z, landscape)
    expected = gradient(z, landscape)
    for one, other in zip(jax.tree.leaves(found.residual), jax.tree.leaves(expected), strict=True):
        close(one, other)
    assert found.norm == pytest.approx(float(descent.force_norm(expected)), rel=1e-13)

    flat, unravel = ravel_pytree(landscape.potential)
    slopes = jax.jacobian(lambda theta: ravel_pytree(gradient(z, landscape._replace(potential=unravel(theta))))[0])(flat)
    close(slopes_by_parameters(z, landscape, np.eye(flat.size)), slopes.T)


@pytest.mark.parametrize(("cell", "pressure", "frozen"), [("fixed", 0.0, ()), ("fixed", 0.0, (1, 2)), ("free", 3.0, (0,))])
def test_the_matrix_of_a_hessian(rattled, cell, pressure, frozen):
    z, landscape = strained(*rattled, cell, pressure, frozen)
    flat, unravel = ravel_pytree(z)
    expected = jax.jacobian(lambda x: ravel_pytree(gradient(unravel(x), landscape))[0])(flat)
    close(assemble(z, landscape).matrix.toarray(), expected)
    # And the same as an operator, as larger systems have it, on vectors that move nothing that is frozen.
    held = np.zeros(flat.size, bool)
    held[: landscape.reference.held.size] = np.asarray(landscape.reference.held).ravel()
    vector = np.where(held, 0.0, np.random.default_rng(2).normal(size=flat.size))
    close(stored_operator(z, landscape)[0](jnp.asarray(vector)), expected @ vector)


@pytest.mark.parametrize("relaxed", [True, False])
def test_elastic_constants_by_four_roads(rattled, relaxed, monkeypatch):
    """A matrix, stored second derivatives, the same while they are traced, and derivatives of the energy alone."""
    system, potential = rattled
    if relaxed:
        system = ms.relax(system, potential, check_minimum=False).system

    def constants(system):
        return ms.observables.elastic_constants(system, potential, relaxed=relaxed)

    by_matrix = constants(system)
    monkeypatch.setattr("mdsens.mechanics.softest_modes.DENSE_LIMIT", 0)
    stored = constants(system)
    listed = system.with_neighbors(potential)
    traced = jax.jit(lambda x: constants(listed.with_positions(x)))(system.positions)
    monkeypatch.setattr("mdsens.mechanics.hessian_operator.STORED_LIMIT", 0)
    jax.clear_caches()
    by_energy = constants(system)
    for one in (by_matrix, stored, traced):
        np.testing.assert_allclose(one, by_energy, rtol=0.0, atol=1e-8 * np.abs(by_energy).max())


def test_the_form_of_displacements_and_strains_away_from_rest(rattled):
    system, potential = rattled
    system, random = system.with_neighbors(potential), np.random.default_rng(3)
    u, strains = random.normal(size=(2, *system.positions.shape)), random.normal(size=(2, 3, 3))
    strains = strains + np.swapaxes(strains, 1, 2)

    def energy(shares):
        moved = system.with_positions(system.positions + jnp.tensordot(shares, u, 1))
        return total_energy(potential, moved.deformed(jnp.eye(3) + jnp.tensordot(shares, strains, 1)))

    form = jax_strain_form(system, stored_derivatives(system, potential), jnp.asarray(u), jnp.asarray(strains))
    expected = jax.hessian(energy)(jnp.zeros(2))
    np.testing.assert_allclose(form, expected, rtol=0.0, atol=1e-12 * np.abs(expected).max())


def test_how_the_form_changes_along_everything(rattled):
    """Along positions, a cell that turns too, and all parameters; the changes of slopes as well."""
    system, potential = rattled
    system, random = system.with_neighbors(potential), np.random.default_rng(4)
    u, strains = random.normal(size=(3, *system.positions.shape)), np.asarray(unit_strains(3))[[0, 3, 5]]
    flat, unravel = ravel_pytree(potential)
    direction = unravel(flat * random.normal(size=flat.size))
    moved, turned = random.normal(size=system.positions.shape), random.normal(size=(3, 3))

    def slopes(positions, cell, potential):
        return traced_slopes(with_fields(system, positions=positions, cell=cell), potential, deforms=True)

    def form(positions, cell, potential):
        placed = with_fields(system, positions=positions, cell=cell)
        return jax_strain_form(placed, stored_derivatives(placed, potential), jnp.asarray(u), jnp.asarray(strains))

    at = system.positions, system.cell, potential
    still = jax.tree.map(jnp.zeros_like, potential)
    first, by_motion = jax.jvp(slopes, at, (jnp.asarray(moved), jnp.asarray(turned), still))
    by_everything = jax.jvp(slopes, at, (jnp.asarray(moved), jnp.asarray(turned), direction))[1]
    value, expected = jax.jvp(form, at, (jnp.asarray(moved), jnp.asarray(turned), direction))

    stiffness, neighbors = second_derivatives(system, potential)
    state = StoredState(*map(np.asarray, (system.positions, system.cell, first.positions)), stiffness)
    by_atoms, by_deformation = slopes_along_motion(state, neighbors, np.asarray(first.deformation), moved, turned)
    close(by_atoms, by_motion.positions)
    close(by_deformation, by_motion.deformation)
    stiffening = second_derivatives_along(system, potential, moved, turned, direction)
    change = StoredState(moved, turned, np.asarray(by_everything.positions), stiffening)
    close(strain_form(state, neighbors, u, strains), value)
    close(strain_form_along(state, change, neighbors, u, strains), expected)


def test_an_atom_that_is_listed_without_a_contact_has_no_part(monkeypatch):
    """A small sphere in the middle of three larger ones, within their range and touching none."""
    h = np.sqrt(0.75)
    larger = [[k + 0.5 * (row % 2), h * row] for row in range(2) for k in range(2)]
    places = 0.95 * np.array([*larger, [0.5, h / 3.0]])
    potential = ms.SoftSphere(diameter={"A": 1.0, "B": 0.05}, epsilon=1.0)
    system = ms.System(places, cell=0.95 * np.diag([2.0, 2.0 * h]), pbc=True, species=list("AAAAB"))
    matrix = assemble(system.positions, Landscape(reference_at(system.with_neighbors(potential)), potential)).matrix
    assert not np.diff(matrix.indptr)[8:].any()
    by_matrix = ms.observables.elastic_constants(system, potential)
    monkeypatch.setattr("mdsens.mechanics.softest_modes.DENSE_LIMIT", 0)
    np.testing.assert_allclose(by_matrix, ms.observables.elastic_constants(system, potential), atol=1e-9)


@pytest.mark.parametrize(("cell", "load"), [("fixed", 0.0), ("free", 2.0)])
def test_slopes_of_work_are_slopes_times_motions(rattled, cell, load):
    z, landscape = strained(*rattled, cell, load, frozen=(1,))
    flat = ravel_pytree(z)[0]
    rows = np.random.default_rng(5).normal(size=(3, flat.size))
    count = ravel_pytree(landscape.potential)[0].size
    close(slopes_of_work(z, landscape, rows), rows @ slopes_by_parameters(z, landscape, np.eye(count)).T)
