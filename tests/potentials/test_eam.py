"""Embedded atoms: tabulated from LAMMPS's files, and Zhou's analytic form."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from ase.neighborlist import neighbor_list
from differences import scaled_errors
from eam_tables import write_setfl
from helpers import refused
from lammps_reference import evaluate, shipped

import mdsens as ms
from mdsens.mechanics import forces, hessian_operator
from mdsens.mechanics.landscape import Landscape
from mdsens.mechanics.unknown import reference_at
from mdsens.potentials.forms.neighbor_vectors import neighbor_vectors

FILES = {
    "Cu_mishin1.eam.alloy": (["Cu"], "eam/alloy"),
    "CuNi.eam.alloy": (["Cu", "Ni"], "eam/alloy"),
    "Fe_mm.eam.fs": (["Fe"], "eam/fs"),
    "AlFe_mm.eam.fs": (["Al", "Fe"], "eam/fs"),
    "NiO.eam.fs": (["Ni", "O"], "eam/fs"),
    "Cu_u3.eam": (["Cu"], "eam"),
}


def crystal(elements, noise=0.1):
    rng = np.random.default_rng(0)
    atoms = bulk("Cu", "fcc", a=3.8, cubic=True) * 2
    atoms.symbols = rng.choice(elements, len(atoms))
    atoms.rattle(noise, seed=2)
    return ms.System.from_ase(atoms)


@pytest.mark.parametrize("name", FILES)
def test_with_lammps_interpolation_everything_is_lammps_s(name):
    path, (elements, style) = shipped(name), FILES[name]
    system, potential = crystal(elements), ms.EAM.from_file(path, interpolation="lammps")
    # A funcfl file is of one element, which LAMMPS is not told.
    names = [] if style == "eam" else system.labels
    commands = (f"pair_style {style}", f"pair_coeff * * {' '.join([str(path), *names])}")
    reference = evaluate(system, *commands)
    np.testing.assert_allclose(potential.energy(system), reference.energy, rtol=1e-9)
    np.testing.assert_allclose(potential.forces(system), reference.forces, atol=1e-9 * np.abs(reference.forces).max())


@pytest.mark.parametrize("name", ["Cu_mishin1.eam.alloy", "Fe_mm.eam.fs", "AlFe_mm.eam.fs"])
def test_c2_splines_are_near_lammps(name):
    # Not CuNi: its table is so coarse that two interpolations differ by half a percent in the forces.
    path, (elements, style) = shipped(name), FILES[name]
    system, potential = crystal(elements), ms.EAM.from_file(path)
    commands = (f"pair_style {style}", f"pair_coeff * * {path} {' '.join(system.labels)}")
    reference = evaluate(system, *commands)
    np.testing.assert_allclose(potential.energy(system), reference.energy, rtol=1e-5)
    np.testing.assert_allclose(potential.forces(system), reference.forces, atol=1e-4 * np.abs(reference.forces).max())
    assert potential.smoothness == 2


@pytest.mark.parametrize("densest", [30.0, 3.0], ids=["inside", "beyond"])
def test_beyond_the_ends_of_its_tables_everything_is_lammps_s(densest, tmp_path):
    """A crystal denser than its F is tabulated for, and pairs beyond the last distance but within the cutoff."""
    density, last, cutoff = {"Cu": lambda r: 0.02 * (4.5 - r) ** 2 + 0.1}, 4.5, 5.2
    write_setfl(
        tmp_path / "cu.eam.alloy",
        {"Cu": lambda rho: -np.sqrt(rho + 1.0)},
        density,
        {"Cu-Cu": lambda r: (4.5 - r) ** 3 + 0.3},
        cutoff=last,
        densest=densest,
        size=500,
    )
    lines = (tmp_path / "cu.eam.alloy").read_text().splitlines()
    lines[4] = " ".join([*lines[4].split()[:4], repr(cutoff)])
    (tmp_path / "cu.eam.alloy").write_text("\n".join(lines) + "\n")
    system, potential = crystal(["Cu"]), ms.EAM.from_file(tmp_path / "cu.eam.alloy", interpolation="lammps")
    reference = evaluate(system, "pair_style eam/alloy", f"pair_coeff * * {tmp_path / 'cu.eam.alloy'} Cu")
    np.testing.assert_allclose(potential.energy(system), reference.energy, rtol=1e-9)
    # Not the forces: LAMMPS keeps the last slope for them, which is not the slope of its constant energy.
    d, inside = neighbor_vectors(system.with_neighbors(potential, skin=0.0), jnp.asarray(cutoff))
    r = np.where(np.asarray(inside), np.linalg.norm(np.asarray(d), axis=-1), 0.0)
    made = np.where(r > 0.0, density["Cu"](np.minimum(r, last)), 0.0).sum(axis=1)
    assert (r > last).any(axis=1).all() and (made > densest).all() == (densest == 3.0)


def cases():
    system = crystal(["Cu"])
    yield pytest.param(lambda: (system, ms.ZhouJohnsonWadley.published("Cu")), id="Zhou")
    yield pytest.param(lambda: (crystal(["Al", "Fe"]), ms.EAM.from_file(shipped("AlFe_mm.eam.fs"))), id="tables of two species")


@pytest.mark.slow
@pytest.mark.parametrize("make", list(cases()))
def test_pairs_and_ranks_of_one_are_the_hessian(make):
    system, potential = make()
    system = system.with_neighbors(potential)
    reference = reference_at(system)
    v = jax.random.normal(jax.random.key(0), (system.positions.size,))
    assert hessian_operator.is_stored(reference, potential)
    condition = lambda x: forces.gradient(x.reshape(system.positions.shape), Landscape(reference, potential)).ravel()  # noqa: E731
    expected = jax.jvp(condition, (system.positions.ravel(),), (v,))[1]
    image = hessian_operator.hessian_operator(system.positions, Landscape(reference, potential))(v)
    np.testing.assert_allclose(image, expected, rtol=1e-12, atol=1e-12 * jnp.abs(expected).max())


@pytest.mark.slow
def test_sensitivities_of_a_vacancy_are_differences_of_relaxed_structures():
    atoms = bulk("Cu", cubic=True) * 2
    del atoms[0]
    eq = ms.relax(ms.System.from_ase(atoms), ms.ZhouJohnsonWadley.published("Cu"), fmax=1e-12)
    S = ms.sensitivity(eq)
    assert S.certificate.trusted, S.certificate.reasons
    assert max(scaled_errors(eq, S).values()) < 1e-6


def test_files_that_are_cut_off_or_missing_are_refused(tmp_path):
    with pytest.raises(ms.InputError, match="no file"):
        ms.EAM.from_file(tmp_path / "none.eam.alloy")
    cut = tmp_path / "cut.eam.alloy"
    cut.write_text("\n".join(Path(shipped("Cu_mishin1.eam.alloy")).read_text().splitlines()[:400]))
    with pytest.raises(ms.InputError):
        ms.EAM.from_file(cut)


@pytest.mark.slow
def test_a_stored_state_has_its_tables(tmp_path):
    potential = ms.EAM.from_file(shipped("Cu_mishin1.eam.alloy"))
    eq = ms.relax(ms.System.from_ase(bulk("Cu", a=3.7, cubic=True)), potential, fmax=1e-10)
    ms.save(tmp_path / "cu.h5", eq)
    again, _ = ms.load(tmp_path / "cu.h5")
    jax.tree.map(np.testing.assert_array_equal, again.potential, potential)
    assert again.potential.energy(again.system) == eq.energy


def test_coarse_tables_are_warned_about_with_how_far_they_are_from_lammps():
    path = shipped("AlCu.eam.alloy")
    with pytest.warns(
        UserWarning, match='FCC Al has a = 4.0454 Å for 4.0498 Å.*dimer Cu-Cu.*0.43 eV at 2.63 Å.*"lammps"'
    ) as seen:
        potential = ms.EAM.from_file(path)
    assert seen[0].filename == __file__
    commands = ("pair_style eam/alloy", f"pair_coeff * * {path} Al")

    def lowest(energy):
        """By a parabola through three points around."""
        a = np.array([4.045, 4.0475, 4.05])
        p = np.polynomial.Polynomial.fit(a, [energy(one) for one in a], 2)
        return p.deriv().roots()[0]

    crystals = {a: ms.System.from_ase(bulk("Al", a=a)) for a in (4.045, 4.0475, 4.05)}
    smooth = lowest(lambda a: float(potential.energy(crystals[a])))
    lammps = lowest(lambda a: evaluate(crystals[a], *commands).energy)
    np.testing.assert_allclose([smooth, lammps], [4.0454, 4.0498], atol=3e-4)  # what a parabola leaves
    dimer = ms.System([[0.0, 0.0, 0.0], [2.63, 0.0, 0.0]], species=["Cu", "Cu"])
    reference = evaluate(dimer, "pair_style eam/alloy", f"pair_coeff * * {path} Cu").energy
    np.testing.assert_allclose(abs(float(potential.energy(dimer)) - reference), 0.43, atol=0.005)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["Cu_u3.eam", "Cu_mishin1.eam.alloy", "AlFe_mm.eam.fs"])
def test_fine_tables_are_read_without_a_word(name):
    ms.EAM.from_file(shipped(name))
    ms.EAM.from_file(shipped("AlCu.eam.alloy"), interpolation="lammps")


def test_files_of_one_element_are_mixed_as_lammps_does():
    paths = [shipped("Ni_u3.eam"), shipped("Cu_smf7.eam")]  # of two grids
    potential = ms.EAM.from_file(paths, interpolation="lammps")
    # LAMMPS's last value is another, and slopes beyond it go on: no pair is there.
    system = crystal(["Cu", "Ni"], noise=0.05)
    d = neighbor_list("d", system.to_ase(), 1.02 * potential.cutoff)
    assert not ((d > potential.cutoff - 3.0 * potential.dr) & (d < potential.cutoff)).any()
    assert system.labels == ("Cu", "Ni") and len({ms.EAM.from_file(path).dr for path in paths}) == 2
    commands = ("pair_style eam", f"pair_coeff 2 2 {paths[0]}", f"pair_coeff 1 1 {paths[1]}")
    reference = evaluate(system, *commands)
    np.testing.assert_allclose(potential.energy(system), reference.energy, rtol=1e-9)
    np.testing.assert_allclose(potential.forces(system), reference.forces, atol=1e-9 * np.abs(reference.forces).max())
    alone = ms.EAM.from_file([paths[0]])
    np.testing.assert_array_equal(alone.phi["Ni-Ni"], ms.EAM.from_file(paths[0]).phi["Ni-Ni"])
    refused(lambda: ms.EAM.from_file([paths[0], paths[0]]), "Ni", "once")
    refused(lambda: ms.EAM.from_file([shipped("AlCu.eam.alloy")]), "not a funcfl file")
    refused(lambda: ms.EAM.from_file([]), "funcfl")


@pytest.mark.parametrize("interpolation", ["lammps", "spline"])
@pytest.mark.parametrize("first", ["1.79769313486231570e+308", "inf", "-nan"])
def test_what_a_table_says_at_no_distance_changes_nothing(interpolation, first, tmp_path):
    path = Path(shipped("Cu_mishin1.eam.alloy"))
    lines, n = path.read_text().splitlines(), 10001
    words = [word for line in lines[6:] for word in line.split()]
    words[n] = words[2 * n] = first  # of the density and of the pair
    spoilt = tmp_path / "Cu.eam.alloy"
    spoilt.write_text("\n".join([*lines[:6], *words]))
    system, plain = crystal(["Cu"]), ms.EAM.from_file(path, interpolation=interpolation)
    again = ms.EAM.from_file(spoilt, interpolation=interpolation)
    np.testing.assert_allclose(again.energy(system), plain.energy(system), rtol=1e-12)
    np.testing.assert_allclose(again.forces(system), plain.forces(system), atol=1e-10)
    words[n + 1] = first
    spoilt.write_text("\n".join([*lines[:6], *words]))
    refused(lambda: ms.EAM.from_file(spoilt), "density of Cu")
