"""Relaxation, and the gate between the host and the traced world."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk

import mdsens as ms
from mdsens.potentials.base import total_energy
from mdsens.solvers import FIRE, Newton, Status
from mdsens.structures.packing import random_packing

DIAMETERS = {"A": 1.0, "B": 0.6}


@pytest.fixture(scope="module")
def small():
    """32 soft spheres: small enough to compile every transformation."""
    system = random_packing(32, DIAMETERS, seed=4)
    potential = ms.SoftSphere(diameter=DIAMETERS, epsilon=1.0)
    return ms.relax(system, potential, fmax=1e-12)


@pytest.fixture(scope="module")
def crystal(silicon):
    """Seven silicon atoms around a vacancy, in a cell smaller than twice the cutoff."""
    atoms = bulk("Si", cubic=True)
    del atoms[2]
    atoms.rattle(0.02, seed=0)
    return ms.System.from_ase(atoms)


# relax


@pytest.mark.slow
def test_fire_follows_jax_md_step_by_step(small):
    import jax_md.minimize
    import jax_md.space

    # jax-md rounds its settings to 16 and its time step to 32 bits: settings that both hold exactly.
    settings = {"dt_start": 0.125, "dt_max": 0.5, "n_min": 3, "f_inc": 1.5, "f_dec": 0.5, "alpha_start": 0.125, "f_alpha": 0.5}
    system = random_packing(32, DIAMETERS, seed=4).with_neighbors(small.potential, skin=3.0)
    potential = small.potential

    def energy(x, **_):
        return total_energy(potential, system.with_positions(x))

    _, shift = jax_md.space.free()
    init, apply = jax_md.minimize.fire_descent(energy, shift, **settings)
    theirs = init(system.positions)
    ours = FIRE(**settings, max_step=None)
    problem = ms.solvers.Problem(residual=lambda x, _: jax.grad(energy)(x))
    state = ours.init(problem, system.positions, None)
    step = jax.jit(lambda state: ours.step(problem, state, None))
    for _ in range(50):
        theirs, state = apply(theirs), step(state)
        np.testing.assert_allclose(state.z, theirs.position, atol=1e-12)
        np.testing.assert_allclose(state.dt, theirs.dt, rtol=1e-12)


@pytest.mark.slow
def test_jax_md_minimisers_drive_our_potentials(small):
    import jax_md.minimize

    for minimizer, settings in ((jax_md.minimize.fire_descent, {}), (jax_md.minimize.gradient_descent, {"step_size": 0.1})):
        solver = ms.solvers.JaxMD(minimizer, **settings)
        eq = ms.relax(random_packing(32, DIAMETERS, seed=4), small.potential, solver=solver, fmax=1e-10)
        assert eq.converged and eq.fmax <= 1e-10


@pytest.mark.slow
def test_our_solvers_drive_jax_md_energies(small):
    import jax_md.energy
    import jax_md.space

    system = small.system
    displacement, _ = jax_md.space.periodic(float(system.cell[0, 0]))
    sizes = np.array([[1.0, 0.8], [0.8, 0.6]])
    energy = jax_md.energy.soft_sphere_pair(displacement, species=np.asarray(system.species), sigma=jnp.asarray(sizes))
    wrapped = ms.JaxMD(energy, sigma=sizes)
    eq = ms.relax(system, wrapped, fmax=1e-12)
    np.testing.assert_allclose(eq.system.positions, system.positions, atol=1e-10)
    S = ms.sensitivity(eq)
    own = ms.sensitivity(small).positions.diameter
    theirs = S.positions.sigma
    # s_AB = (D_A + D_B)/2; jax-md's matrix holds s_AB twice. Tolerance: residual 1e-12 over curvature 1e-2.
    np.testing.assert_allclose(own["B"], theirs[..., 1, 1] + 0.5 * (theirs[..., 0, 1] + theirs[..., 1, 0]), atol=1e-8)


def test_twelve_digits_are_ordinary(silicon_vacancy, glass, argon_vacancy, soft_packing):
    for eq in (silicon_vacancy, glass, argon_vacancy, soft_packing):
        assert eq.status is Status.CONVERGED and eq.fmax <= 1e-12
        free = np.asarray(eq.potential.forces(eq.system))
        # Recomputed with a list made anew; 1e-13 is the rounding of a force of order 1.
        assert np.linalg.norm(free, axis=1).max() <= 1e-12 + 1e-13


@pytest.mark.slow
def test_the_centre_of_mass_stays(silicon_vacancy):
    start = silicon_vacancy.system.with_positions(
        silicon_vacancy.system.positions + 0.02 * jnp.cos(jnp.arange(645.0)).reshape(-1, 3)
    )
    end = ms.relax(start, silicon_vacancy.potential, fmax=1e-12).system
    np.testing.assert_allclose(jnp.mean(end.positions - start.positions, axis=0), 0.0, atol=1e-11)


def test_lists_are_renewed_while_atoms_travel():
    # From random places particles move by many skins; a stale list would leave overlaps unseen.
    system = random_packing(64, DIAMETERS, seed=9)
    eq = ms.relax(system, ms.SoftSphere(diameter=DIAMETERS, epsilon=1.0))
    moved = np.linalg.norm(np.asarray(eq.system.positions - system.positions), axis=1).max()
    assert moved > 0.3
    fresh = float(eq.potential.energy(ms.System(eq.system.positions, cell=system.cell, pbc=True, species=system.symbols)))
    np.testing.assert_allclose(eq.energy, fresh, rtol=1e-13)


def test_newton_alone_refuses_a_far_start():
    with pytest.raises(ms.ConvergenceError, match="stopped decreasing"):
        ms.relax(random_packing(32, DIAMETERS, seed=4), ms.SoftSphere(diameter=DIAMETERS, epsilon=1.0), solver=Newton())


def test_a_saddle_point_is_not_a_minimum():
    # Three Lennard-Jones atoms in a row: no force across the row by symmetry, and no minimum either.
    potential = ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=4.0, onset=3.0)
    row = ms.System([[-1.1, 0, 0], [0, 0, 0], [1.1, 0, 0]])
    with pytest.raises(ms.ConvergenceError, match="saddle"):
        ms.relax(row, potential)
    state = ms.relax(row, potential, throw=False)
    assert state.status is Status.SADDLE and not state.converged and state.spectrum.lowest < 0
    with pytest.raises(ms.ConvergenceError, match="saddle"):
        ms.sensitivity(state)


def test_a_state_that_did_not_converge_is_never_returned_as_if_it_were_fine(small):
    start = random_packing(32, DIAMETERS, seed=4)
    with pytest.raises(ms.ConvergenceError, match="max_steps"):
        ms.relax(start, small.potential, max_steps=5)
    state = ms.relax(start, small.potential, max_steps=5, throw=False)
    assert state.status is Status.MAX_STEPS and state.steps == 5 and state.fmax > 1e-8


def test_nonsense_parameters_end_in_a_sentence(crystal, silicon):
    import equinox as eqx

    broken = eqx.tree_at(lambda p: p.epsilon, silicon, jnp.asarray(jnp.nan))
    with pytest.raises(ms.ConvergenceError, match="NaN or infinite"):
        ms.relax(crystal, broken)
    assert ms.relax(crystal, broken, throw=False).status is Status.NOT_FINITE


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"fmax": -1.0}, "positive force"),
        ({"cell": "loose"}, "isotropic"),
        ({"pressure": 1.0}, "free"),
        ({"max_steps": 0}, "max_steps"),
    ],
)
def test_settings_out_of_range_are_refused(crystal, silicon, options, sentence):
    with pytest.raises(ms.InputError, match=sentence):
        ms.relax(crystal, silicon, **options)


def test_coinciding_atoms_are_a_status_where_nothing_is_thrown(silicon):
    state = ms.relax(ms.System([[0.0, 0, 0], [0, 0, 0]], species="Si"), silicon, throw=False)
    assert state.status is Status.COINCIDING and not state.converged


@pytest.mark.slow
def test_an_energy_with_a_hidden_geometry_is_not_taken_for_a_cluster():
    import jax_md.energy
    import jax_md.space

    # The box is in jax-md's displacement alone: to mdsens this looks like a cluster, which could turn freely.
    system = random_packing(32, DIAMETERS, seed=4)
    displacement, _ = jax_md.space.periodic(float(system.cell[0, 0]))
    sizes = jnp.array([[1.0, 0.8], [0.8, 0.6]])
    energy = jax_md.energy.soft_sphere_pair(displacement, species=np.asarray(system.species), sigma=sizes)
    with pytest.raises(ms.InputError, match="rigid motion"):
        ms.relax(ms.System(system.positions, species=system.symbols), ms.JaxMD(energy, sigma=sizes), fmax=1e-10)


def test_coinciding_and_unknown_atoms_are_refused_before_any_work(silicon):
    with pytest.raises(ms.InputError, match="coincide"):
        ms.relax(ms.System([[0.0, 0, 0], [0, 0, 0]], species="Si"), silicon)
    pair = ms.LennardJones(epsilon={"A-A": 1.0}, sigma=1.0, cutoff=2.5, onset=2.0)
    with pytest.raises(ms.InputError, match="'A-B'"):
        ms.relax(ms.System([[0.0, 0, 0], [1, 0, 0]], species=["A", "B"]), pair)
    with pytest.raises(ms.InputError, match="All atoms are frozen"):
        ms.relax(ms.System([[0.0, 0, 0], [1, 0, 0]], frozen=[True, True]), ms.LennardJones(1.0, 1.0, 2.5, 2.0))


# equilibrium_positions


def loss(potential, system):
    return jnp.sum(jnp.sin(ms.equilibrium_positions(system, potential, fmax=1e-12)))


def difference(f, potential, h=1e-4):
    """d/d(diameter B) by Richardson's central differences."""

    def at(k):
        return f(jax.tree.unflatten(structure, [leaf + k * h if n == 1 else leaf for n, leaf in enumerate(leaves)]))

    leaves, structure = jax.tree.flatten(potential)
    return (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * h)


@pytest.mark.slow
def test_every_transformation_gives_the_same_derivative(small):
    f = functools.partial(loss, system=small.system)
    potential = small.potential
    expected = float(difference(f, potential))
    # 1e-6 of the derivative's own scale: what the differences are good to.
    scale = abs(expected)
    reverse = jax.grad(f)(potential).diameter["B"]
    forward = jax.jacfwd(f)(potential).diameter["B"]
    compiled = jax.jit(jax.grad(f))(potential).diameter["B"]
    assert abs(reverse - expected) < 1e-6 * scale
    np.testing.assert_allclose([forward, compiled], float(reverse), rtol=1e-9)
    rows = jax.jacrev(lambda p: ms.equilibrium_positions(small.system, p, fmax=1e-12))(potential).diameter["B"]
    np.testing.assert_allclose(rows, ms.sensitivity(small).positions.diameter["B"], atol=1e-9)


def test_hessian_of_a_loss_matches_differences_of_its_gradient(small):
    f = functools.partial(loss, system=small.system)
    second = jax.hessian(f)(small.potential).diameter["B"].diameter["B"]
    expected = difference(lambda p: jax.grad(f)(p).diameter["B"], small.potential)
    np.testing.assert_allclose(second, expected, rtol=1e-6)


@pytest.mark.slow
def test_batches_of_parameters_under_jit_and_vmap(small):
    factors = jnp.array([0.999, 1.0, 1.001])
    batch = jax.tree.map(
        lambda leaf: factors * leaf if leaf is small.potential.diameter["B"] else leaf + 0 * factors, small.potential
    )
    f = functools.partial(loss, system=small.system)
    together = jax.jit(jax.vmap(jax.grad(f)))(batch).diameter["B"]
    single = [jax.grad(f)(jax.tree.map(lambda leaf, k=k: leaf[k], batch)).diameter["B"] for k in range(3)]
    np.testing.assert_allclose(together, single, rtol=1e-8)
    eager = jax.vmap(f)(batch)
    np.testing.assert_allclose(eager, [f(jax.tree.map(lambda leaf, k=k: leaf[k], batch)) for k in range(3)], rtol=1e-12)


@pytest.mark.slow
def test_twelve_compiled_calls_in_flight_do_not_dead_lock(small):
    # The reproducer of the dead-lock that a host callback running JAX gives: many calls issued before any is waited for.
    batch = jax.tree.map(lambda leaf: leaf * jnp.array([1.0, 1.0005]), small.potential)
    call = jax.jit(jax.vmap(jax.grad(functools.partial(loss, system=small.system))))
    results = [call(batch).diameter["B"] for _ in range(12)]
    first = np.asarray(results[0])
    for result in results:
        np.testing.assert_array_equal(result, first)


@pytest.mark.slow
def test_parameters_that_set_the_range_may_be_traced(crystal, silicon):
    def length(sigma):
        import equinox as eqx

        potential = eqx.tree_at(lambda p: p.sigma, silicon, sigma)
        x = ms.equilibrium_positions(crystal, potential, fmax=1e-11)
        return jnp.linalg.norm(x[0] - x[1])

    h = 1e-4
    s = silicon.sigma
    expected = (8 * (length(s + h) - length(s - h)) - (length(s + 2 * h) - length(s - 2 * h))) / (12 * h)
    np.testing.assert_allclose(jax.jit(jax.grad(length))(s), expected, rtol=1e-6)


@pytest.mark.slow
def test_a_compiled_solve_that_fails_is_nan_with_a_status(small):
    far = random_packing(32, DIAMETERS, seed=4)
    solve = jax.jit(lambda p: ms.equilibrium_positions(far, p, max_steps=3, return_status=True))
    x, code = solve(small.potential)
    assert np.isnan(x).all() and Status.from_code(code) is Status.MAX_STEPS
    tight = far.with_neighbors(small.potential, skin=0.02)
    x, code = jax.jit(lambda p: ms.equilibrium_positions(tight, p, return_status=True))(small.potential)
    assert np.isnan(x).all() and Status.from_code(code) is Status.STALE_NEIGHBORS


def test_the_list_of_an_equilibrium_leaves_room_to_move_under_jit(small):
    # Ten per cent of the small diameter rearranges the packing by far more than the list of the equilibrium allows.
    grown = jax.tree.map(lambda leaf: leaf * (1.1 if leaf is small.potential.diameter["B"] else 1.0), small.potential)
    x = jax.jit(lambda p: ms.equilibrium_positions(small.system, p, fmax=1e-10))(grown)
    assert float(jnp.abs(x - small.system.positions).max()) > 0.01
    moved = small.system.with_positions(x)
    assert float(jnp.abs(grown.forces(moved)).max()) < 1e-9


def test_a_list_serves_motion_and_a_longer_range_together(small):
    # Within the list's radius 2, a range of 1.5 leaves atoms a quarter of the room that a range of 1 does.
    listed = small.system.with_neighbors(small.potential, skin=1.0)
    neighbors, positions = listed.neighbors, listed.positions
    moved = positions.at[0, 0].add(0.4)
    assert not neighbors.is_stale(moved, 1.0) and neighbors.is_stale(moved, 1.5)
    assert not neighbors.is_stale(positions * jnp.nan, 1.0)


def test_a_range_that_outgrew_the_compiled_list_is_nan(small):
    # The list of the first call reaches far, but not ten times as far.
    listed = small.system.with_neighbors(small.potential)
    call = jax.jit(lambda p: ms.equilibrium_positions(listed, p))
    assert np.isfinite(call(small.potential)).all()
    assert np.isnan(call(jax.tree.map(lambda leaf: 10.0 * leaf, small.potential))).all()


def test_a_bad_member_of_a_batch_leaves_the_others_alone(small):
    batch = jax.tree.map(lambda leaf: leaf * jnp.array([1.0, jnp.nan, 1.001]), small.potential)
    x, codes = jax.jit(jax.vmap(lambda p: ms.equilibrium_positions(small.system, p, return_status=True)))(batch)
    assert [Status.from_code(code) for code in codes] == [Status.CONVERGED, Status.NOT_FINITE, Status.CONVERGED]
    assert np.isnan(x[1]).all()
    np.testing.assert_allclose(x[0], small.system.positions, atol=1e-7)


@pytest.mark.slow
def test_second_derivatives_of_a_cluster_keep_the_turning_null_vectors():
    # A bent trimer: the curvature of a bond length in σ is known (it is proportional to σ), so its second derivative is 0,
    # while the rotational null vectors turn with the atoms. A coordinate-dependent mistake in the null space would show.
    potential = ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=8.0, onset=7.0)
    trimer = ms.relax(ms.System([[0.0, 0, 0], [1.1, 0.1, 0], [0.5, 1.0, 0.2], [0.4, 0.3, 0.9]]), potential, fmax=1e-12).system

    def bond(p):
        x = ms.equilibrium_positions(trimer, p, fmax=1e-12)
        return jnp.linalg.norm(x[0] - x[1])

    first, second = jax.grad(bond)(potential), jax.hessian(bond)(potential)
    np.testing.assert_allclose(first.sigma, 2 ** (1 / 6), rtol=1e-10)
    np.testing.assert_allclose(second.sigma.sigma, 0.0, atol=1e-8)


def test_the_system_must_be_concrete(small):
    with pytest.raises(ms.InputError, match="concrete"):
        jax.jit(lambda s: ms.equilibrium_positions(s, small.potential))(small.system)
