"""What is compiled: few programs, which structures of about the same size share, filled up with atoms that change nothing."""

import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk

import mdsens as ms
from mdsens.mechanics import programs
from mdsens.mechanics.programs import can_fill, energy_and_slopes, fill_up
from mdsens.potentials.electrostatics import ChargeEquilibration, WithCharges
from mdsens.testing.examples import EXAMPLES

WITH_POTENTIAL = {"_energy_and_slopes", "_second_derivatives", "_slopes_along", "_chunk"}


class Compilations(logging.Handler):
    """The names of the programs that JAX compiles."""

    def __init__(self):
        super().__init__(logging.DEBUG)
        self.names = []

    def emit(self, record):
        self.names += re.findall(r"Compiling (?:jit\()?([\w<>]+)", record.getMessage())


@pytest.fixture
def compiled():
    logger, handler = logging.getLogger("jax"), Compilations()
    level, propagates = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    jax.clear_caches()
    with jax.log_compiles():
        yield handler.names
    logger.propagate = propagates
    logger.setLevel(level)
    logger.removeHandler(handler)


def defect(missing, rattle, seed=1):
    atoms = bulk("Si", cubic=True) * 2
    del atoms[list(missing)]
    atoms.rattle(rattle, seed=seed)
    return ms.System.from_ase(atoms)


def far(system, potential):
    return jnp.sum((system.positions[3] - system.positions[9]) ** 2)


def differentiate(system, potential):
    eq = ms.relax(system, potential)
    assert ms.sensitivity(eq).certificate.trusted
    return ms.value_and_gradient(far, eq)[1]


@pytest.mark.parametrize("rattle", [0.02, 0.1])
def test_few_programs_are_compiled_and_a_similar_structure_finds_them(silicon, compiled, rattle):
    differentiate(defect([0], rattle), silicon)
    assert len(compiled) <= 12, compiled
    assert len(WITH_POTENTIAL & set(compiled)) == len([name for name in compiled if name in WITH_POTENTIAL]) <= 4, compiled
    compiled.clear()
    differentiate(defect([0, 31], rattle, seed=2), silicon)
    # What is left is the observable's own, and cuts of arrays.
    assert not WITH_POTENTIAL & set(compiled), compiled
    assert len(compiled) <= 4, compiled


class Lonely(ms.SitePotential):
    """A site that is alone has an energy, by a parameter."""

    depth: float
    cutoff: float = ms.static(3.0)

    def site_energy(self, d, i, j, mask):
        r = jnp.linalg.norm(d, axis=-1)
        return self.depth * jnp.exp(-jnp.sum(jnp.where(mask, (self.cutoff - r) ** 3, 0.0)))


@pytest.mark.parametrize("potential", [ms.StillingerWeber.silicon(), Lonely(depth=-2.0)])
def test_atoms_that_fill_up_a_structure_change_nothing(potential):
    system = defect([0, 5, 7], 0.1).with_neighbors(potential)
    whole = fill_up(system, potential)
    assert len(whole) == 64 and len(system) == 61
    found = energy_and_slopes(system, potential, deforms=True)
    assert found.energy == pytest.approx(float(potential.energy(system)), rel=1e-13)
    np.testing.assert_allclose(-found.positions, potential.forces(system), rtol=0.0, atol=1e-12)
    volume = float(system.volume)
    stress = np.asarray(found.deformation) / volume * 160.21766
    np.testing.assert_allclose(stress[[0, 1, 2], [0, 1, 2]], potential.stress(system)[:3], rtol=1e-6)


class Own(ms.StillingerWeber):
    """An energy of the user's own, which might see any atom."""

    def total(self, system):
        return super().total(system) + 0.01 * jnp.sum(system.positions**2) / len(system)


@pytest.mark.parametrize("name", EXAMPLES)
def test_programs_give_the_energy_of_every_potential(name):
    potential, system = EXAMPLES[name]()
    system = system.with_neighbors(potential)
    expected = float(potential.energy(system))
    assert energy_and_slopes(system, potential, deforms=False).energy == pytest.approx(expected, rel=1e-12)


def test_energies_that_could_see_further_atoms_are_left_alone(silicon):
    system = defect([0], 0.1).with_neighbors(silicon)
    own = Own(**silicon.parameters(), p=silicon.p, q=silicon.q)
    assert can_fill(system, silicon) and not can_fill(system, own)
    spheres = ms.SoftSphere(diameter=np.full(len(system), 2.3), epsilon=1.0, alpha=2.0)
    assert not can_fill(system.with_neighbors(spheres), spheres)
    # Charges know of each other beyond the list.
    charges = ChargeEquilibration(electronegativity={"Si": 4.0}, hardness={"Si": 10.0}, width={"Si": 0.8})
    charged = WithCharges(silicon, charges)
    assert not can_fill(system.with_neighbors(charged), charged)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 63, 64, 65, 213, 215, 216, 500, 1999])
def test_a_structure_grows_by_an_eighth_at_most(n):
    assert n <= programs.bucket(n) <= max(1.125 * n, programs.LEAST_BUCKET * -(-n // programs.LEAST_BUCKET))
    assert programs.bucket(programs.bucket(n)) == programs.bucket(n)
