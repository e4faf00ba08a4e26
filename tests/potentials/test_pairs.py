"""Pair potentials of two species against LAMMPS, their derivatives, elastic networks, and what they refuse."""

import jax
import numpy as np
import pytest
from ase.build import bulk
from differences import checked_energy_forces_virial, energy_forces_virial
from helpers import refused
from lammps_reference import evaluate

import mdsens as ms
from mdsens.derivatives.certificate import kink_gaps

CUTOFF, ONSET = 5.0, 4.1
SHEAR = np.eye(3) + np.array([[0.03, 0.08, -0.05], [0.0, -0.02, 0.1], [0.04, 0.0, 0.05]])


def pairs(*values):
    return dict(zip(("Cl-Cl", "Cl-Na", "Na-Na"), values, strict=True))


def rock_salt():
    """8 atoms of a sheared, rattled crystal far from the origin, in a cell no larger than the cutoff."""
    atoms = bulk("NaCl", "rocksalt", a=5.2, cubic=True)
    positions = atoms.positions + 0.12 * np.random.default_rng(0).normal(size=atoms.positions.shape)
    return ms.System(positions @ SHEAR + 30.0, cell=atoms.cell.array @ SHEAR, pbc=True, species=atoms.get_chemical_symbols())


def lammps(style, *parameters, own=False):
    """`pair_style` and the `pair_coeff` of each pair, or only of each species with itself where LAMMPS mixes the others."""
    yield f"pair_style {style}"
    for k, (a, b) in enumerate(((1, 1), (1, 2), (2, 2))):
        if a == b or not own:
            values = [list(value.values())[k // 2 if own else k] if isinstance(value, dict) else value for value in parameters]
            yield f"pair_coeff {a} {b} {' '.join(repr(float(value)) for value in values)}"


CUT = {"cutoff": CUTOFF, "switch": "truncated"}
SWITCHED = {"cutoff": CUTOFF, "onset": ONSET}
EPSILON, SIGMA = pairs(0.3, 0.5, 0.2), pairs(2.9, 2.4, 2.1)
N, M = pairs(11.3, 12.0, 9.5), pairs(6.0, 5.2, 4.7)
OWN_EPSILON, OWN_SIGMA, OWN_N, OWN_M = ({"Cl": x, "Na": y} for x, y in ((0.3, 0.2), (2.9, 2.1), (11.3, 9.5), (6.0, 4.7)))
D0, ALPHA, R0 = pairs(0.4, 0.7, 0.2), pairs(1.1, 1.4, 0.9), pairs(3.8, 2.6, 3.5)
A, RHO, C, D = pairs(1200.0, 900.0, 420.0), pairs(0.33, 0.31, 0.29), pairs(72.0, 6.9, 1.05), pairs(145.0, -8.7, 0.5)
STRENGTH = pairs(8.0, -5.0, 6.0)


CASES = {
    "Morse": lambda: (ms.Morse(D0=D0, alpha=ALPHA, r0=R0, **CUT), lammps(f"morse {CUTOFF}", D0, ALPHA, R0)),
    "Born-Mayer-Huggins": lambda: (
        ms.BornMayerHuggins(A=EPSILON, rho=RHO, sigma=SIGMA, C=C, D=D, **CUT),
        lammps(f"born {CUTOFF}", EPSILON, RHO, SIGMA, C, D),
    ),
    "Yukawa": lambda: (ms.Yukawa(strength=STRENGTH, kappa=0.7, **CUT), lammps(f"yukawa 0.7 {CUTOFF}", STRENGTH)),
    "Mie, mixed": lambda: (
        ms.Mie(epsilon=OWN_EPSILON, sigma=OWN_SIGMA, n=OWN_N, m=OWN_M, mixing="arithmetic", **CUT),
        [*lammps(f"mie/cut {CUTOFF}", OWN_EPSILON, OWN_SIGMA, OWN_N, OWN_M, own=True), "pair_modify mix arithmetic"],
    ),
    "Weeks-Chandler-Andersen": lambda: (
        ms.WeeksChandlerAndersen(epsilon=EPSILON, sigma=SIGMA),
        [
            *lammps("lj/cut 4.0", EPSILON, SIGMA, {key: 2 ** (1 / 6) * value for key, value in SIGMA.items()}),
            "pair_modify shift yes",
        ],
    ),
    "ZBL": lambda: (
        ms.ZBL(coulomb=14.399645, **SWITCHED),
        lammps(f"zbl {ONSET} {CUTOFF}", pairs(17, 17, 11), pairs(17, 11, 11)),
    ),
}


def deviation(found, expected) -> float:
    """Largest difference, relative to the largest number expected."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_a_pair_potential_agrees_with_lammps_and_its_derivatives_with_differences(make):
    (potential, commands), system = make(), rock_salt()
    expected = evaluate(system, *commands)
    energy, forces, virial = checked_energy_forces_virial(potential, system)
    assert deviation(energy, expected.energy) < 1e-9
    assert deviation(forces, expected.forces) < 1e-9
    assert deviation(virial, expected.virial) < 1e-9


OTHERS = {
    "Lennard-Jones, force switched": lambda: (
        ms.LennardJones(epsilon=EPSILON, sigma=SIGMA, switch="force_switch", **SWITCHED),
        lammps(f"lj/gromacs {ONSET} {CUTOFF}", EPSILON, SIGMA),
    ),
    "Buckingham": lambda: (ms.Buckingham(A=A, rho=RHO, C=C, **CUT), lammps(f"buck {CUTOFF}", A, RHO, C)),
    "Mie": lambda: (ms.Mie(epsilon=EPSILON, sigma=SIGMA, n=N, m=M, **CUT), lammps(f"mie/cut {CUTOFF}", EPSILON, SIGMA, N, M)),
    **{
        f"Lennard-Jones, {rule}": lambda rule=rule: (
            ms.LennardJones(epsilon=OWN_EPSILON, sigma=OWN_SIGMA, mixing=rule, **CUT),
            [*lammps(f"lj/cut {CUTOFF}", OWN_EPSILON, OWN_SIGMA, own=True), f"pair_modify mix {rule}"],
        )
        for rule in ("arithmetic", "geometric", "sixthpower")
    },
    "harmonic spheres": lambda: (
        ms.SoftSphere(diameter={"Cl": 4.0, "Na": 2.9}, epsilon=EPSILON),
        lammps(
            "harmonic/cut",
            {key: e / (2 * s**2) for (key, e), s in zip(EPSILON.items(), (4.0, 3.45, 2.9), strict=True)},
            pairs(4.0, 3.45, 2.9),
        ),
    ),
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_other_forms_of_the_same_agree_with_lammps(make):
    (potential, commands), system = make(), rock_salt()
    expected = evaluate(system, *commands)
    energy, forces, virial = energy_forces_virial(potential, system)
    assert deviation(energy, expected.energy) < 1e-9
    assert deviation(forces, expected.forces) < 1e-9
    assert deviation(virial, expected.virial) < 1e-9


def test_zbl_with_today_s_constants_is_lammps_s_to_its_digits():
    potential, system = ms.ZBL(**SWITCHED), rock_salt()
    # LAMMPS has 14.399645 eV Å for e²/4πε₀ = 14.39964547.
    energy = evaluate(system, *lammps(f"zbl {ONSET} {CUTOFF}", pairs(17, 17, 11), pairs(17, 11, 11))).energy
    assert 1e-8 < deviation(potential.energy(system), energy) < 1e-7


# Elastic networks


@pytest.fixture(scope="module")
def network():
    """Springs between the neighbours of a sheared, rattled fcc crystal of 32 atoms, none at rest."""
    rng = np.random.default_rng(2)
    atoms = bulk("Ar", "fcc", a=3.0, cubic=True) * 2
    positions = (atoms.positions + 0.04 * rng.normal(size=atoms.positions.shape)) @ SHEAR
    system = ms.System(positions, cell=atoms.cell.array @ SHEAR, pbc=True)
    at_rest = ms.HarmonicBonds.at_rest(system, 2.55)
    bonds = len(at_rest.bonds)
    return ms.HarmonicBonds(rng.uniform(0.5, 2.0, bonds), at_rest.r0 * rng.uniform(0.97, 1.03, bonds), at_rest.bonds), system


def test_a_network_agrees_with_lammps(network):
    potential, system = network
    bonds = list(zip(potential.bonds, potential.k.tolist(), potential.r0.tolist(), strict=True))
    commands = ["pair_style zero 5.0", "pair_coeff * *", "bond_style harmonic"]
    commands += [f"bond_coeff {n} {0.5 * k!r} {r0!r}" for n, (_, k, r0) in enumerate(bonds, start=1)]
    commands += [f"create_bonds single/bond {n} {i + 1} {j + 1}" for n, ((i, j), _, _) in enumerate(bonds, start=1)]
    create = f"bond/types {len(bonds)} extra/bond/per/atom 30 extra/special/per/atom 500"
    expected = evaluate(system, *commands, atom_style="bond", create=create)
    energy, forces, virial = checked_energy_forces_virial(potential, system)
    assert deviation(energy, expected.energy) < 1e-9
    assert deviation(forces, expected.forces) < 1e-9
    assert deviation(virial, expected.virial) < 1e-9


def test_a_network_made_at_rest_has_neither_energy_nor_forces(network):
    _, system = network
    potential = ms.HarmonicBonds.at_rest(system, 2.55, k=2.0)
    assert len(potential.bonds) == 192  # six an atom
    assert float(potential.energy(system)) < 1e-25 and float(abs(potential.forces(system)).max()) < 1e-13


def test_rest_lengths_of_a_network_move_its_equilibrium_as_differences_say(network, tmp_path):
    eq = ms.relax(network[1], network[0], fmax=1e-12)
    change = jax.tree.map(lambda leaf: np.zeros(leaf.shape), eq.potential)
    change.r0[5] = 1.0
    slope = np.asarray(ms.jvp(eq, change))
    h = 1e-4

    def longer(by):
        potential = ms.HarmonicBonds(eq.potential.k, eq.potential.r0.at[5].add(by), eq.potential.bonds)
        return np.asarray(ms.relax(eq.system, potential, fmax=1e-12, check_minimum=False).system.positions)

    difference = (8 * (longer(h) - longer(-h)) - (longer(2 * h) - longer(-2 * h))) / (12 * h)
    difference -= difference.mean(axis=0)
    # Rounding, 1e-12 / h.
    assert np.abs(slope - slope.mean(axis=0) - difference).max() < 1e-6 * np.abs(slope).max()
    ms.save(tmp_path / "network.h5", eq)
    again = ms.load(tmp_path / "network.h5")[0]
    assert again.potential.bonds == eq.potential.bonds and (again.potential.r0 == eq.potential.r0).all()


# What is refused


def lj(**changed):
    return ms.LennardJones(**{"epsilon": OWN_EPSILON, "sigma": OWN_SIGMA, "mixing": "arithmetic", **CUT, **changed})


SQUARE = [[0.0, 0, 0], [2.0, 0, 0], [2.0, 2.0, 0], [0.0, 2.0, 0]]

BAD = {
    "negative sigma": (lambda: lj(sigma={"Cl": -1.0, "Na": 1.0}), ["LennardJones's sigma['Cl']", "positive", "-1.0"]),
    "negative sigma of a pair": (lambda: lj(epsilon=1.0, sigma=pairs(1, -1, 1), mixing=None), ["sigma['Cl-Na']", "positive"]),
    "a rule nobody knows": (lambda: lj(mixing="arithmetik"), ["'arithmetik'", "Did you mean 'arithmetic'?"]),
    "species without a rule": (lambda: lj(mixing=None), ["LennardJones.epsilon", "'A-A'", "mixing='arithmetic'"]),
    "pairs and a rule": (lambda: lj(sigma=SIGMA), ["sigma", "pairs"]),
    "no depth to mix": (lambda: lj(epsilon=0.0), ["epsilon", "positive"]),
    "cutoff below onset": (lambda: ms.Morse(1.0, 1.0, 1.0, cutoff=3.0, onset=4.0), ["Morse's onset", "cutoff 3.0", "4.0"]),
    "Morse without width": (lambda: ms.Morse(1.0, 0.0, 1.0, **CUT), ["Morse's alpha", "positive"]),
    "Buckingham": (lambda: ms.Buckingham(1.0, -0.3, 1.0, **CUT), ["Buckingham's rho", "positive", "-0.3"]),
    "Born-Mayer-Huggins": (lambda: ms.BornMayerHuggins(1.0, 0.0, 1.0, 1.0, 1.0, **CUT), ["BornMayerHuggins's rho", "positive"]),
    "growing Yukawa": (lambda: ms.Yukawa(1.0, -1.0, **CUT), ["Yukawa's kappa", "positive or zero", "-1.0"]),
    "exponents swapped": (lambda: ms.Mie(1.0, 1.0, 6.0, {"A-A": 12.0}, **CUT), ["Mie's n['A-A']", "larger", "6.0", "12.0"]),
    "spheres without size": (lambda: ms.WeeksChandlerAndersen(1.0, 0.0), ["WeeksChandlerAndersen's sigma", "positive"]),
    "a pair is missing": (
        lambda: ms.Morse({"Cl-Cl": 1.0}, 1.0, 1.0, **CUT).energy(rock_salt()),
        ["Morse.D0", "'Cl-Na'", "Cl, Na"],
    ),
    "no element": (lambda: ms.ZBL(**SWITCHED).energy(ms.System(SQUARE, species="A")), ["ZBL", "'A'", "chemical element"]),
    "ZBL's lengths": (lambda: ms.ZBL(c=[1.0, 2.0], **SWITCHED), ["c and d", "one length"]),
    "no bonds": (lambda: ms.HarmonicBonds(1.0, 1.0, ()), ["bonds", "at least one"]),
    "a bond of three": (lambda: ms.HarmonicBonds(1.0, 1.0, ((0, 1, 2),)), ["bonds", "pairs"]),
    "a bond of one": (lambda: ms.HarmonicBonds(1.0, 1.0, ((1, 1),)), ["itself"]),
    "a bond twice": (lambda: ms.HarmonicBonds(1.0, 1.0, ((0, 1), (1, 0))), ["(0, 1)", "twice"]),
    "an atom too many": (lambda: ms.HarmonicBonds(1.0, 1.0, ((0, 7),)).energy(ms.System(SQUARE)), ["atom 7", "4 atoms"]),
    "values for other bonds": (lambda: ms.HarmonicBonds([1.0, 2.0], 1.0, ((0, 1),)), ["k", "1 bonds", "(2,)"]),
    "a bond that is too long": (
        lambda: ms.HarmonicBonds(1.0, 1.0, ((0, 2),)).energy(ms.System(SQUARE, cell=np.eye(3) * 4.0, pbc=True)),
        ["atoms 0 and 2", "half", "repeat"],
    ),
}


@pytest.mark.parametrize(("call", "words"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_with_a_sentence_that_names_it(call, words):
    refused(call, *words)


def oxide():
    return ms.Morse(D0={"O-U": 0.6}, alpha={"U-O": 1.6}, r0={"O-U": 2.37}, no_interaction=("U-U", "O-O"), **SWITCHED)


@pytest.mark.slow
def test_pairs_without_interaction_are_lammps_s_none(tmp_path):
    """Morse between U and O alone, which has LAMMPS's numbers; nothing of the others is needed."""
    atoms = bulk("UO2", "fluorite", a=5.2, cubic=True)
    positions = atoms.positions + 0.12 * np.random.default_rng(0).normal(size=atoms.positions.shape)
    system = ms.System(positions @ SHEAR, cell=atoms.cell.array @ SHEAR, pbc=True, species=atoms.get_chemical_symbols())
    cut = ms.Morse(D0={"O-U": 0.6}, alpha=1.6, r0={"O-U": 2.37}, no_interaction=["U-U", "O-O"], **CUT)
    commands = (
        f"pair_style hybrid morse {CUTOFF}",
        "pair_coeff 1 2 morse 0.6 1.6 2.37",
        "pair_coeff 1 1 none",
        "pair_coeff 2 2 none",
    )
    assert system.labels == ("O", "U")
    reference = evaluate(system, *commands)
    energy, forces, virial = energy_forces_virial(cut, system)
    assert deviation(energy, reference.energy) < 1e-9
    assert deviation(forces, reference.forces) < 1e-9
    assert deviation(virial, reference.virial) < 1e-9
    np.testing.assert_allclose(cut.energies(system).sum(), reference.energy, rtol=1e-9)
    checked_energy_forces_virial(oxide(), system)
    assert repr(oxide()).count("no_interaction") == 1 and "no_interaction" not in repr(ms.LennardJones(1.0, 1.0, 2.5))
    # What is not seen is no kink either: the two O are at the cutoff.
    three = ms.System([[0.0, 0.0, 0.0], [CUTOFF + 1e-9, 0.0, 0.0], [2.4, 0.0, 0.0]], species=["O", "O", "U"])
    assert float(np.abs(kink_gaps(cut, three.with_neighbors(cut))).min()) > 2.0
    eq = ms.relax(ms.System([[0.0, 0.0, 0.0], [2.4, 0.0, 0.0]], species=["O", "U"]), cut)
    ms.save(tmp_path / "out.h5", eq)
    assert ms.load(tmp_path / "out.h5")[0].potential.no_interaction == ("O-O", "U-U")


NOT_SEEN = {
    "not said": (lambda: ms.Morse(D0={"O-U": 0.6}, alpha=1.6, r0=2.4, cutoff=5.0), ["'O-O'", "no_interaction=('O-O',)"]),
    "both": (lambda: ms.Morse(D0={"O-U": 1, "O-O": 1}, alpha=1, r0=1, cutoff=5.0, no_interaction="O-O"), ["'O-O'", "leave out"]),
    "no pair": (
        lambda: ms.Morse(D0={"O-U": 0.6}, alpha=1.6, r0=2.4, cutoff=5.0, no_interaction=("O",)),
        ["pairs of species", "'O'"],
    ),
    "charges": (lambda: ms.Coulomb({"O": -2.0, "U": 4.0}, no_interaction=("O-O",)), ["charge 0"]),
}


@pytest.mark.parametrize(("make", "words"), NOT_SEEN.values(), ids=NOT_SEEN)
def test_pairs_that_are_missing_by_oversight_are_refused(make, words):
    refused(lambda: make().energy(ms.System([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]], species=["O", "U"])), *words)
