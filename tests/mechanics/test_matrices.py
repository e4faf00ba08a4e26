"""The Hessian as a matrix: against JAX's own Hessian of the energy, matscipy's, and the products that solves use."""

import itertools

import jax
import numpy as np
import pytest
import scipy.sparse
from ase.build import bulk
from ase.constraints import FixAtoms
from helpers import refused
from lammps_reference import shipped

import mdsens as ms
from mdsens.mechanics import force_constants, hessian_matrix


def rattled(atoms, noise=0.05):
    atoms.rattle(noise, seed=3)
    return atoms


def silicon():
    atoms = bulk("Si", cubic=True)
    del atoms[3]
    atoms.set_constraint(FixAtoms([0]))  # which has its rows all the same
    return ms.System.from_ase(rattled(atoms)), ms.StillingerWeber.silicon()


def copper():
    return ms.System.from_ase(rattled(bulk("Cu", cubic=True))), ms.ZhouJohnsonWadley.published("Cu")


def pairs():
    # So small a cell that an atom meets its own images.
    system = ms.System([[0.0, 0.1], [1.1, 0.9]], cell=[[2.0, 0.0], [0.4, 2.1]], pbc=True)
    return system, ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=2.5, onset=2.0)


class Squared(ms.LennardJones):
    """Says anew what its atoms' energies are, and so has no second derivatives of its own."""

    def atom_energies(self, system):
        return super().atom_energies(system) ** 2


def squared():
    system, _ = pairs()
    return system, Squared(epsilon=1.0, sigma=1.0, cutoff=2.5, onset=2.0)


CASES = {"sites": silicon, "embedded": copper, "pairs": pairs, "energies alone": squared}


@pytest.fixture(params=CASES, scope="module")
def case(request):
    return CASES[request.param]()


def reference(system, potential):
    system = system.with_neighbors(potential)
    matrix = jax.jit(jax.hessian(lambda x: potential.energy(system.with_positions(x))))(system.positions)
    return np.asarray(matrix).reshape(system.positions.size, -1)


def test_the_matrix_is_the_hessian_of_the_energy_in_every_format(case):
    expected = reference(*case)
    top = np.abs(expected).max()
    sparse = ms.hessian(*case)
    assert isinstance(sparse, scipy.sparse.bsr_array) and sparse.blocksize == (case[0].dim, case[0].dim)
    assert sparse.has_canonical_format or sparse.has_sorted_indices
    np.testing.assert_allclose(sparse.toarray(), expected, atol=1e-12 * top)
    np.testing.assert_array_equal(ms.hessian(*case, format="dense"), sparse.toarray())
    operator = ms.hessian(*case, format="operator")
    np.testing.assert_allclose(operator @ np.eye(len(expected)), expected, atol=1e-12 * top)
    np.testing.assert_allclose(operator.T @ np.ones(len(expected)), expected.sum(axis=0), atol=1e-12 * top)


def test_a_matrix_is_not_larger_than_its_pairs():
    system = ms.System.from_ase(rattled(bulk("Si", cubic=True) * 4, noise=0.003))
    matrix = ms.hessian(system, ms.StillingerWeber.silicon())
    # Itself, 4 neighbours and their 12.
    assert matrix.nnz == len(system) * 17 * 9
    assert abs(matrix - matrix.T).max() < 1e-12 * abs(matrix).max()


def agrees_with_matscipy(atoms, potential, calculator, rtol):
    expected = calculator.get_hessian(rattled(atoms), format="sparse").toarray()
    ours = ms.hessian(ms.System.from_ase(atoms), potential, format="dense")
    np.testing.assert_allclose(ours, expected, atol=rtol * np.abs(expected).max())


@pytest.mark.slow
def test_silicon_agrees_with_matscipy():
    manybody = pytest.importorskip("matscipy.calculators.manybody", reason="matscipy is not installed (pip install matscipy)")
    from matscipy.calculators.manybody.explicit_forms.stillinger_weber import Stillinger_Weber_PRB_31_5262_Si as published

    atoms = bulk("Si", cubic=True) * 2
    del atoms[5]
    form = manybody.StillingerWeber({**published, "costheta0": 1.0 / 3.0})
    agrees_with_matscipy(atoms, ms.StillingerWeber.silicon(), manybody.Manybody(**form), rtol=1e-11)


@pytest.mark.filterwarnings("ignore:'where' used without 'out'")  # matscipy's own
def test_tersoffs_carbide_agrees_with_matscipy():
    manybody = pytest.importorskip("matscipy.calculators.manybody", reason="matscipy is not installed (pip install matscipy)")
    from matscipy.calculators.manybody.explicit_forms.tersoff_brenner import Tersoff_PRB_39_5566_Si_C as published

    elements = list(enumerate(published["el"]))

    def by_triplet(entry):
        """Values of i, and of the bonds ij and ik, whose places in the table are i + j and i + k."""
        triplets = itertools.product(elements, repeat=3)
        return {f"{a}-{b}-{c}": entry(i, i + j, i + k) for (i, a), (j, b), (k, c) in triplets}

    def of_bond(entry):
        table = by_triplet(lambda i, ij, ik: entry(i, ij))
        return {key: value for key, value in table.items() if key.split("-")[1] == key.split("-")[2]}

    form = published
    potential = ms.Tersoff(
        gamma=1.0,
        lam3=0.0,
        c=by_triplet(lambda i, ij, ik: form["c"][i]),
        d=by_triplet(lambda i, ij, ik: form["d"][i]),
        costheta0=by_triplet(lambda i, ij, ik: form["h"][i]),
        R=by_triplet(lambda i, ij, ik: (form["r1"][ik] + form["r2"][ik]) / 2),
        D=by_triplet(lambda i, ij, ik: (form["r2"][ik] - form["r1"][ik]) / 2),
        n=of_bond(lambda i, ij: form["n"][i]),
        beta=of_bond(lambda i, ij: form["beta"][i]),
        lam1=of_bond(lambda i, ij: form["lambda"][ij]),
        lam2=of_bond(lambda i, ij: form["mu"][ij]),
        A=of_bond(lambda i, ij: form["A"][ij]),
        B=of_bond(lambda i, ij: form["B"][ij] * form["chi"][ij]),
    )
    atoms = bulk("SiC", "zincblende", a=4.36, cubic=True) * (2, 1, 1)
    del atoms[5]
    agrees_with_matscipy(atoms, potential, manybody.Manybody(**manybody.TersoffBrenner(form)), rtol=1e-11)


def test_an_alloy_of_embedded_atoms_agrees_with_matscipy():
    """Whose splines are ours: cubic, not-a-knot."""
    embedded = pytest.importorskip("matscipy.calculators.eam", reason="matscipy is not installed (pip install matscipy)")
    path = shipped("NiAlH_jea.eam.alloy")
    atoms = bulk("NiAl", "cesiumchloride", a=2.88, cubic=True) * 2
    del atoms[5]
    agrees_with_matscipy(atoms, ms.EAM.from_file(path), embedded.EAM(path), rtol=1e-10)


def test_what_cannot_be_assembled_says_so(monkeypatch):
    system, potential = pairs()
    refused(lambda: ms.hessian(system, potential, format="csr"), "format 'csr'")
    refused(lambda: ms.hessian(system, ms.LennardJones(epsilon={}, sigma=1.0, cutoff=2.5, onset=2.0)), "epsilon")
    refused(lambda: jax.grad(lambda x: ms.hessian(system.with_positions(x), potential).sum())(system.positions), "traced")
    monkeypatch.setattr(hessian_matrix, "ASSEMBLED_LIMIT", 10)
    refused(lambda: ms.hessian(system, potential), "GB", 'format="operator"')
    assert force_constants.coupling_numbers(system.with_neighbors(potential, skin=0.0), potential) > 10


def test_the_hessian_of_an_equilibrium_is_asked_for_as_such():
    system, potential = pairs()
    eq = ms.relax(system, potential)
    np.testing.assert_array_equal(ms.hessian(eq, format="dense"), ms.hessian(eq.system, potential, format="dense"))
    refused(lambda: ms.hessian(system), "hessian(system, potential)", "hessian(eq)")
