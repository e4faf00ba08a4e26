"""Sensitivities against central differences of re-relaxed structures, and the identities they must obey."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import GLASS_STEP, STEP, richardson, scaled_errors

import mdsens as ms
from mdsens.mechanics import forces, hessian_operator, softest_modes
from mdsens.mechanics.landscape import Landscape
from mdsens.potentials.base import parameter_paths

# The floor of the project: |θ Δ| <= 1e-6 max |θ dX/dθ|.
FLOOR = 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("fixed", [False, True])
def test_a_derivative_that_is_nothing_is_trusted(fixed):
    """dX/dε is what is left of the forces, of which no digit need agree between forward and adjoint."""
    potential = ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=2.5, onset=2.0)
    potential = ms.fixed(potential, "sigma") if fixed else potential
    eq = ms.relax(ms.System([[0.0, 0.0, 0.0], [1.15, 0.0, 0.0]], species=["A", "A"]), potential)
    certificate = ms.sensitivity(eq, wrt=["epsilon"]).certificate
    assert certificate.trusted and certificate.mismatch < 1e-6, certificate.reasons


@pytest.mark.slow
def test_lengths_in_another_unit_are_not_trusted():
    argon = ms.System([[0.0, 0.0, 0.0], [3.8, 0.0, 0.0]], species=["Ar", "Ar"])
    eq = ms.relax(argon, ms.LennardJones(epsilon=0.01, sigma=0.34, cutoff=0.85))
    certificate = ms.sensitivity(eq).certificate
    assert not certificate.trusted and "range of 0.85 Å" in certificate.reasons[0]


@pytest.mark.parametrize(
    "state",
    ["argon_vacancy", pytest.param("silicon_vacancy", marks=pytest.mark.slow), pytest.param("glass", marks=pytest.mark.slow)],
)
def test_positions_match_differences_of_relaxed_structures(state, request):
    eq = request.getfixturevalue(state)
    # Smooth potentials may gain and lose pairs at the cutoff: Stillinger-Weber is C-infinity there, and the quintic
    # switch C2, so that its third derivative alone jumps, which Richardson's differences see as an error of order h.
    step = GLASS_STEP if state == "glass" else STEP
    errors = scaled_errors(eq, ms.sensitivity(eq), same_contacts=state == "silicon_vacancy", step=step)
    assert max(errors.values()) < FLOOR, errors


def test_packing_matches_differences_with_the_same_contacts(soft_packing):
    # A tenth of the usual step, so that no contact opens or closes.
    errors = scaled_errors(soft_packing, ms.sensitivity(soft_packing), step=1e-5)
    assert max(errors.values()) < FLOOR, errors


@pytest.mark.slow
def test_per_particle_diameters_match_differences(soft_packing):
    sizes = np.where(np.array(soft_packing.system.symbols) == "A", 1.0, 0.6)
    each = ms.SoftSphere(diameter=sizes, epsilon=1.0)
    eq = ms.relax(soft_packing.system, each, fmax=1e-12)
    by_particle = ms.sensitivity(eq, wrt=["diameter"]).positions.diameter
    by_label = ms.sensitivity(soft_packing, wrt=["diameter"]).positions.diameter
    assert by_particle.shape == (128, 2, 128)
    # The chain rule: a label's diameter is that of all its particles. Same matrix, same tolerance as the solves.
    small = np.array(soft_packing.system.symbols) == "B"
    np.testing.assert_allclose(by_particle[..., small].sum(-1), by_label["B"], atol=1e-9)


@pytest.mark.slow
def test_frozen_atoms_have_exactly_zero_sensitivity_and_the_rest_matches_differences(silicon):
    from ase.build import bulk
    from ase.constraints import FixAtoms

    atoms = bulk("Si", cubic=True) * 2
    del atoms[10]
    atoms.set_constraint(FixAtoms(indices=[0, 1, 30]))
    eq = ms.relax(ms.System.from_ase(atoms), silicon, fmax=1e-12)
    S = ms.sensitivity(eq)
    assert S.certificate.zero_modes == ()
    for leaf in jax.tree.leaves(S.positions):
        assert (np.asarray(leaf)[[0, 1, 30]] == 0.0).all()
    np.testing.assert_array_equal(eq.system.positions[jnp.array([0, 1, 30])], atoms.positions[[0, 1, 30]])
    errors = scaled_errors(eq, S)
    assert max(errors.values()) < FLOOR, errors


@pytest.mark.slow
def test_clusters_do_not_translate_or_rotate():
    potential = ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=6.0, onset=5.0)
    rng = np.random.default_rng(5)
    cluster = ms.System(1.1 * np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]) + 0.1 * rng.normal(size=(5, 3)))
    eq = ms.relax(cluster, potential, fmax=1e-12)
    S = ms.sensitivity(eq)
    assert len(S.certificate.zero_modes) == 6
    x, dx = np.asarray(eq.system.positions), np.asarray(S.positions.sigma)
    arm = x - x.mean(axis=0)
    # Without a cutoff in the way lengths scale with σ; the null space then leaves exactly the scaled cluster. 1e-9: residual.
    np.testing.assert_allclose(dx.mean(axis=0), 0.0, atol=1e-9)
    np.testing.assert_allclose(np.cross(arm, dx).sum(axis=0), 0.0, atol=1e-9)
    np.testing.assert_allclose(dx, arm, atol=1e-9)
    errors = scaled_errors(eq, S)
    assert max(errors.values()) < FLOOR, errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("positions", "modes"),
    [
        ([[0.0, 0, 0], [1.1, 0, 0]], 5),
        ([[0.0, 0, 0], [1.1, 0, 0], [0.5, 1.0, 0]], 6),
        ([[0.0, 0], [1.1, 0], [0.5, 1.0]], 3),
    ],
    ids=["linear molecule", "bent molecule", "2-D cluster"],
)
def test_zero_modes_are_counted_by_geometry(positions, modes):
    eq = ms.relax(ms.System(positions), ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=4.0, onset=3.0), fmax=1e-12)
    certificate = ms.sensitivity(eq).certificate
    assert len(certificate.zero_modes) == modes
    assert certificate.trusted, certificate.reasons


@pytest.mark.slow
def test_a_wire_rotates_about_its_axis_only():
    potential = ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=2.5, onset=2.0)
    # A stack of octahedra: triangles turned by 60 degrees from layer to layer.
    angles = np.deg2rad([[60 * layer + 120 * corner for corner in range(3)] for layer in range(4)])
    radius, rise = 1.1 / np.sqrt(3), 1.1 * np.sqrt(2 / 3)
    height = np.broadcast_to(rise * np.arange(4)[:, None], angles.shape)
    layers = np.stack([radius * np.cos(angles), radius * np.sin(angles), height], axis=-1).reshape(-1, 3)
    wire = ms.System(layers, cell=np.diag([20.0, 20.0, 4 * rise]), pbc=[False, False, True])
    eq = ms.relax(wire, potential, fmax=1e-12)
    certificate = ms.sensitivity(eq).certificate
    assert certificate.zero_modes == ("translation x", "translation y", "translation z", "rotation 1")
    assert certificate.trusted, certificate.reasons


@pytest.mark.slow
def test_rattlers_are_found_listed_and_left_alone(soft_packing):
    # A point-like particle in a hole of the packing touches nobody.
    system = soft_packing.system
    rng = np.random.default_rng(0)
    side = float(system.cell[0, 0])
    tries = rng.uniform(0, side, (20_000, 2))
    gaps = np.asarray(system.positions)[None] - tries[:, None]
    gaps -= side * np.round(gaps / side)
    radii = np.where(np.array(system.symbols) == "A", 0.5, 0.3)
    hole = tries[(np.linalg.norm(gaps, axis=-1) - radii).min(axis=1).argmax()]
    more = ms.System(np.vstack([system.positions, hole]), cell=system.cell, pbc=True, species=[*system.symbols, "C"])
    eq = ms.relax(more, ms.SoftSphere(diameter={"A": 1.0, "B": 0.6, "C": 0.01}, epsilon=1.0), fmax=1e-12)
    S = ms.sensitivity(eq)
    assert S.certificate.rattlers == (128,)
    assert (np.asarray(S.positions.diameter["B"])[128] == 0.0).all()
    alone = ms.sensitivity(soft_packing, wrt=["diameter.B"]).positions.diameter["B"]
    np.testing.assert_allclose(S.positions.diameter["B"][:128], alone, atol=1e-8)  # residual 1e-12 over curvature 1e-2
    # An observable that looks at the rattler is answered too: its own motion counts as none.
    slope = ms.gradient(lambda s, p: jnp.sum(s.positions[128] * s.positions[5]), eq)
    expected = jnp.sum(eq.system.positions[128] * S.positions.diameter["B"][5])
    np.testing.assert_allclose(slope.diameter["B"], expected, rtol=1e-8)


# Identities


@pytest.mark.slow
def test_epsilon_moves_nothing_at_a_fixed_cell_and_scales_the_energy(silicon_vacancy):
    eq = silicon_vacancy
    scaled = ms.sensitivity(eq).scaled().positions
    assert np.abs(scaled.epsilon).max() < 1e-10 * np.abs(scaled.sigma).max()
    slope = ms.gradient(ms.observables.energy, eq)
    np.testing.assert_allclose(slope.epsilon, eq.energy / eq.potential.epsilon, rtol=1e-12)


def test_envelope_theorem(silicon_vacancy):
    eq = silicon_vacancy
    total = ms.gradient(ms.observables.energy, eq)
    explicit = jax.grad(lambda p: p.energy(eq.system))(eq.potential)
    for a, b in zip(jax.tree.leaves(total), jax.tree.leaves(explicit), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)  # fmax 1e-12 times dX/dθ


@pytest.mark.slow
def test_sigma_and_a_scale_lengths_together():
    # U = ε f(x/σ): growing σ at a fixed cell is shrinking the cell at fixed σ; a cluster of silicon has no cell.
    potential = ms.StillingerWeber.silicon()
    tetrahedron = ms.System(2.35 * np.array([[0.0, 0, 0], [1, 0, 0], [0.3, 0.95, 0], [0.3, 0.3, 0.9]]), species="Si")
    eq = ms.relax(tetrahedron, potential, fmax=1e-12)
    x = np.asarray(eq.system.positions)
    dx = np.asarray(ms.sensitivity(eq, wrt=["sigma"]).positions.sigma)
    np.testing.assert_allclose(dx, (x - x.mean(axis=0)) / 2.0951, atol=1e-9)


def test_doubling_every_length_of_a_packing_doubles_it(soft_packing):
    system = soft_packing.system
    double = ms.System(2 * system.positions, cell=2 * system.cell, pbc=True, species=system.symbols)
    eq = ms.relax(double, ms.SoftSphere(diameter={"A": 2.0, "B": 1.2}, epsilon=1.0), fmax=1e-12)
    a = ms.sensitivity(eq, wrt=["diameter.B"]).positions.diameter["B"]
    b = ms.sensitivity(soft_packing, wrt=["diameter.B"]).positions.diameter["B"]
    np.testing.assert_allclose(eq.system.positions, 2 * system.positions, atol=1e-10)
    np.testing.assert_allclose(a, b, atol=1e-8)


@pytest.mark.slow
def test_permutation_translation_rotation_and_repetition_carry_over(silicon):
    from ase.build import bulk

    atoms = bulk("Si", cubic=True) * (2, 1, 1)
    del atoms[3]

    def solved(atoms):
        eq = ms.relax(ms.System.from_ase(atoms), silicon, fmax=1e-12)
        return np.asarray(ms.sensitivity(eq, wrt=["costheta0"]).positions.costheta0)

    reference = solved(atoms)
    tolerance = 1e-9 * np.abs(reference).max()
    order = np.random.default_rng(0).permutation(len(atoms))
    np.testing.assert_allclose(solved(atoms[order]), reference[order], atol=tolerance)
    moved = atoms.copy()
    moved.translate([0.3, -7.0, 20.0])
    np.testing.assert_allclose(solved(moved), reference, atol=tolerance)
    turned = atoms.copy()
    turned.rotate(33, (1, 2, 3), rotate_cell=True)
    rotation = np.linalg.solve(atoms.cell.array, turned.cell.array)
    np.testing.assert_allclose(solved(turned), reference @ rotation, atol=tolerance)
    np.testing.assert_allclose(solved(atoms * (1, 2, 1)), np.tile(reference, (2, 1)), atol=tolerance)


# Observables, and the ways to ask


@pytest.mark.slow
def test_observables_match_differences(silicon_vacancy):
    from ase.build import bulk

    eq = silicon_vacancy
    perfect = ms.relax(ms.System.from_ase(bulk("Si", cubic=True)), eq.potential, fmax=1e-12)
    formation = ms.observables.formation_energy(perfect)
    lengths = ms.observables.distances([(0, 1), (99, 100), (5, 12)])

    def observed(system, potential):
        return jnp.concatenate([lengths(system, potential), ms.observables.pressure(system, potential)[None]])

    J = ms.jacobian(observed, eq)
    names = parameter_paths(eq.potential)
    scale = np.max([np.abs(theta * slope) for theta, slope in zip(*map(jax.tree.leaves, (eq.potential, J)), strict=True)], axis=0)
    for name in ("sigma", "lam", "costheta0", "B"):
        k = names.index(name)
        slope, theta = jax.tree.leaves(J)[k], jax.tree.leaves(eq.potential)[k]
        difference = richardson(eq, name, observable=lambda again: observed(again.system, again.potential))
        assert (np.abs(theta * (difference - slope)) < FLOOR * scale).all()

    def formation_again(again):
        reference = ms.relax(perfect.system, again.potential, fmax=1e-12)
        return ms.observables.formation_energy(reference)(again.system, again.potential)

    slope = ms.gradient(formation, eq)
    difference = richardson(eq, "sigma", observable=formation_again)
    # The difference of two energies of 900 eV over h = 2e-4: 1e-12 * 900 / 2e-4.
    np.testing.assert_allclose(slope.sigma, difference, atol=1e-5)


def test_forward_and_adjoint_agree(silicon_vacancy):
    eq = silicon_vacancy
    rng = np.random.default_rng(1)
    weight = jnp.asarray(rng.normal(size=eq.system.positions.shape))
    adjoint = ms.gradient(lambda s, p: jnp.vdot(weight, s.positions), eq)
    forward = jax.tree.map(lambda leaf: jnp.vdot(weight, leaf), ms.sensitivity(eq).positions)
    scale = max(abs(float(leaf)) for leaf in jax.tree.leaves(forward))
    for a, b in zip(jax.tree.leaves(adjoint), jax.tree.leaves(forward), strict=True):
        assert abs(a - b) <= 1e-10 * scale
    direction = jax.tree.map(jnp.asarray, jax.tree.map(lambda leaf: rng.normal(), eq.potential))
    dx = ms.jvp(eq, direction)
    inner = sum(float(a * d) for a, d in zip(*map(jax.tree.leaves, (adjoint, direction)), strict=True))
    np.testing.assert_allclose(float(jnp.vdot(weight, dx)), inner, atol=1e-10 * scale)


@pytest.mark.slow
def test_jacobian_does_not_depend_on_the_road(silicon_vacancy):
    eq = silicon_vacancy
    many, few = (lambda s, p: s.positions[:4].ravel()), (lambda s, p: s.positions[0])
    forward, adjoint = ms.jacobian(many, eq), ms.jacobian(few, eq)
    np.testing.assert_allclose(forward.sigma[:3], adjoint.sigma, atol=1e-10)
    np.testing.assert_allclose(adjoint.sigma, ms.sensitivity(eq, wrt=["sigma"]).positions.sigma[0], atol=1e-10)


def test_the_linear_residual_is_below_1e_10(silicon_vacancy, argon_vacancy, glass, soft_packing):
    for eq in (silicon_vacancy, argon_vacancy, glass, soft_packing):
        certificate = ms.sensitivity(eq).certificate
        assert certificate.residual <= 1e-10
        assert certificate.trusted, certificate.reasons


@pytest.mark.slow
def test_lowest_curvature_matches_a_dense_spectrum(soft_packing):
    eq = soft_packing
    n = eq.system.positions.size
    flat = jax.hessian(lambda x: eq.potential.energy(eq.system.with_positions(x.reshape(-1, 2))))(eq.system.positions.ravel())
    values = np.linalg.eigvalsh(np.asarray(flat).reshape(n, n))
    silent = 2 + 2 * len(eq.spectrum.rattlers)
    np.testing.assert_allclose(eq.spectrum.lowest, values[silent], rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("state", ["soft_packing", "argon_vacancy", "glass"])
def test_stored_stiffness_is_the_linearised_gradient_to_all_orders(state, request):
    eq = request.getfixturevalue(state)
    x, v = eq.system.positions, jax.random.normal(jax.random.key(0), (eq.system.positions.size,))

    def stored(x, potential):
        return hessian_operator.hessian_operator(x, Landscape(eq.reference, potential))(v)

    def linearised(x, potential):
        slope = lambda x: forces.gradient(x, Landscape(eq.reference, potential))  # noqa: E731
        return jax.jvp(slope, (x,), (v.reshape(x.shape),))[1].ravel()

    expected = linearised(x, eq.potential)
    np.testing.assert_allclose(stored(x, eq.potential), expected, atol=1e-12 * float(jnp.abs(expected).max()))
    # Third derivatives of the energy: what second derivatives of an equilibrium are made of.
    for argnum in (0, 1):
        slopes = [
            jax.grad(lambda *a, f=f: jnp.sum(jnp.sin(f(*a))), argnums=argnum)(x, eq.potential) for f in (stored, linearised)
        ]
        for a, b in zip(*map(jax.tree.leaves, slopes), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-10 * float(jnp.abs(b).max()))


@pytest.mark.slow
def test_a_pair_potential_with_its_own_total_is_linearised_as_it_is():
    class Saturating(ms.LennardJones):
        def atom_energies(self, system):
            return jnp.tanh(super().atom_energies(system))

    system = ms.System(1.1 * np.array([[0, 0, 0], [1, 0.1, 0], [0, 1.05, 0.2], [0.1, 0, 1.0]]))
    potential = Saturating(epsilon=0.3, sigma=1.0, cutoff=4.0, onset=3.0)
    eq = ms.relax(system, potential, fmax=1e-12)
    errors = scaled_errors(eq, ms.sensitivity(eq, wrt=["sigma", "epsilon"]))
    assert max(errors.values()) < FLOOR, errors


@pytest.mark.slow
def test_a_search_sees_a_negative_curvature(silicon, monkeypatch):
    from ase.build import bulk

    atoms = bulk("Si", "fcc", a=4.1, cubic=True) * 2  # fcc silicon is unstable
    system = ms.System.from_ase(atoms)
    exact = ms.relax(system, silicon, throw=False).spectrum
    monkeypatch.setattr(softest_modes, "DENSE_LIMIT", 0)
    sketched = ms.relax(system, silicon, throw=False)
    assert sketched.status is ms.Status.SADDLE and not sketched.spectrum.exact
    np.testing.assert_allclose(sketched.spectrum.lowest, exact.lowest, rtol=1e-2)


@pytest.mark.slow
def test_a_few_atoms_that_move_among_many_have_their_whole_spectrum(argon_vacancy):
    from ase.build import bulk

    atoms = bulk("Ar", "fcc", a=1.55, cubic=True) * 6
    moving = np.argsort(np.linalg.norm(atoms.positions - atoms.positions[400], axis=1))[1:20]
    frozen = np.ones(len(atoms), dtype=bool)
    frozen[moving] = False
    keep = np.arange(len(atoms)) != 400
    system = ms.System(atoms.positions[keep], cell=atoms.cell.array, pbc=True, frozen=frozen[keep])
    eq = ms.relax(system, argon_vacancy.potential, fmax=1e-10)
    rows = np.flatnonzero(np.repeat(~frozen[keep], 3))
    block = ms.hessian(eq.system, eq.potential).tocsr()[rows][:, rows].toarray()
    assert eq.spectrum.exact and eq.system.positions.size > softest_modes.DENSE_LIMIT
    np.testing.assert_allclose(eq.spectrum.few, np.linalg.eigvalsh(block)[:4], rtol=1e-9)
    assert ms.sensitivity(eq, wrt=["sigma"]).certificate.trusted


# What must be refused or said


@pytest.mark.slow
def test_only_the_asked_parameters_are_there(glass):
    S = ms.sensitivity(glass, wrt=["epsilon.A-B", "sigma"])
    assert S.positions.epsilon["A-A"] is None and S.positions.epsilon["B-B"] is None
    assert S.positions.epsilon["A-B"].shape == (80, 3)
    assert set(S.positions.sigma) == {"A-A", "A-B", "B-B"}


@pytest.mark.parametrize(("name", "hint"), [("sgma", "'sigma'"), ("epsilon.A-C", "'epsilon.A-B'")])
def test_a_parameter_that_does_not_exist_gets_a_suggestion(glass, name, hint):
    with pytest.raises(ms.InputError, match="no parameter") as error:
        ms.sensitivity(glass, wrt=[name])
    assert "Did you mean" in str(error.value) and hint.split(".")[0].strip("'") in str(error.value)


def test_an_answer_that_would_not_fit_is_refused_with_its_size(silicon_vacancy):
    with pytest.raises(ms.InputError, match="GB"):
        ms.sensitivity(silicon_vacancy, max_bytes=1000)


@pytest.mark.parametrize(
    ("observable", "sentence"),
    [
        (lambda s, p: s.positions, "use jacobian"),
        (lambda s, p: jnp.log(-jnp.sum(s.positions**2)), "finite"),
        (lambda s, p: jnp.sum(s.positions) * 1j, "real"),
        (lambda s, p: float(jnp.sum(s.positions)), "jax.numpy"),
        (lambda s, p: jnp.sum(s.species), "real floating-point"),
    ],
)
def test_observables_that_cannot_be_differentiated_are_refused(silicon_vacancy, observable, sentence):
    with pytest.raises(ms.InputError, match=sentence):
        ms.value_and_gradient(observable, silicon_vacancy)


def test_observables_that_turn_out_not_finite_are_refused_on_both_roads(silicon_vacancy):
    for observable in (lambda s, p: jnp.log(-jnp.abs(s.positions[:3].ravel())), lambda s, p: jnp.log(-jnp.ones(2))):
        with pytest.raises(ms.InputError, match="finite"):
            ms.jacobian(observable, silicon_vacancy)


@pytest.mark.slow
def test_unconverged_states_have_no_derivative(silicon_vacancy):
    rough = ms.relax(
        silicon_vacancy.system.with_positions(
            silicon_vacancy.system.positions + 0.05 * jnp.sin(jnp.arange(645.0)).reshape(-1, 3)
        ),
        silicon_vacancy.potential,
        max_steps=3,
        polish=False,
        throw=False,
    )
    assert rough.status is ms.Status.MAX_STEPS and not rough.converged
    with pytest.raises(ms.ConvergenceError, match="max_steps"):
        ms.sensitivity(rough)


def test_a_loose_equilibrium_is_not_trusted_and_says_why(silicon_vacancy):
    start = silicon_vacancy.system.with_positions(
        silicon_vacancy.system.positions + 0.05 * jnp.sin(jnp.arange(645.0)).reshape(-1, 3)
    )
    certificate = ms.sensitivity(ms.relax(start, silicon_vacancy.potential, fmax=1e-2, polish=False)).certificate
    assert not certificate.trusted
    assert any("relax further" in reason for reason in certificate.reasons)


@pytest.mark.slow
def test_loose_groups_of_atoms_are_said_to_be_loose():
    # Two dimers that do not see each other: each turns and moves by itself, beyond the six rigid motions.
    potential = ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=2.5, onset=2.0)
    system = ms.System([[0.0, 0, 0], [1.1, 0, 0], [0, 9.0, 0], [0.3, 9.9, 0.4]])
    eq = ms.relax(system, potential, fmax=1e-12)
    assert eq.spectrum.floppy == 4
    certificate = ms.sensitivity(eq, throw=False).certificate
    assert not certificate.trusted
    assert any("loose" in reason for reason in certificate.reasons)


@pytest.mark.slow
def test_float32_is_an_explicit_choice_and_says_what_it_is_worth(silicon_vacancy):
    eq = silicon_vacancy
    system, potential = eq.system.astype("float32"), eq.potential.astype("float32")
    with pytest.raises(ms.InputError, match="one precision"):
        ms.relax(system, eq.potential)
    with pytest.raises(ms.InputError, match="float32"):
        ms.relax(system, potential)
    short = ms.relax(system, potential, fmax=1e-3)
    S = ms.sensitivity(short, wrt=["sigma"])
    assert S.positions.sigma.dtype == jnp.float32
    assert ms.gradient(lambda system, _: jnp.sum(system.positions[3] ** 2), short).sigma.dtype == jnp.float32
    assert not S.certificate.trusted and any("float32" in reason for reason in S.certificate.reasons)
    exact = ms.sensitivity(eq, wrt=["sigma"]).positions.sigma
    np.testing.assert_allclose(S.positions.sigma, exact, atol=1e-3 * float(jnp.abs(exact).max()))


@pytest.mark.slow
def test_a_user_s_potential_is_differentiated_like_ours():
    class Yukawa(ms.PairPotential):
        strength: dict
        kappa: float
        cutoff: float = ms.static(8.0)

        def pair_energy(self, r, i, j):
            return self.pair(self.strength, i, j) * jnp.exp(-self.kappa * r) / r

    rng = np.random.default_rng(2)
    system = ms.System(rng.uniform(0, 3.6, (12, 3)), cell=np.eye(3) * 3.6, pbc=True, species=["A"] * 6 + ["B"] * 6)
    potential = Yukawa({"A-A": 1.0, "B-A": 2.0, "B-B": 1.5}, 3.5)
    assert set(potential.strength) == {"A-A", "A-B", "B-B"}
    eq = ms.relax(system, potential, fmax=1e-12)
    S = ms.sensitivity(eq)
    # At the truncation of 8 Å φ is below 1e-12: its jump there cannot be seen.
    errors = scaled_errors(eq, S, same_contacts=False)
    assert max(errors.values()) < FLOOR, errors


def test_equilibrium_trees_survive_tree_operations(silicon_vacancy):
    S = ms.sensitivity(silicon_vacancy, wrt=["sigma"])
    doubled = jax.tree.map(lambda leaf: 2 * leaf, S.positions)
    assert type(doubled) is type(silicon_vacancy.potential)
    moved = eqx.tree_at(lambda p: p.sigma, silicon_vacancy.potential, 2.1)
    assert float(moved.sigma) == 2.1
