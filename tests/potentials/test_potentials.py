"""Potentials against LAMMPS, ASE, matscipy and jax-md, their derivatives against differences, and what they refuse."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.lj import LennardJones as LennardJonesOfASE
from ase.neighborlist import neighbor_list
from ase.units import GPa
from helpers import sw_entry
from lammps_reference import evaluate

import mdsens as ms
from mdsens.potentials.forms.switching import SMOOTHNESS, quintic, xplor
from mdsens.structures.packing import random_packing

ONSET, CUTOFF = 2.0, 2.5
EPSILON = {"A-A": 1.0, "A-B": 1.5, "B-B": 0.5}
SIGMA = {"A-A": 1.0, "A-B": 0.9, "B-B": 0.95}
SHEAR = np.eye(3) + np.array([[0.03, 0.08, -0.05], [0.0, -0.02, 0.1], [0.04, 0.0, 0.05]])


class Yukawa(ms.PairPotential):
    strength: dict
    kappa: float
    cutoff: float = ms.static(8.0)

    def pair_energy(self, r, i, j):
        return self.pair(self.strength, i, j) * jnp.exp(-self.kappa * r) / r


def deviation(found, expected) -> float:
    """Largest difference, relative to the largest number expected."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def tensor(voigt) -> np.ndarray:
    """The symmetric tensor of a Voigt vector (xx, yy, zz, yz, xz, xy; in 2-D xx, yy, xy)."""
    order = [[0, 5, 4], [5, 1, 3], [4, 3, 2]] if len(voigt) == 6 else [[0, 2], [2, 1]]
    return np.asarray(voigt)[np.array(order)]


# Structures, few and small, so that little is compiled


@functools.cache
def fluid(*labels, pbc=(True, True, True)):
    """32 atoms of a sheared, rattled fcc crystal, far from the origin; its cell is smaller than twice the cutoff."""
    atoms = bulk("Ar", "fcc", a=1.6, cubic=True) * 2
    positions = atoms.positions + 0.06 * np.random.default_rng(0).normal(size=atoms.positions.shape)
    return ms.System(
        positions @ SHEAR + [5.0, -20.0, 3.0], cell=atoms.cell.array @ SHEAR, pbc=pbc, species=list(labels) * (32 // len(labels))
    )


def planar():
    """32 atoms of a sheared, rattled square lattice."""
    x, y = np.meshgrid(np.arange(8.0), np.arange(4.0))
    positions = np.column_stack([x.ravel(), y.ravel()]) + 0.05 * np.random.default_rng(1).normal(size=(32, 2))
    shear = 1.05 * SHEAR[:2, :2]
    return ms.System(positions @ shear, cell=np.diag([8.0, 4.0]) @ shear, pbc=True, species=["A", "B"] * 16)


@functools.cache
def silicon_crystal(cubic=True):
    """A sheared, rattled diamond crystal: the cubic cell, or the primitive one whose atoms see their own images."""
    atoms = bulk("Si", cubic=cubic)
    positions = atoms.positions + 0.08 * np.random.default_rng(2).normal(size=atoms.positions.shape)
    return ms.System(positions @ SHEAR + 30.0, cell=atoms.cell.array @ SHEAR, pbc=True, species="Si")


@functools.cache
def packing():
    return random_packing(32, {"A": 1.0, "B": 0.6}, seed=1)


def sizes():
    return np.where(np.array(packing().symbols) == "A", 1.0, 0.6)


def lennard_jones(switch, *labels, onset=ONSET, cutoff=CUTOFF):
    one = len(labels) == 1
    onset = onset if switch in ("quintic", "xplor", "force_switch") else None
    epsilon, sigma = (1.3, 0.97) if one else (EPSILON, SIGMA)
    return ms.LennardJones(epsilon=epsilon, sigma=sigma, cutoff=cutoff, onset=onset, switch=switch)


# Lennard-Jones against LAMMPS and ASE


def lammps_commands(potential, system):
    style = {
        "xplor": f"lj/charmm/coul/charmm {ONSET} {CUTOFF}",
        "truncated": f"lj/cut {CUTOFF}",
        "shifted_force": f"lj/smooth/linear {CUTOFF}",
    }[potential.switch]
    yield f"pair_style {style}"
    for b, second in enumerate(system.labels):
        for a, first in enumerate(system.labels[: b + 1]):
            values = [
                float(parameter[f"{first}-{second}"] if isinstance(parameter, dict) else parameter)
                for parameter in (potential.epsilon, potential.sigma)
            ]
            yield f"pair_coeff {a + 1} {b + 1} {values[0]!r} {values[1]!r}"


def agrees_with_lammps(potential, system, commands):
    reference = evaluate(system, *commands)
    # The same sums in another order: rounding, far below the 1e-10 that is asked for.
    assert deviation(potential.energy(system), reference.energy) < 1e-10
    assert deviation(potential.forces(system), reference.forces) < 1e-10
    if system.cell is not None:
        # W = -V stress, hundreds of eV here.
        unit = GPa if system.dim == 3 else 1.0
        assert deviation(-system.volume * unit * tensor(potential.stress(system)), reference.virial) < 1e-9


@pytest.mark.parametrize("labels", [("A",), ("A", "B")], ids=["one species", "two species"])
@pytest.mark.parametrize("switch", ["xplor", "truncated", "shifted_force"])
def test_lennard_jones_agrees_with_lammps(switch, labels):
    potential, system = lennard_jones(switch, *labels), fluid(*labels)
    agrees_with_lammps(potential, system, lammps_commands(potential, system))


BOUNDARIES = {
    "slab": lambda: fluid("A", "B", pbc=(True, False, True)),
    "cluster": lambda: ms.System(fluid("A", "B").positions, species=["A", "B"] * 16),
    "planar": planar,
}


@pytest.mark.parametrize("make", BOUNDARIES.values(), ids=BOUNDARIES)
def test_lennard_jones_agrees_with_lammps_whatever_the_boundaries(make):
    potential, system = lennard_jones("truncated", "A", "B"), make()
    agrees_with_lammps(potential, system, lammps_commands(potential, system))


def test_xplor_is_the_smooth_cutoff_of_ase():
    potential, system = lennard_jones("xplor", "A"), fluid("A")
    atoms = system.to_ase()
    atoms.calc = LennardJonesOfASE(epsilon=1.3, sigma=0.97, rc=CUTOFF, ro=ONSET, smooth=True)
    assert deviation(potential.energy(system), atoms.get_potential_energy()) < 1e-10
    assert deviation(potential.energies(system), atoms.get_potential_energies()) < 1e-10
    assert deviation(potential.forces(system), atoms.get_forces()) < 1e-10
    assert deviation(GPa * potential.stress(system), atoms.get_stress()) < 1e-10


def test_truncated_is_ase_s_lennard_jones_without_its_shift():
    potential, system = lennard_jones("truncated", "A"), fluid("A")
    atoms = system.to_ase()
    atoms.calc = LennardJonesOfASE(epsilon=1.3, sigma=0.97, rc=CUTOFF)
    # ASE lifts each pair by -φ(r_c), which moves the energy only.
    edge = 4 * 1.3 * ((0.97 / CUTOFF) ** 12 - (0.97 / CUTOFF) ** 6)
    pairs = len(neighbor_list("i", atoms, CUTOFF)) / 2
    assert deviation(potential.energy(system), atoms.get_potential_energy() + pairs * edge) < 1e-10
    assert deviation(potential.forces(system), atoms.get_forces()) < 1e-10
    assert deviation(GPa * potential.stress(system), atoms.get_stress()) < 1e-10


@pytest.mark.parametrize("switch", [name for name in SMOOTHNESS if name != "force_switch"])  # that is LAMMPS's lj/gromacs
def test_a_dimer_has_the_energy_of_the_formula(switch):
    def phi(r):
        return 4 * 1.3 * ((0.97 / r) ** 12 - (0.97 / r) ** 6)

    potential = lennard_jones(switch, "A")
    for r in (1.0, 2.1, 2.3, 2.4999, 2.6):
        x = max(0.0, (r - ONSET) / (CUTOFF - ONSET))
        r2, o2, c2 = max(r, ONSET) ** 2, ONSET**2, CUTOFF**2
        factor = {
            "quintic": 1 - 10 * x**3 + 15 * x**4 - 6 * x**5,
            "xplor": (c2 - r2) ** 2 * (c2 + 2 * r2 - 3 * o2) / (c2 - o2) ** 3,
        }.get(switch, 1.0)
        slope = 4 * 1.3 * (-12 * (0.97 / CUTOFF) ** 12 + 6 * (0.97 / CUTOFF) ** 6) / CUTOFF
        shift = phi(CUTOFF) + (r - CUTOFF) * slope if switch == "shifted_force" else 0.0
        expected = phi(r) * factor - shift if r < CUTOFF else 0.0
        dimer = ms.System([[0.0, 0.0, 0.0], [0.0, r, 0.0]])
        # Near the cutoff 1 - 10x³ + ... is a difference of numbers of order 10.
        np.testing.assert_allclose(potential.energy(dimer), expected, rtol=1e-12, atol=1e-14)


# Stillinger-Weber against LAMMPS and matscipy


@pytest.mark.parametrize("cubic", [True, False], ids=["cubic cell, sheared", "cell smaller than the cutoff"])
def test_stillinger_weber_agrees_with_lammps(cubic, silicon, tmp_path):
    file = tmp_path / "Si.sw"
    file.write_text(sw_entry(silicon) + "\n")
    system = silicon_crystal(cubic)
    agrees_with_lammps(silicon, system, ["pair_style sw", f"pair_coeff * * {file} Si"])


def test_other_parameters_of_stillinger_weber_agree_with_lammps(silicon, tmp_path):
    # Each of them away from its value for silicon, exponents too, so that none can hide behind another.
    changed = {"epsilon": 1.7, "sigma": 2.2, "a": 1.9, "lam": 17.0, "gamma": 1.05, "costheta0": -0.21, "A": 6.1, "B": 0.7}
    file = tmp_path / "other.sw"
    file.write_text(sw_entry(silicon, p=5.5, q=1.0, **changed) + "\n")
    system = silicon_crystal()
    agrees_with_lammps(ms.StillingerWeber.from_file(file), system, ["pair_style sw", f"pair_coeff * * {file} Si"])


def test_stillinger_weber_agrees_with_matscipy_to_second_order(silicon):
    manybody = pytest.importorskip("matscipy.calculators.manybody", reason="matscipy is not installed (pip install matscipy)")
    from matscipy.calculators.manybody.explicit_forms.stillinger_weber import Stillinger_Weber_PRB_31_5262_Si as published

    # matscipy stores -cos θ₀ with twelve digits; all others are the numbers of the paper, as ours are.
    atoms = silicon_crystal().to_ase()
    atoms.calc = manybody.Manybody(**manybody.StillingerWeber({**published, "costheta0": 1.0 / 3.0}))
    system = silicon_crystal().with_neighbors(silicon)
    assert deviation(silicon.energy(system), atoms.get_potential_energy()) < 1e-10
    assert deviation(silicon.forces(system), atoms.get_forces()) < 1e-10
    assert deviation(GPa * silicon.stress(system), atoms.get_stress()) < 1e-10
    hessian = jax.jit(jax.hessian(lambda x: silicon.energy(system.with_positions(x.reshape(-1, 3)))))(system.positions.ravel())
    # Two analytic Hessians of the same formula: rounding.
    assert deviation(hessian, atoms.calc.get_property("hessian", atoms).todense()) < 1e-7


def test_stillinger_weber_vanishes_at_its_cutoff(silicon):
    # 1.8 · 2.3925: half of all directions give a vector whose rounded length is aσ, the square of which is below (aσ)².
    potential = eqx.tree_at(lambda p: p.sigma, silicon, jnp.asarray(2.3925))
    direction = np.random.default_rng(0).normal(size=(8, 3))
    for bond in float(potential.range) * direction / np.linalg.norm(direction, axis=1)[:, None]:
        dimer = ms.System([np.zeros(3), bond], species="Si")
        assert float(potential.energy(dimer)) == 0.0
        np.testing.assert_array_equal(potential.forces(dimer), 0.0)


# Soft spheres and the wrapper against jax-md


@pytest.fixture(scope="module")
def jax_md():
    import jax_md.energy
    import jax_md.space

    return jax_md


def soft_sphere_arguments(jax_md):
    side = float(packing().cell[0, 0])
    return jax_md.space.periodic(side)[0], side


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [2.0, 2.5], ids=["harmonic", "Hertz"])
def test_soft_spheres_agree_with_jax_md(alpha, jax_md):
    displacement, _ = soft_sphere_arguments(jax_md)
    system = packing()
    sizes = jnp.array([[1.0, 0.8], [0.8, 0.6]])
    # Bare numbers, even jnp.asarray(1.7), jax-md would round to single precision.
    strength = jnp.asarray(1.7, jnp.float64)
    energy = jax_md.energy.soft_sphere_pair(displacement, species=system.species, sigma=sizes, epsilon=strength, alpha=alpha)
    potential = ms.SoftSphere(diameter={"A": 1.0, "B": 0.6}, epsilon=1.7, alpha=alpha)
    # The same few hundred terms: rounding.
    assert deviation(potential.energy(system), energy(system.positions)) < 1e-12
    assert deviation(potential.forces(system), -jax.grad(energy)(system.positions)) < 1e-12


def test_xplor_is_jax_md_s_switch(jax_md):
    r = jnp.linspace(1.5, 2.6, 1001)
    expected = jax_md.energy.multiplicative_isotropic_cutoff(jnp.ones_like, ONSET, CUTOFF)(r)
    np.testing.assert_allclose(xplor(r, ONSET, CUTOFF), expected, atol=1e-14)  # numbers up to 1, the same polynomial


@pytest.fixture(scope="module")
def wrapped(jax_md):
    """Soft spheres of diameter 1 by jax-md, over all pairs and with jax-md's neighbour list."""
    displacement, side = soft_sphere_arguments(jax_md)
    over_pairs = jax_md.energy.soft_sphere_pair(displacement)
    neighbor_fn, over_list = jax_md.energy.soft_sphere_neighbor_list(displacement, side, dr_threshold=0.2)
    return {
        "all pairs": ms.JaxMD(over_pairs, sigma=1.0, epsilon=1.7),
        "neighbour list": ms.JaxMD(over_list, neighbor_fn=neighbor_fn, sigma=1.0, epsilon=1.7),
    }


@pytest.mark.parametrize("road", ["all pairs", "neighbour list"])
def test_a_wrapped_energy_is_ours(road, wrapped):
    theirs, ours, system = wrapped[road], ms.SoftSphere(diameter=1.0, epsilon=1.7), packing()
    assert float(theirs.sigma) == 1.0 and set(theirs.parameters()) == {"sigma", "epsilon"}
    (value, slope), (energy, expected) = (jax.value_and_grad(lambda p: p.energy(system))(p) for p in (theirs, ours))
    # The same few hundred terms, summed in another order.
    np.testing.assert_allclose(value, energy, rtol=1e-12)
    np.testing.assert_allclose(slope.epsilon, expected.epsilon, rtol=1e-12)
    np.testing.assert_allclose(slope.sigma, expected.diameter, rtol=1e-12)


@pytest.mark.parametrize("road", ["all pairs", "neighbour list"])
def test_a_wrapped_energy_follows_atoms_that_move_far_and_out_of_the_cell(road, wrapped):
    theirs, ours = wrapped[road], ms.SoftSphere(diameter=1.0, epsilon=1.7)
    assert deviation(theirs.forces(packing()), ours.forces(packing())) < 1e-12
    system = packing().with_neighbors(theirs)
    there = packing().positions + 0.5 * np.random.default_rng(4).normal(size=(32, 2))
    value, slope = jax.jit(jax.value_and_grad(lambda x: theirs.energy(system.with_positions(x))))(there)
    assert not np.isnan(value)
    moved = packing().with_positions(there)
    assert deviation(value, ours.energy(moved)) < 1e-12
    assert deviation(-slope, ours.forces(moved)) < 1e-12


def test_a_wrapped_energy_has_no_stress(wrapped):
    with pytest.raises(ms.InputError, match="cell"):
        wrapped["all pairs"].stress(packing())
    with pytest.raises(ms.InputError, match="energy function"):
        ms.JaxMD((1, 2))


# Derivatives of every potential, against differences


def calm(system, near):
    """A distance that no pair is near to, so that differences do not meet a kink there: the middle of the widest gap."""
    r = np.sort(neighbor_list("d", system.to_ase(), near + 0.1))
    r = r[r > near - 0.1]
    widest = np.diff(r).argmax()
    return float(0.5 * (r[widest] + r[widest + 1]))


def switched(switch):
    system = fluid("A", "B")
    return lennard_jones(switch, "A", "B", onset=calm(system, ONSET), cutoff=calm(system, CUTOFF)), system


CASES = {
    **{f"Lennard-Jones, {switch}": functools.partial(switched, switch) for switch in ("quintic", "xplor", "shifted_force")},
    "harmonic spheres": lambda: (ms.SoftSphere(diameter={"A": 1.0, "B": 0.6}, epsilon=1.0), packing()),
    "Hertzian spheres, one diameter each": lambda: (ms.SoftSphere(diameter=sizes(), epsilon=EPSILON, alpha=2.5), packing()),
    "Stillinger-Weber": lambda: (ms.StillingerWeber.silicon(), silicon_crystal()),
    "a user's Yukawa": lambda: (Yukawa(EPSILON, 1.5, cutoff=calm(fluid("A", "B"), CUTOFF)), fluid("A", "B")),
}


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def case(request):
    return request.param()


def by_differences(f, h):
    """Central differences of the function of one number f at 0, with the term of order h² taken out."""
    return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)


def energy_of(potential, system, displacement, strain):
    """The energy after a homogeneous strain of atoms and cell, and a displacement."""
    deformation = np.eye(system.dim) + strain
    positions, cell = system.positions @ deformation + displacement, system.cell @ deformation
    return float(potential.energy(ms.System(positions, cell=cell, pbc=system.pbc, species=system.symbols)))


def test_forces_are_minus_the_gradient_of_the_energy(case):
    potential, system = case
    forces = np.asarray(potential.forces(system))
    for seed in range(3):
        step = np.random.default_rng(seed).uniform(-1.0, 1.0, forces.shape)
        slope = by_differences(lambda h, step=step: energy_of(potential, system, h * step, 0.0), 1e-4)
        # Rounding 1e-15 E / h = 1e-11 E and truncation h⁴ = 1e-16 times a fifth derivative of up to 1e6.
        np.testing.assert_allclose(slope, -np.vdot(forces, step), atol=1e-8 * np.abs(forces).sum())
    # Nothing pushes the whole; rounding of 32 forces.
    np.testing.assert_allclose(forces.sum(axis=0), 0.0, atol=1e-12 * np.abs(forces).sum())
    np.testing.assert_allclose(jnp.sum(potential.energies(system)), potential.energy(system), rtol=1e-13)


def test_stress_is_the_derivative_by_strain(case):
    potential, system = case
    dim = system.dim
    slopes = []
    for a, b in [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)] if dim == 3 else [(0, 0), (1, 1), (0, 1)]:
        unit = np.zeros((dim, dim))
        unit[a, b] += 0.5
        unit[b, a] += 0.5
        slopes.append(by_differences(lambda h, unit=unit: energy_of(potential, system, 0.0, h * unit), 1e-4))
    # As for the forces; a strain of 1e-4 changes distances of 2.5 Å by as much.
    assert deviation(np.array(slopes) / float(system.volume), potential.stress(system) * (GPa if dim == 3 else 1.0)) < 1e-8


@pytest.mark.slow
def test_second_derivatives_are_finite_and_do_not_depend_on_the_road(case):
    potential, system = case
    system = system.with_neighbors(potential)  # with pairs beyond the cutoff and unused places in it
    # One vector of all parameters and positions, so that mixed derivatives are in it too.
    point, unravel = jax.flatten_util.ravel_pytree((potential, system.positions))

    def energy(v):
        p, x = unravel(v)
        return p.energy(system.with_positions(x))

    slope = jax.jit(jax.grad(energy))
    reverse, forward = jax.jit(jax.jacrev(jax.grad(energy)))(point), jax.jit(jax.jacfwd(jax.grad(energy)))(point)
    assert np.isfinite(reverse).all()
    # The same numbers by two programs: rounding, relative to the largest.
    assert deviation(reverse, forward) < 1e-12
    assert deviation(reverse, reverse.T) < 1e-12
    direction = np.random.default_rng(5).normal(size=point.shape)
    along = by_differences(lambda h: np.asarray(slope(point + h * direction)), 1e-6)
    # Rounding 1e-15 / 1e-6 of the slope; a pair that crosses a jump of the second derivative would show as 1e-3.
    assert deviation(reverse @ direction, along) < 1e-6


# Switches


@pytest.mark.parametrize("edge", [ONSET, CUTOFF], ids=["onset", "cutoff"])
@pytest.mark.parametrize("switch", [quintic, xplor])
def test_a_switch_is_as_smooth_as_declared_and_no_smoother(switch, edge):
    continuous = SMOOTHNESS[switch.__name__]
    derivative, jumps, near = (lambda r: switch(r, ONSET, CUTOFF)), [], 1e-7
    for _ in range(continuous + 2):
        jumps.append(abs(float(derivative(edge + near)) - float(derivative(edge - near))))
        derivative = jax.grad(derivative)
    # A continuous derivative changes by 2e-7 times the next one, which is at most 60 / 0.5³; a jump is of that order itself.
    assert max(jumps[:-1]) < 1e-3
    assert jumps[-1] > 1.0


@pytest.mark.parametrize("switch", [quintic, xplor])
def test_a_switch_goes_from_one_to_zero(switch):
    ends = [float(switch(jnp.asarray(r), ONSET, CUTOFF)) for r in (0.9 * ONSET, ONSET, CUTOFF, 1.1 * CUTOFF)]
    np.testing.assert_allclose(ends, [1.0, 1.0, 0.0, 0.0], atol=1e-14)  # rounding of numbers of order 10
    between = switch(jnp.linspace(ONSET, CUTOFF, 101), ONSET, CUTOFF)
    assert (np.diff(between) < 0).all()


def test_shifted_force_brings_energy_and_force_to_zero():
    potential = lennard_jones("shifted_force", "A")
    dimer = ms.System([[0.0, 0, 0], [CUTOFF - 1e-6, 0, 0]])
    # At 1e-6 from the cutoff: slope of the force times 1e-6, and half its square.
    assert 0.0 < abs(float(potential.forces(dimer)[0, 0])) < 1e-6
    assert abs(float(potential.energy(dimer))) < 1e-12


@pytest.mark.parametrize(
    ("potential", "derivatives"),
    [
        (lambda: lennard_jones("quintic", "A"), 2),
        (lambda: lennard_jones("force_switch", "A"), 2),
        (lambda: lennard_jones("xplor", "A"), 1),
        (lambda: lennard_jones("shifted_force", "A"), 1),
        (lambda: lennard_jones("truncated", "A"), -1),
        (lambda: ms.SoftSphere(diameter=1.0, epsilon=1.0), 1),
        (lambda: ms.SoftSphere(diameter=1.0, epsilon=1.0, alpha=2.5), 2),
        (lambda: ms.SoftSphere(diameter=1.0, epsilon=1.0, alpha=3), 2),
        (lambda: ms.StillingerWeber.silicon(), np.inf),
        (lambda: Yukawa(1.0, 1.0), -1),
    ],
)
def test_potentials_say_how_smooth_they_are(potential, derivatives):
    assert potential().smoothness == derivatives


# Parameters


def test_keys_are_accepted_in_either_order():
    given = ms.LennardJones(epsilon={"B-A": 1.5, "B-B": 0.5, "A-A": 1.0}, sigma=SIGMA, cutoff=CUTOFF, onset=ONSET)
    usual = lennard_jones("quintic", "A", "B")
    assert jax.tree.structure(given) == jax.tree.structure(usual)
    assert list(given.epsilon) == ["A-A", "A-B", "B-B"]
    assert [float(leaf) for leaf in jax.tree.leaves(given)] == [float(leaf) for leaf in jax.tree.leaves(usual)]


def test_numbers_become_parameters_and_static_fields_do_not():
    potential = ms.LennardJones(epsilon=1, sigma=np.float64(2.0), cutoff=5, onset=4)
    assert [leaf.dtype for leaf in jax.tree.leaves(potential)] == [jnp.float64] * 2
    assert set(potential.parameters()) == {"epsilon", "sigma"}
    hash((potential.cutoff, potential.onset, potential.switch))


def test_one_diameter_for_each_particle():
    each, labelled = ms.SoftSphere(diameter=sizes(), epsilon=1.0), ms.SoftSphere(diameter={"A": 1.0, "B": 0.6}, epsilon=1.0)
    system = packing()
    # The same numbers, looked up in two ways.
    np.testing.assert_allclose(each.energy(system), labelled.energy(system), rtol=1e-14)
    np.testing.assert_allclose(each.forces(system), labelled.forces(system), atol=1e-14)
    slope, by_label = (jax.grad(lambda p: p.energy(system))(p).diameter for p in (each, labelled))
    assert slope.shape == (32,)
    for label in "AB":
        np.testing.assert_allclose(slope[np.array(system.symbols) == label].sum(), by_label[label], rtol=1e-12)


def test_a_user_s_potential_in_five_lines():
    potential, system = Yukawa({"B-A": 1.5, "A-A": 1.0, "B-B": 0.5}, 1.5, cutoff=CUTOFF), fluid("A", "B")
    i, j, r = neighbor_list("ijd", system.to_ase(), CUTOFF)
    labels = np.array(system.symbols)
    kinds = np.array(["-".join(sorted(pair)) for pair in zip(labels[i], labels[j], strict=True)])
    strength = np.array([EPSILON[kind] for kind in kinds])
    screened = 0.5 * np.exp(-1.5 * r)
    np.testing.assert_allclose(potential.energy(system), (strength * screened / r).sum(), rtol=1e-13)
    slope = jax.grad(lambda p: p.energy(system))(potential)
    np.testing.assert_allclose(slope.kappa, -(strength * screened).sum(), rtol=1e-13)
    for kind in EPSILON:
        np.testing.assert_allclose(slope.strength[kind], (screened / r)[kinds == kind].sum(), rtol=1e-13)
    assert type(slope) is Yukawa and slope.cutoff == CUTOFF


def test_parameters_that_outgrow_a_list_give_no_number_rather_than_a_wrong_one(silicon):
    system = silicon_crystal().with_neighbors(silicon, skin=0.1)
    longer = eqx.tree_at(lambda p: p.sigma, silicon, 1.2 * silicon.sigma)
    inside = jax.jit(lambda p, x: p.energy(system.with_positions(x)))
    assert np.isfinite(inside(silicon, system.positions))
    assert np.isnan(inside(longer, system.positions))
    # With concrete positions the list is made anew, and the range is that of the new parameters.
    assert np.isfinite(longer.energy(system))


def test_positions_that_are_not_finite_give_no_number_under_jit():
    system = ms.System([[0.0, 0, 0], [1.1, 0, 0]]).with_neighbors(lennard_jones("quintic", "A"))
    potential = lennard_jones("quintic", "A")
    assert np.isnan(jax.jit(lambda x: potential.energy(system.with_positions(x)))(system.positions * jnp.nan))
    assert np.isnan(jax.jit(lambda x: potential.forces(system.with_positions(x)))(system.positions * jnp.nan)).all()


def test_positions_that_outran_their_list_give_no_number_rather_than_a_wrong_one():
    potential = lennard_jones("quintic", "A")
    system = ms.System([[0.0, 0, 0], [1.1, 0, 0], [4.0, 0, 0]]).with_neighbors(potential)
    there = jnp.array([[0.0, 0, 0], [1.1, 0, 0], [2.4, 0, 0]])
    value = jax.jit(lambda x: potential.energy(system.with_positions(x)))(there)
    assert np.isnan(value) or np.isclose(value, potential.energy(system.with_positions(there)), rtol=1e-12)


def test_single_precision_is_a_choice(silicon):
    system, short = silicon_crystal(), silicon_crystal().astype("float32")
    with pytest.raises(ms.InputError, match="one precision"):
        silicon.energy(short)
    energy = silicon.astype("float32").energy(short)
    assert energy.dtype == jnp.float32
    np.testing.assert_allclose(energy, silicon.energy(system), rtol=1e-5)  # coordinates of 30 Å to 2e-6
