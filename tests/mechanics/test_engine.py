"""The engine under forces and solves: neighbour sums, batches along the last axis, stored Hessians, the coarse grid."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from jax.flatten_util import ravel_pytree

import mdsens as ms
from mdsens.equilibrium import descent
from mdsens.implicit import CG, linear_solve
from mdsens.mechanics import forces, hessian_operator, null_space
from mdsens.mechanics.landscape import Landscape
from mdsens.mechanics.preconditioner import coarse_grid
from mdsens.mechanics.unknown import cell_freedom, reference_at
from mdsens.potentials.base import total_energy
from mdsens.potentials.forms.atoms_last import map_last_axis
from mdsens.potentials.forms.site import in_blocks
from mdsens.structures.neighbors.sums_over_neighbors import (
    at_neighbors,
    differences,
    from_both_sides,
    from_neighbors,
    lattice_vectors,
)
from mdsens.structures.neighbors.vectors import squared_distances


def rattled(repeat=2, noise=0.08):
    atoms = bulk("Si", cubic=True) * repeat
    atoms.rattle(noise, seed=3)
    return ms.System.from_ase(atoms)


def alloy():
    rng = np.random.default_rng(4)
    grid = np.stack(np.meshgrid(*[np.arange(4)] * 3), -1).reshape(-1, 3) * 1.1
    species = rng.choice(["A", "B"], len(grid))
    return ms.System(grid + 0.05 * rng.normal(size=grid.shape), cell=4.4 * np.eye(3), pbc=True, species=species)


def mixture():
    pairs = {"A-A": 1.0, "A-B": 1.3, "B-B": 0.7}
    return ms.LennardJones(epsilon=pairs, sigma={"A-A": 1.0, "A-B": 0.95, "B-B": 0.9}, cutoff=2.1, onset=1.7)


def solution():
    atoms = bulk("Cu", cubic=True) * 3
    atoms.symbols[::3] = "Ni"
    atoms.rattle(0.1, seed=1)
    return ms.System.from_ase(atoms)


CASES = {
    "sites": (rattled(), ms.StillingerWeber.silicon()),
    "pairs of two species": (alloy(), mixture()),
    "embedded atoms of two species": (solution(), ms.ZhouJohnsonWadley.published("Cu", "Ni", onset=4.0, cutoff=4.5)),
}


@pytest.fixture(params=CASES)
def case(request):
    system, potential = CASES[request.param]
    return system.with_neighbors(potential), potential


def test_sums_over_neighbours_are_transposes_of_each_other(case):
    system, _ = case
    neighbors, rng = system.neighbors, np.random.default_rng(0)
    x, y = rng.normal(size=(3, len(system))), rng.normal(size=(3, *neighbors.atom.shape))
    forward, back = at_neighbors(x, neighbors), from_neighbors(y, neighbors)
    np.testing.assert_allclose(jnp.vdot(forward, y), jnp.vdot(x, back), rtol=1e-12)
    # Against plain JAX, whose transpose scatters.
    plain, transpose = jax.vjp(lambda x: jnp.where(neighbors.used, x[:, neighbors.atom], 0.0), jnp.asarray(x))
    np.testing.assert_array_equal(forward, plain)
    np.testing.assert_allclose(back, transpose(jnp.asarray(y))[0], rtol=1e-12, atol=1e-12)


def test_differences_have_their_transpose_for_what_changes_sign_with_a_pair(case):
    system, _ = case
    neighbors, rng = system.neighbors, np.random.default_rng(1)
    x, v = jnp.asarray(rng.normal(size=(2, len(system))))
    odd = lambda x: jnp.sum(jnp.sin(differences(x, neighbors.atom)) ** 2)  # noqa: E731
    plain = lambda x: jnp.sum(jnp.where(neighbors.used, jnp.sin(x[neighbors.atom] - x) ** 2, 0.0))  # noqa: E731
    for derivative in (
        jax.grad,
        lambda f: lambda x: jax.jvp(jax.grad(f), (x,), (v,))[1],
        lambda f: jax.grad(lambda x: jax.grad(f)(x) @ v),
    ):
        np.testing.assert_allclose(derivative(odd)(x), derivative(plain)(x), rtol=1e-11, atol=1e-11)
    batch = jnp.stack([x, v])
    np.testing.assert_allclose(jax.vmap(jax.grad(odd))(batch), jax.vmap(jax.grad(plain))(batch), rtol=1e-11, atol=1e-11)


def test_lattice_vectors_are_those_of_the_images_and_have_their_transpose(case):
    system, _ = case
    neighbors, rng = system.neighbors, np.random.default_rng(2)
    cell, y = jnp.asarray(rng.normal(size=(3, 3))), rng.normal(size=(3, *neighbors.kind.shape))
    found = lambda cell: lattice_vectors(cell.T, neighbors.kind, neighbors)  # noqa: E731
    plain = lambda cell: (neighbors.shift @ cell).T  # noqa: E731
    np.testing.assert_allclose(found(cell), plain(cell), rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(jax.vjp(found, cell)[1](y)[0], jax.vjp(plain, cell)[1](y)[0], rtol=1e-12)
    batch = jnp.stack([cell, 2.0 * cell])
    np.testing.assert_allclose(jax.vmap(found)(batch), jax.vmap(plain)(batch), rtol=1e-14, atol=1e-14)


def test_energies_of_sides_that_differ_have_forces_from_squared_distances(case):
    system, _ = case
    neighbors, rng = system.neighbors, np.random.default_rng(3)
    weight = jnp.asarray(rng.normal(size=neighbors.atom.shape))
    v = jnp.asarray(rng.normal(size=system.positions.shape))

    def energy(x):
        squares = squared_distances(tuple(x.T), system.cell, neighbors, neighbors.atom, neighbors.kind)
        return jnp.sum(jnp.where(neighbors.used, weight * jnp.sin(from_both_sides(squares, neighbors)), 0.0))

    def plain(x):
        d = x[neighbors.atom] - x + (neighbors.shift @ system.cell).transpose(1, 0, 2)
        return jnp.sum(jnp.where(neighbors.used, weight * jnp.sin(jnp.sum(d * d, axis=-1)), 0.0))

    for derivative in (jax.grad, lambda f: jax.grad(lambda x: jnp.vdot(jax.grad(f)(x), v))):
        expected = derivative(plain)(system.positions)
        np.testing.assert_allclose(
            derivative(energy)(system.positions), expected, rtol=1e-11, atol=1e-11 * np.abs(expected).max()
        )


def functions():
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(4, 5)))

    def odd_ends(x, k):
        y = jnp.concatenate([x[:, :2] @ weights[:2], jnp.cumsum(x, axis=0)[:, ::-1][:, :1] * jnp.ones(5)], axis=1)
        y = jnp.where(y > 0.0, y, jax.nn.softplus(y)) + weights[k % 4, 0]
        return jnp.sort(y.reshape(-1))[1:7:2], jnp.linalg.norm(x, axis=1).max() + jnp.einsum("ab,cb->", x, x)

    def loop(x, k):
        return jax.lax.fori_loop(0, 3, lambda n, y: jnp.tanh(y) + n, x).T, k + 1

    return {"odd ends": odd_ends, "a loop inside": loop, "a constant": lambda x, k: (jnp.arange(3.0), x[0, 0] ** 2)}


@pytest.mark.parametrize("name", functions())
def test_a_batch_along_the_last_axis_is_what_vmap_makes_of_it(name):
    function = functions()[name]
    x, k = jnp.asarray(np.random.default_rng(5).normal(size=(3, 4, 6))), jnp.arange(6)
    expected = jax.vmap(function, in_axes=-1, out_axes=-1)(x, k)
    for value, other in zip(map_last_axis(function, x, k), expected, strict=True):
        assert value.shape == other.shape
        np.testing.assert_allclose(value, other, rtol=1e-13)
    total = lambda f: lambda x: sum(jnp.sum(jnp.sin(part)) for part in f(x))  # noqa: E731
    slope = jax.grad(total(lambda x: map_last_axis(function, x, k)))(x)
    reference = jax.grad(total(lambda x: jax.vmap(function, in_axes=-1, out_axes=-1)(x, k)))(x)
    np.testing.assert_allclose(slope, reference, rtol=1e-12, atol=1e-13)


def test_sites_in_blocks_are_the_same_sites():
    potential = CASES["sites"][1]
    arguments = potential._sites(rattled(4).with_neighbors(potential))
    whole = map_last_axis(potential.site_energy, *arguments)
    parts = in_blocks(lambda *sites: map_last_axis(potential.site_energy, *sites), arguments, 1)
    np.testing.assert_allclose(parts, whole, rtol=1e-13)


def linearised(z, data):
    flat, unravel = ravel_pytree(z)
    return jax.linearize(lambda x: ravel_pytree(forces.gradient(unravel(x), data))[0], flat)[1]


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["fixed", "free"])
def test_the_stored_hessian_is_the_linearised_gradient(case, cell):
    system, potential = case
    reference = reference_at(system, cell_freedom(system, cell, 0.0 if cell == "fixed" else 3.0))
    z = reference.start
    if cell == "free":
        z = z._replace(strain=0.05 * jnp.arange(1.0, 7.0))
    data = Landscape(reference, potential)
    flat = ravel_pytree(z)[0]
    v = jax.random.normal(jax.random.key(0), flat.shape)
    assert hessian_operator.is_stored(reference, potential)
    image = linearised(z, data)(v)
    for data in (Landscape(reference, potential), descent.PROBLEM.focus(z, Landscape(reference, potential))):
        np.testing.assert_allclose(
            hessian_operator.hessian_operator(z, data)(v), image, rtol=1e-12, atol=1e-12 * jnp.abs(image).max()
        )


@pytest.mark.slow
@pytest.mark.parametrize("case", list(CASES)[1:])
def test_a_wide_list_is_gone_through_in_chunks(monkeypatch, case):
    system, potential = CASES[case]
    system = system.with_neighbors(potential)
    v = jax.random.normal(jax.random.key(1), (3, len(system)))

    def values():
        energy = lambda x: total_energy(potential, system.with_positions(x))  # noqa: E731
        forces, theta = jax.grad(energy)(system.positions), jax.grad(lambda p: total_energy(p, system))(potential)
        return energy(system.positions), forces, theta, potential.local_stiffness(system).product(v, system.neighbors)

    whole = values()
    monkeypatch.setattr("mdsens.structures.neighbors.vectors.CACHE_SIZE", 0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11), values(), whole)


def test_the_energy_of_one_atom_has_its_own_derivative():
    system, potential = CASES["pairs of two species"]
    system = system.with_neighbors(potential)
    first = lambda x: potential.atom_energies(system.with_positions(x))[0]  # noqa: E731
    direction = jax.random.normal(jax.random.key(2), system.positions.shape)
    slope = jnp.vdot(jax.grad(first)(system.positions), direction)
    np.testing.assert_allclose(slope, jax.jvp(first, (system.positions,), (direction,))[1], rtol=1e-11)


def test_whoever_writes_atom_energies_anew_is_asked_for_them():
    class Doubled(ms.LennardJones):
        def atom_energies(self, system):
            return 2.0 * super().atom_energies(system)

    settings = {"epsilon": 1.0, "sigma": 1.0, "cutoff": 2.0, "onset": 1.5}
    system = ms.System([[0, 0, 0], [1.2, 0, 0]])
    np.testing.assert_allclose(Doubled(**settings).energy(system), 2.0 * ms.LennardJones(**settings).energy(system), rtol=1e-14)
    listed = system.with_neighbors(Doubled(**settings))
    assert not hessian_operator.is_stored(reference_at(listed), Doubled(**settings))


@pytest.fixture(scope="module")
def defect():
    atoms = bulk("Si", cubic=True) * 6
    del atoms[100]
    potential = ms.StillingerWeber.silicon()
    system = ms.System.from_ase(atoms).with_neighbors(potential, skin=0.0)
    reference = eqx.tree_at(lambda f: f.grid, reference_at(system), coarse_grid(system), is_leaf=lambda leaf: leaf is None)
    return hessian_operator.hessian_operator(reference.start, Landscape(reference, potential)), null_space.rigid_null_space(
        reference.start, Landscape(reference, potential)
    )


@pytest.mark.slow
def test_the_coarse_grid_interpolates_linear_fields_and_is_its_own_transpose(defect):
    grid = defect[0].reference.grid
    np.testing.assert_allclose(jnp.sum(grid.weight, axis=0), 1.0, rtol=1e-12)
    rng = np.random.default_rng(3)
    field, vectors = rng.normal(size=(3, np.prod(grid.shape))), rng.normal(size=(3, grid.node.shape[1]))
    np.testing.assert_allclose(jnp.vdot(grid.to_atoms(field), vectors), jnp.vdot(field, grid.to_nodes(vectors)), rtol=1e-11)


@pytest.mark.slow
def test_the_preconditioner_is_symmetric_positive_and_saves_iterations(defect):
    operator, null_space = defect
    v, w = (null_space.project(jax.random.normal(jax.random.key(k), (operator.z.size,))) for k in (3, 4))
    smoothed = operator.precondition
    np.testing.assert_allclose(v @ smoothed(w), w @ smoothed(v), rtol=1e-10)
    assert v @ smoothed(v) > 0.0
    # In as many iterations it comes much farther than without.
    plain = CG(max_steps=20, rtol=1e-10, fail_rtol=1.0)
    _, slow = linear_solve(lambda u: operator(u), v, solver=plain, symmetric=True, null_space=null_space)
    _, fast = linear_solve(operator, v, solver=plain, symmetric=True, null_space=null_space)
    assert fast < 1e-2 * slow


def test_small_and_open_systems_have_no_grid():
    assert coarse_grid(rattled()) is None
    atoms = bulk("Si", cubic=True) * 6
    atoms.pbc = [True, True, False]
    assert coarse_grid(ms.System.from_ase(atoms)) is None
