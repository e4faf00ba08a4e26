"""Every shipped potential keeps the contract, and potentials that don't are found out, with the reason."""

import pathlib
import re

import jax.numpy as jnp
import pytest
from ase.build import bulk

import mdsens as ms
from mdsens.potentials import SHIPPED
from mdsens.testing import EXAMPLES, ContractError, check_potential

QUICK = ("LennardJones", "Buckingham")
"""Others take up to twenty seconds to compile."""

# Bonds name atoms by their numbers, so that a permutation changes them; test_pairs holds them against LAMMPS's.
CONTRACTED = [name for name in SHIPPED if name != "HarmonicBonds"]


def test_every_shipped_potential_has_an_example():
    missing = [name for name in SHIPPED if name not in EXAMPLES]
    assert not missing, f"add a builder for {', '.join(missing)} to mdsens/testing/examples.py"


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CONTRACTED])
def test_shipped_potentials_keep_the_contract(name):
    report = check_potential(*EXAMPLES[name]())
    assert len(report.findings) >= 17 and "parameters" in str(report)


class Cut(ms.PairPotential):
    """Says that it is smooth, but its force jumps at the cutoff."""

    depth: float
    cutoff: float = ms.static(1.9)

    @property
    def smoothness(self):
        return 1

    def pair_energy(self, r, i, j):
        return self.depth * (r - self.cutoff)


class Lopsided(ms.PairPotential):
    """Sees the pair i, j otherwise than j, i, and its angle with the x axis: asymmetric, and float64 inside."""

    depth: float
    cutoff: float = ms.static(1.9)
    onset: float = ms.static(1.5)

    def pair_energy(self, r, i, j):
        return self.depth * jnp.where(i.index < j.index, 1.0, 1.2) * (r - 1.1) ** 2


class Undefined(ms.PairPotential):
    """Its second derivative is NaN wherever a pair is beyond 1.2, though its value is not."""

    depth: float
    cutoff: float = ms.static(1.9)
    onset: float = ms.static(1.5)

    def pair_energy(self, r, i, j):
        return self.depth * jnp.where(r < 1.2, jnp.sqrt(1.2 - r), 0.0) ** 4


class Forgetful(ms.LennardJones):
    """Gives half of the stiffness that its energy has."""

    def local_stiffness(self, system):
        import jax

        return jax.tree.map(lambda leaf: 0.5 * leaf, super().local_stiffness(system))


@pytest.fixture(scope="module")
def argon():
    atoms = bulk("Ar", "fcc", a=1.52, cubic=True)
    del atoms[1]
    return ms.System(atoms.positions, cell=atoms.cell.array * 1.3, pbc=True)


BROKEN = {
    "wrong smoothness": (Cut(depth=1.0), ["smoothness promises 1", "force jumps"]),
    "an asymmetric pair": (Lopsided(depth=1.0), ["order of the atoms"]),
    "no second derivative": (Undefined(depth=1.0), ["not finite", "jnp.where"]),
    "another stiffness": (Forgetful(epsilon=1.0, sigma=1.0, cutoff=1.9, onset=1.5), ["local_stiffness"]),
}


@pytest.mark.parametrize(("potential", "words"), BROKEN.values(), ids=BROKEN)
def test_a_broken_potential_is_found_out(potential, words, argon):
    with pytest.raises(ContractError) as error:
        check_potential(potential, argon)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert isinstance(error.value, AssertionError) and error.value.violations
    assert all(sentence.endswith(".") for sentence in error.value.violations)


@pytest.mark.slow
def test_the_examples_of_the_page_on_own_potentials_keep_the_contract():
    page = (pathlib.Path(__file__).parents[2] / "docs" / "howto" / "own_potential.md").read_text()
    pairs, sites, *_ = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    shown = {}
    exec(pairs + sites, shown)
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.05, seed=1)
    check_potential(shown["Angular"](k=2.0), ms.System.from_ase(atoms))
