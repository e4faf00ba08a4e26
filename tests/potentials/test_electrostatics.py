"""Induced dipoles and equilibrated charges against explicit loops, direct solves and closed forms in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import relaxed
from helpers import refused
from jax.flatten_util import ravel_pytree
from scipy.special import erf

import mdsens as ms
from mdsens.common.units import COULOMB
from mdsens.equilibrium.with_charges import relax_with_charges
from mdsens.potentials.base import parameter_paths
from mdsens.potentials.electrostatics import ChargeEquilibration, InducedDipoles, WithCharges
from mdsens.potentials.electrostatics.kernels import gaussian_coulomb

SPECIES = ["A", "B", "B", "A", "B"]
POSITIONS = np.array([[0.0, 0.1, 0.0], [2.1, 0.0, 0.3], [-0.2, 2.4, 0.1], [0.3, -0.1, 2.2], [2.0, 2.2, 1.9]])
SYSTEM = ms.System(POSITIONS, species=SPECIES)
DIPOLES = InducedDipoles(polarizability={"A": 0.8, "B": 1.6}, charge=[0.7, -0.5, -0.2, 0.4, -0.4], thole=0.39)
CHARGES = ChargeEquilibration(
    electronegativity={"A": 3.0, "B": 8.5}, hardness={"A": 11.0, "B": 14.0}, width=[0.8, 0.9, 0.7, 0.8, 1.0], total_charge=0.3
)
MODELS = {"dipoles": DIPOLES, "charges": CHARGES}


# The same physics in loops


def of_atoms(parameter, species):
    if isinstance(parameter, dict):
        return np.array([float(parameter[label]) for label in species])
    return np.broadcast_to(np.asarray(parameter, float), len(species))


def reference_dipoles(model, positions, species):
    """`(dipoles, energy)` by one direct solve."""
    n, x = len(positions), np.asarray(positions)
    alpha, charge, a = of_atoms(model.polarizability, species), of_atoms(model.charge, species), float(model.thole)
    field, matrix = np.zeros((n, 3)), np.zeros((n, 3, n, 3))
    for i in range(n):
        matrix[i, :, i, :] = np.eye(3) / alpha[i]
        for j in range(n):
            if i == j:
                continue
            d = x[i] - x[j]
            r = np.linalg.norm(d)
            u = r / (alpha[i] * alpha[j]) ** (1 / 6)
            lambda3, lambda5 = 1 - np.exp(-a * u**3), 1 - (1 + a * u**3) * np.exp(-a * u**3)
            field[i] += charge[j] * lambda3 * d / r**3
            matrix[i, :, j, :] = -(3 * lambda5 * np.outer(d, d) / r**5 - lambda3 * np.eye(3) / r**3)
    dipoles = np.linalg.solve(matrix.reshape(3 * n, 3 * n), field.ravel()).reshape(n, 3)
    return dipoles, -0.5 * COULOMB * np.sum(dipoles * field)


def reference_charges(model, positions, species):
    """`(charges, energy)` by the bordered system, the multiplier being its last unknown."""
    n, x = len(positions), np.asarray(positions)
    chi, eta, s = (of_atoms(p, species) for p in (model.electronegativity, model.hardness, model.width))
    matrix = np.zeros((n + 1, n + 1))
    matrix[:n, n] = matrix[n, :n] = -1.0
    for i in range(n):
        matrix[i, i] = eta[i]
        for j in range(n):
            if i != j:
                r = np.linalg.norm(x[i] - x[j])
                matrix[i, j] = COULOMB * erf(r / np.sqrt(2 * (s[i] ** 2 + s[j] ** 2))) / r
    charges = np.linalg.solve(matrix, [*(-chi), -float(model.total_charge)])[:n]
    return charges, chi @ charges + 0.5 * charges @ matrix[:n, :n] @ charges


REFERENCES = {"dipoles": reference_dipoles, "charges": reference_charges}


def differences(f, flat):
    """`(size, derivatives)`: central Richardson differences in steps of 1e-3 of each component's size, at least 1."""
    size = np.maximum(np.abs(flat), 1.0)
    columns = []
    for k, step in enumerate(1e-3 * size):
        values = {m: f(flat + m * step * np.eye(len(flat))[k]) for m in (-2, -1, 1, 2)}
        columns.append((8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * step))
    return size, np.stack(columns, axis=-1)


def assert_derivative(derivative, f, flat, tolerance):
    """On the scale θ d/dθ, relative to the largest."""
    size, expected = differences(f, np.asarray(flat))
    error = np.abs(size * (np.asarray(derivative) - expected)).max() / np.abs(size * expected).max()
    assert error < tolerance, error


@pytest.mark.parametrize("name", MODELS)
def test_states_and_their_derivatives_in_parameters_and_positions(name):
    model, reference = MODELS[name], REFERENCES[name]
    flat, unravel = ravel_pytree((model, SYSTEM.positions))

    def state(flat):
        model, positions = unravel(flat)
        return model.state(SYSTEM.with_positions(positions)).ravel()

    expected, energy = reference(model, POSITIONS, SPECIES)
    np.testing.assert_allclose(getattr(model, name)(SYSTEM), expected, atol=1e-13)
    np.testing.assert_allclose(model.energy(SYSTEM), energy, rtol=1e-13)
    assert_derivative(jax.jit(jax.jacfwd(state))(flat), lambda theta: reference(*unravel(theta), SPECIES)[0].ravel(), flat, 1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_forces_are_differences_of_energies_and_have_derivatives_themselves(name):
    model, reference = MODELS[name], REFERENCES[name]
    flat, unravel = ravel_pytree((model, SYSTEM.positions))

    @jax.jit
    def slope_and_product(flat, direction):
        def energy(flat):
            model, positions = unravel(flat)
            return model.energy(SYSTEM.with_positions(positions))

        return jax.jvp(jax.grad(energy), (flat,), (direction,))

    slope, curved = slope_and_product(flat, jnp.ones_like(flat))
    assert_derivative(slope, lambda theta: reference(*unravel(theta), SPECIES)[1], flat, 1e-9)
    np.testing.assert_allclose(model.forces(SYSTEM).ravel(), -slope[-POSITIONS.size :], atol=1e-12)
    np.testing.assert_allclose(model.forces(SYSTEM).sum(axis=0), 0.0, atol=1e-12)
    expected = differences(lambda h: slope_and_product(flat + h[0], jnp.ones_like(flat))[0], np.zeros(1))[1][:, 0]
    np.testing.assert_allclose(curved, expected, atol=1e-8 * np.abs(expected).max())


@pytest.mark.parametrize("name", MODELS)
def test_rotations_translations_and_permutations_change_nothing(name):
    model = MODELS[name]
    state, energy = model.state(SYSTEM), model.energy(SYSTEM)
    turn, _ = np.linalg.qr(np.random.default_rng(4).normal(size=(3, 3)))
    moved = SYSTEM.with_positions(SYSTEM.positions @ turn.T + jnp.array([30.0, -7.0, 2.0]))
    np.testing.assert_allclose(model.energy(moved), energy, rtol=1e-12)
    np.testing.assert_allclose(model.state(moved), state @ turn.T if name == "dipoles" else state, atol=1e-12)
    order = np.array([3, 1, 0, 4, 2])
    shuffled = ms.System(POSITIONS[order], species=[SPECIES[k] for k in order])
    permuted = jax.tree.map(lambda leaf: leaf[order] if leaf.ndim else leaf, model)
    np.testing.assert_allclose(permuted.energy(shuffled), energy, rtol=1e-13)
    np.testing.assert_allclose(permuted.state(shuffled), state[order], atol=1e-13)


def test_a_parameter_may_be_one_number_a_dict_or_one_value_per_atom():
    energies = [
        InducedDipoles(polarizability=alpha, charge=charge, thole=0.39).energy(SYSTEM)
        for alpha, charge in [(1.2, {"A": 0.6, "B": -0.4}), ({"A": 1.2, "B": 1.2}, [0.6, -0.4, -0.4, 0.6, -0.4])]
    ]
    assert energies[0] == pytest.approx(float(energies[1]), rel=1e-14)


def test_the_charges_keep_their_sum():
    assert abs(float(jnp.sum(CHARGES.charges(SYSTEM))) - 0.3) < 1e-14
    gradient = jax.grad(lambda model: jnp.sum(model.charges(SYSTEM)))(CHARGES)
    assert gradient.total_charge == pytest.approx(1.0, abs=1e-13)
    others = ravel_pytree((gradient.electronegativity, gradient.hardness, gradient.width))[0]
    np.testing.assert_allclose(others, 0.0, atol=1e-14)


# Closed forms


def test_the_polarizability_of_a_diatomic_in_a_uniform_field():
    """L. Silberstein, Philos. Mag. 33, 521 (1917): α∥ and α⊥ of two point polarizabilities."""
    a, b, r, far = 0.9, 1.7, 2.0, 1e6
    parallel = (a + b + 4 * a * b / r**3) / (1 - 4 * a * b / r**6)
    normal = (a + b - 2 * a * b / r**3) / (1 - a * b / r**6)
    # Two charges far away on both sides make a field of one unit, uniform to (r / far)².
    model = InducedDipoles(polarizability=[a, b, 1e-9, 1e-9], charge=[0.0, 0.0, far**2 / 2, -(far**2) / 2], thole=1e3, mixing=1.0)
    for direction, expected in [(0, parallel), (1, normal)]:
        x = np.zeros((4, 3))
        x[0, 0], x[1, 0] = -r / 2, r / 2
        x[2, direction], x[3, direction] = -far, far
        system = ms.System(x)
        dipole = model.dipoles(system)[:2].sum(axis=0)
        np.testing.assert_allclose(dipole, expected * np.eye(3)[direction], atol=1e-9)
        assert model.contraction(system) == pytest.approx(2 * np.sqrt(a * b) / r**3, rel=1e-9)


def test_two_atoms_share_charge_by_their_electronegativities():
    system = ms.System([[0.0, 0.0, 0.0], [1.9, 0.0, 0.0]], species=["A", "B"])
    model = ChargeEquilibration(electronegativity={"A": 3.0, "B": 8.5}, hardness={"A": 11.0, "B": 14.0}, width=0.8)
    coulomb = COULOMB * erf(1.9 / np.sqrt(4 * 0.8**2)) / 1.9
    assert model.charges(system)[0] == pytest.approx(5.5 / (25.0 - 2 * coulomb), rel=1e-12)


def test_gaussian_charges_are_smooth_where_they_coincide():
    c2 = 1.3
    r2 = np.array([0.0, 1e-12, 0.2, 0.3, 0.3249999, 0.3250001, 0.4, 9.0])

    @jax.jit
    @jax.vmap
    def derivatives(r2):
        slope = jax.grad(gaussian_coulomb)
        return gaussian_coulomb(r2, c2), slope(r2, c2), jax.grad(slope)(r2, c2)

    values, slope, bend = derivatives(r2)
    r = np.sqrt(r2[1:])
    np.testing.assert_allclose(values[1:], erf(r / np.sqrt(c2)) / r, rtol=1e-14)
    assert values[0] == pytest.approx(2 / np.sqrt(np.pi * c2), rel=1e-15)
    assert slope[0] == pytest.approx(-2 / (3 * np.sqrt(np.pi) * c2**1.5), rel=1e-14)
    exact = (2 * np.exp(-(r**2) / c2) / np.sqrt(np.pi * c2) - erf(r / np.sqrt(c2)) / r) / (2 * r**2)
    np.testing.assert_allclose(slope[2:], exact[1:], rtol=1e-13)
    assert bend[0] == pytest.approx(2 / np.sqrt(np.pi) / 5 / c2**2.5, rel=1e-13)
    assert bend[4] == pytest.approx(float(bend[5]), rel=1e-6)


# Contraction


def test_a_polarisation_catastrophe_is_refused_with_its_spectral_radius():
    system = ms.System([[0.0, 0.0, 0.0], [1.4, 0.0, 0.0]])
    model = InducedDipoles(polarizability=1.6, charge=0.5, thole=1e3)
    radius = f"{2 * 1.6 / 1.4**3:.6g}"
    for call in (model.dipoles, model.energy, model.forces):
        with pytest.raises(ms.ConvergenceError, match=f"InducedDipoles .* is {radius}, .*polarisation catastrophe"):
            call(system)
    with pytest.raises(ms.ConvergenceError, match=f"is {radius}, "):
        jax.grad(lambda alpha: InducedDipoles(polarizability=alpha, charge=0.5, thole=1e3).dipoles(system).sum())(1.6)
    assert f"{model.contraction(system):.6g}" == radius


def test_inside_transformations_what_does_not_settle_is_nan_and_leaves_the_others_alone():
    factors = jnp.array([1.0, 40.0, 0.5])

    def dipoles(factor):
        alpha = {label: factor * value for label, value in DIPOLES.polarizability.items()}
        return InducedDipoles(polarizability=alpha, charge=DIPOLES.charge, thole=10.0).dipoles(SYSTEM)

    found = jax.jit(jax.vmap(dipoles))(factors)
    assert jnp.isnan(found[1]).all()
    for k in (0, 2):
        np.testing.assert_allclose(found[k], dipoles(factors[k]), atol=1e-13)
    with pytest.raises(ms.ConvergenceError):
        dipoles(factors[1])


def test_mixing_settles_charges_that_only_overshoot():
    chain = ms.System(1.2 * np.arange(12)[:, None] * np.eye(3)[:1], species=["A", "B"] * 6)
    settings = {"electronegativity": {"A": 3.0, "B": 8.5}, "hardness": 12.0, "width": 1.0}
    with pytest.raises(ms.ConvergenceError, match=r"ChargeEquilibration .* smaller mixing"):
        ChargeEquilibration(**settings).charges(chain)
    mixed = ChargeEquilibration(**settings, mixing=0.4)
    assert mixed.contraction(chain) < 1.0
    np.testing.assert_allclose(mixed.charges(chain), reference_charges(mixed, chain.positions, chain.symbols)[0], atol=1e-12)


# Refusals


def test_what_makes_no_sense_is_refused():
    good = {"polarizability": 1.0, "charge": 0.5, "thole": 0.39}
    qeq = {"electronegativity": 3.0, "hardness": 11.0, "width": 0.8}
    refused(lambda: InducedDipoles(**good | {"polarizability": {"A": 1.0, "B": -1.0}}), "polarizability", "positive")
    refused(lambda: InducedDipoles(**good | {"thole": 0.0}), "thole", "positive")
    refused(lambda: InducedDipoles(**good | {"thole": {"A": 0.39}}), "thole", "one number")
    refused(lambda: InducedDipoles(**good | {"charge": np.zeros((5, 3))}), "charge", "one value per atom")
    refused(lambda: InducedDipoles(**good, mixing=0.0), "mixing")
    refused(lambda: ChargeEquilibration(**qeq | {"hardness": [1.0, -2.0]}), "hardness", "positive")
    refused(lambda: ChargeEquilibration(**qeq | {"width": 0.0}), "width", "positive")
    refused(lambda: ChargeEquilibration(**qeq | {"total_charge": [0.0, 1.0]}), "total_charge", "one number")
    refused(lambda: InducedDipoles(**good | {"charge": {"A": 1.0}}).energy(SYSTEM), "charge", "'B'")
    refused(lambda: InducedDipoles(**good | {"charge": [1.0, 2.0]}).energy(SYSTEM), "charge", "2 values for 5 atoms")
    crystal = ms.System(POSITIONS, cell=np.eye(3) * 9.0, pbc=True, species=SPECIES)
    for model in (InducedDipoles(**good), ChargeEquilibration(**qeq)):
        for call in (model.state, model.energy, model.contraction):
            refused(lambda call=call: call(crystal), "periodic", "Ewald")
    twice = ms.System(np.zeros((2, 3)))
    with pytest.raises(ms.InputError, match="Atoms 0 and 1 coincide"):
        InducedDipoles(**good).dipoles(twice)
    assert np.isfinite(ChargeEquilibration(**qeq).energy(twice))


# Positions and charges together


class Repulsion(ms.PairPotential):
    """Born and Mayer's repulsion of closed shells."""

    strength: float
    length: float
    cutoff: float = ms.static(30.0)

    def pair_energy(self, r, i, j):
        return self.strength * jnp.exp(-r / self.length)


SALT = WithCharges(
    Repulsion(strength=1000.0, length=0.33),
    ChargeEquilibration(
        electronegativity={"Na": 3.0, "Cl": 8.5}, hardness={"Na": 10.0, "Cl": 12.0}, width={"Na": 0.8, "Cl": 0.9}
    ),
)


@pytest.fixture(scope="module")
def salt():
    """A rhombus of two formula units, charges eliminated inside the energy."""
    x = [[2.21, 0.0, 0.01], [0.0, 2.2, 0.0], [-2.21, 0.01, 0.0], [0.0, -2.2, -0.01]]
    return ms.relax(ms.System(x, species=["Na", "Cl", "Na", "Cl"]), SALT, fmax=1e-12)


@pytest.fixture(scope="module")
def joint(salt):
    """The equilibrium of positions and charges, and its derivative in all parameters, each last axis one of them."""

    def solve(model):
        return relax_with_charges(salt.system, model.short_range, model.equilibration, fmax=1e-12)

    flat, unravel = ravel_pytree(SALT)
    found, product = jax.linearize(solve, SALT)
    columns = [product(unravel(direction)) for direction in jnp.eye(flat.size)]
    return found, type(found)(*(np.stack(rows, axis=-1) for rows in zip(*columns, strict=True)))


@pytest.mark.slow
def test_the_joint_derivative_is_that_of_clusters_relaxed_again(salt, joint):
    found, derivative = joint
    np.testing.assert_allclose(found.positions, salt.system.positions, atol=1e-12)
    np.testing.assert_allclose(found.charges, SALT.equilibration.charges(salt.system), atol=1e-13)
    assert found.energy == pytest.approx(salt.energy, rel=1e-13)
    names, theta = parameter_paths(SALT), ravel_pytree(SALT)[0]
    expected = {"positions": [], "charges": [], "energy": []}
    for name, value in zip(names, theta, strict=True):
        step = 1e-3 * (abs(value) or 1.0)
        again = {m: relaxed(salt, name, m * step) for m in (-2, -1, 1, 2)}
        for what, seen in {
            "positions": lambda eq, moved: moved,
            "charges": lambda eq, moved: np.asarray(eq.potential.equilibration.charges(eq.system)),
            "energy": lambda eq, moved: eq.energy,
        }.items():
            values = {m: seen(*pair) for m, pair in again.items()}
            expected[what].append((8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * step))
    for what, columns in expected.items():
        scaled = np.where(theta == 0.0, 1.0, theta) * np.stack(columns, axis=-1)
        error = np.where(theta == 0.0, 1.0, theta) * getattr(derivative, what) - scaled
        assert np.abs(error).max() < 1e-9 * np.abs(scaled).max(), what
    # dE/dQ is the common potential, and the charges keep their sum.
    total = names.index("equilibration.total_charge")
    assert derivative.energy[total] == pytest.approx(float(found.potential), rel=1e-12)
    np.testing.assert_allclose(derivative.charges.sum(axis=0), np.eye(len(names))[total], atol=1e-13)


@pytest.mark.slow
def test_the_nested_derivative_is_the_joint_one(salt, joint):
    _, derivative = joint
    rng = np.random.default_rng(5)
    w, v = rng.normal(size=salt.system.positions.shape), rng.normal(size=len(salt.system))

    def observable(system, model):
        return jnp.sum(w * system.positions) + v @ model.equilibration.charges(system)

    nested, _ = ravel_pytree(ms.gradient(observable, salt))
    expected = np.einsum("ik,ikp->p", w, derivative.positions) + v @ derivative.charges
    np.testing.assert_allclose(nested, expected, atol=1e-11 * np.abs(expected).max())
