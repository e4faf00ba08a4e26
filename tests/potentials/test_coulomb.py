"""Fixed charges: Madelung's constants, LAMMPS's sums with a cutoff and Ewald's, and the ionic crystals they hold together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from ase.constraints import FixAtoms
from ase.units import GPa
from differences import richardson
from helpers import refused
from jax.scipy.special import erfc
from lammps_reference import evaluate

import mdsens as ms
from mdsens.common.voigt import from_voigt
from mdsens.potentials.electrostatics import coulomb as coulomb_module

LAMMPS_COULOMB = 14.399645
"""k in LAMMPS's units metal; CODATA's differs from the eighth digit on."""

SALT = {"Na": 1.0, "Cl": -1.0}
MADELUNG = {  # the constant, and the distance of neighbours in units of the lattice constant
    "NaCl": ("rocksalt", 1.747564594633, 1 / 2, SALT),
    "CsCl": ("cesiumchloride", 1.762674773070, np.sqrt(3) / 2, {"Cs": 1.0, "Cl": -1.0}),
    "ZnS": ("zincblende", 1.638055053388, np.sqrt(3) / 4, {"Zn": 1.0, "S": -1.0}),
}


@pytest.fixture(scope="module")
def rattled():
    """Eight ions in a triclinic cell, smaller than the cutoffs."""
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    atoms.rattle(0.1, seed=1)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.03 * np.arange(9).reshape(3, 3) / 8), scale_atoms=True)
    return ms.System.from_ase(atoms)


def charges_of(system):
    return [SALT[label] for label in system.symbols]


def virial(potential, system):
    return -float(system.volume) * GPa * np.asarray(from_voigt(potential.stress(system)))


@pytest.mark.parametrize("name", MADELUNG)
def test_ewald_gives_madelungs_constants(name):
    structure, constant, neighbor, charge = MADELUNG[name]
    crystal = ms.System.from_ase(bulk(name, structure, a=5.0))
    potential = ms.Ewald(charge=charge, cutoff=6.0)
    found = -float(potential.energy(crystal)) * 5.0 * neighbor / potential.coulomb
    assert abs(found - constant) < 1e-11  # twelve digits are published


@pytest.mark.slow
def test_ewalds_split_between_the_two_sums_changes_nothing(rattled):
    near, far = (ms.Ewald(charge=SALT, cutoff=cutoff) for cutoff in (6.0, 10.0))
    np.testing.assert_allclose(near.energy(rattled), far.energy(rattled), rtol=1e-11)
    np.testing.assert_allclose(near.forces(rattled), far.forces(rattled), atol=1e-10)
    np.testing.assert_allclose(GPa * near.stress(rattled), GPa * far.stress(rattled), atol=1e-11)
    # With a net charge the uniform background makes it so.
    charged = {"Na": 1.2, "Cl": -1.0}
    near, far = (ms.Ewald(charge=charged, cutoff=cutoff, background=True) for cutoff in (6.0, 10.0))
    np.testing.assert_allclose(near.energy(rattled), far.energy(rattled), rtol=1e-11)
    np.testing.assert_allclose(near.energies(rattled).sum(), near.energy(rattled), rtol=1e-13)


EWALD = ("pair_modify table 0", "kspace_style ewald 1e-12", "kspace_modify gewald 2.5 kmax/ewald 30 30 30")
"""LAMMPS's erfc is a polynomial of seven digits; with such a width next to nothing is left to it."""


def test_ewald_is_lammps_s(rattled):
    reference = evaluate(rattled, "pair_style coul/long 9.0", "pair_coeff * *", *EWALD, charges=charges_of(rattled))
    agrees(ms.Ewald(charge=SALT, cutoff=6.0, coulomb=LAMMPS_COULOMB), rattled, reference, rtol=1e-10)


def agrees(potential, system, reference, rtol):
    np.testing.assert_allclose(potential.energy(system), reference.energy, rtol=rtol)
    np.testing.assert_allclose(potential.forces(system), reference.forces, atol=rtol * np.abs(reference.forces).max())
    np.testing.assert_allclose(virial(potential, system), reference.virial, atol=rtol * np.abs(reference.virial).max())


@pytest.mark.parametrize(("k", "rtol"), [(LAMMPS_COULOMB, 1e-12), (coulomb_module.COULOMB, 1e-7)])
def test_wolfs_energy_and_shifted_forces_are_lammps_s(rattled, k, rtol):
    reference = evaluate(rattled, "pair_style coul/wolf 0.2 9.0", "pair_coeff * *", charges=charges_of(rattled))
    wolf, dsf = (ms.Coulomb(charge=SALT, alpha=0.2, cutoff=9.0, method=method, coulomb=k) for method in ("wolf", "dsf"))
    np.testing.assert_allclose(wolf.energy(rattled), reference.energy, rtol=rtol)
    # LAMMPS gives coul/wolf the forces of the damped shifted force.
    np.testing.assert_allclose(dsf.forces(rattled), reference.forces, atol=rtol * np.abs(reference.forces).max())
    np.testing.assert_allclose(virial(dsf, rattled), reference.virial, atol=rtol * np.abs(reference.virial).max())


def test_damped_shifted_force_is_lammps_s_with_its_polynomial(rattled, monkeypatch):
    def polynomial(x):
        t = 1.0 / (1.0 + 0.3275911 * x)
        series = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
        return jnp.exp(-x * x) * sum(a * t ** (n + 1) for n, a in enumerate(series))

    assert abs(polynomial(0.7) - erfc(0.7)) < 1.5e-7
    reference = evaluate(rattled, "pair_style coul/dsf 0.2 9.0", "pair_coeff * *", charges=charges_of(rattled))
    monkeypatch.setattr(coulomb_module, "erfc", polynomial)

    class OfLammps(ms.Coulomb):
        """Of its own type, so that no compiled code with another erfc is found."""

    potential = OfLammps(charge=SALT, alpha=0.2, cutoff=9.0, coulomb=LAMMPS_COULOMB)
    np.testing.assert_allclose(potential.energy(rattled), reference.energy, rtol=1e-9)


def test_shifted_forces_come_near_the_sum_over_all_images():
    # Fennell and Gezelter's finding: rigid ions, to a few meV an ion.
    crystal = ms.System.from_ase(bulk("NaCl", "rocksalt", a=5.6))
    exact = ms.Ewald(charge=SALT, cutoff=6.0).energy(crystal)
    np.testing.assert_allclose(ms.Coulomb(charge=SALT, alpha=0.2, cutoff=15.0).energy(crystal), exact, rtol=2e-3)


PAIRS = {"Mg-O": (1428.5, 0.2945, 0.0), "O-O": (22764.3, 0.149, 27.88), "Mg-Mg": (0.0, 1.0, 0.0)}
"""A [eV], ρ [Å] and C [eV Å⁶] of magnesium oxide, G. V. Lewis, C. R. A. Catlow, J. Phys. C 18, 1149 (1985), rigid ions."""


def oxide(pairs, **settings):
    A, rho, C = ({pair: row[k] for pair, row in pairs.items()} for k in range(3))
    charges = ms.Ewald(charge={"Mg": 2.0, "O": -2.0}, cutoff=6.5, background=True, coulomb=LAMMPS_COULOMB)
    return ms.Buckingham(A=A, rho=rho, C=C, **settings) + charges


OXIDE = oxide(PAIRS | {"O-O": (0.0, 1.0, 0.0)}, cutoff=6.0, onset=5.0)
"""With the repulsion of unlike ions alone."""


def test_a_rattled_oxide_is_lammps_s():
    atoms = bulk("MgO", "rocksalt", a=4.2, cubic=True)
    atoms.rattle(0.1, seed=2)
    system = ms.System.from_ase(atoms)
    number = {label: code + 1 for code, label in enumerate(system.labels)}
    coefficients = [
        "pair_coeff {} {} buck {} {} {}".format(*sorted(number[label] for label in pair.split("-")), *row)
        for pair, row in PAIRS.items()
    ]
    reference = evaluate(
        system,
        "pair_style hybrid/overlay coul/long 9.0 buck 6.0",
        "pair_coeff * * coul/long",
        *coefficients,
        *EWALD,
        charges=[{"Mg": 2.0, "O": -2.0}[label] for label in system.symbols],
    )
    agrees(oxide(PAIRS, cutoff=6.0, switch="truncated"), system, reference, rtol=1e-10)


def closed_form(a):
    """Of magnesium oxide U(a) = Σ A exp(-d a/ρ) - M/a: the two terms' energies, and d/ρ of the shells up to 5 Å."""
    places = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 3), axis=-1).reshape(-1, 3)
    shells = np.linalg.norm(places[places.sum(axis=1) % 2 == 1], axis=1) / 2
    shells = shells[shells * a < 5.0] / 0.2945
    return 1428.5 * np.exp(-shells * a), 2.0 * 1.747564594633 * 4.0 * LAMMPS_COULOMB / a, shells


def test_magnesium_oxide_has_madelungs_energy_and_pressure():
    a = 4.3
    system = ms.System.from_ase(bulk("MgO", "rocksalt", a=a))
    repulsion, madelung, shells = closed_form(a)
    np.testing.assert_allclose(OXIDE.energy(system), repulsion.sum() - madelung, rtol=1e-11)
    pressure = (np.sum(shells * repulsion) - madelung / a) / (3.0 * a**2 / 4.0)
    np.testing.assert_allclose(GPa * OXIDE.stress(system), [-pressure] * 3 + [0.0] * 3, atol=1e-11)


@pytest.mark.slow
def test_magnesium_oxide_grows_with_its_parameters_as_its_energy_says():
    eq = ms.relax(ms.System.from_ase(bulk("MgO", "rocksalt", a=4.2)), OXIDE, cell="isotropic", fmax=1e-10)
    a = (4.0 * float(eq.system.volume)) ** (1 / 3)
    repulsion, madelung, shells = closed_form(a)
    slope = madelung / a - np.sum(shells * repulsion)
    curvature = np.sum(shells**2 * repulsion) - 2.0 * madelung / a**2
    assert abs(slope / curvature) < 1e-9  # by so little it is another lattice constant
    S = ms.sensitivity(eq, wrt=["Buckingham.A.Mg-O", "Ewald.charge.Mg"]).scaled()
    growth = lambda cell: float(np.vdot(cell, eq.system.cell)) / np.linalg.norm(eq.system.cell) ** 2 * a  # noqa: E731
    np.testing.assert_allclose(growth(S.cell.terms[0].A["Mg-O"]), np.sum(shells * repulsion) / curvature, rtol=1e-8)
    # All products of charges have the sum of two terms, and like ions stand on the same lattice.
    np.testing.assert_allclose(growth(S.cell.terms[1].charge["Mg"]), -madelung / a / curvature, rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda charge: ms.Coulomb(charge=charge, alpha=0.3, cutoff=7.0),
        pytest.param(lambda charge: ms.Ewald(charge=charge, cutoff=6.5, background=True), marks=pytest.mark.slow),
    ],
    ids=["Coulomb", "Ewald"],
)
def test_sensitivities_are_differences_of_relaxed_structures(make):
    # A sodium replaced by a larger potassium, held beside its place, as one of the others is in its own: the rest move away.
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    atoms[0].symbol = "K"
    atoms.positions[0] += [0.3, 0.2, 0.1]
    atoms.set_constraint(FixAtoms([0, 5]))
    pairs = ("Na-Cl", "K-Cl", "Cl-Cl", "Na-Na", "K-Na", "K-K")
    strengths = dict(zip(pairs, [1250.0, 4000.0, 3500.0, 480.0, 900.0, 1800.0], strict=True))
    charges = make({"Na": 1.0, "Cl": -1.0, "K": 1.0})
    potential = ms.Buckingham(A=strengths, rho=0.317, C=5.0, cutoff=6.0, onset=5.0) + charges
    eq = ms.relax(ms.System.from_ase(atoms), potential, fmax=1e-12)
    charge = f"{type(charges).__name__}.charge.K"
    names = {charge: 1.0, "Buckingham.A.Cl-K": 4000.0}
    S = ms.sensitivity(eq, wrt=list(names))
    assert S.certificate.residual < 1e-9
    repulsion, charges = S.scaled().positions.terms
    found = {charge: charges.charge["K"], "Buckingham.A.Cl-K": repulsion.A["Cl-K"]}
    scale = max(float(np.abs(moved).max()) for moved in found.values())
    for name, theta in names.items():
        assert np.abs(theta * richardson(eq, name, same_contacts=False) - found[name]).max() < 1e-6 * scale, name


def test_what_no_sum_of_charges_can_have_is_refused(rattled):
    refused(lambda: ms.Ewald(charge={"Na": 1.0, "Cl": -0.9}).energy(rattled), "net charge of 0.4 e", "background")
    cluster = ms.System(rattled.positions, species=rattled.symbols)
    refused(lambda: ms.Ewald(charge=SALT).energy(cluster), "periodic in three directions", "Coulomb")
    refused(lambda: ms.Ewald(charge=SALT, accuracy=0.5), "accuracy")
    refused(lambda: ms.Coulomb(charge=SALT, method="fennel"), "fennel", "dsf")
    refused(lambda: ms.Coulomb(charge=SALT, alpha=-0.1), "alpha")
    refused(lambda: ms.Coulomb(charge={"Na-Cl": 1.0}), "keyed by labels")
    refused(lambda: ms.Coulomb(charge={"Na": 1.0}).energy(rattled), "'Cl'")
    refused(lambda: ms.hessian(rattled, ms.Ewald(charge=SALT)), "Ewald", "operator")


def test_a_stored_salt_is_found_again(tmp_path):
    eq = ms.relax(
        ms.System.from_ase(bulk("NaCl", "rocksalt", a=5.6)), ms.Coulomb(charge=SALT, cutoff=7.0), throw=False, max_steps=1
    )
    ms.save(tmp_path / "salt.h5", eq)
    again, _ = ms.load(tmp_path / "salt.h5")
    assert again.potential.charge == eq.potential.charge and again.potential.method == "dsf"


def test_constant_charges_are_checked_inside_of_a_compiled_function():
    """Madelung's energy, of a potential made outside of `jit`, inside of it, and in a sum of which a part is traced."""
    structure, constant, neighbor, charge = MADELUNG["NaCl"]
    crystal, outside = ms.System.from_ase(bulk("NaCl", structure, a=5.0)), ms.Ewald(charge=charge, cutoff=6.0)
    expected = -constant * outside.coulomb / (5.0 * neighbor)

    def in_a_sum(D0):
        return (ms.Ewald(charge=charge, cutoff=6.0) + ms.Morse(D0=D0, alpha=1.0, r0=2.0, cutoff=5.0)).energy(crystal)

    with pytest.warns(UserWarning, match="the same numbers"):
        found = jax.jit(in_a_sum)(0.0)
    for value in (jax.jit(lambda x: x * outside.energy(crystal))(1.0), found):
        np.testing.assert_allclose(value, expected, rtol=1e-11)
    charged = ms.Ewald(charge={"Na": 1.0, "Cl": -0.9}, cutoff=6.0)
    refused(lambda: jax.jit(lambda x: x * charged.energy(crystal))(1.0), "net charge of 0.1 e")
