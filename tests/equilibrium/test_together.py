"""Structures that are relaxed together arrive where each would alone, and what happens to one changes nothing for the others."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, make_supercell

import mdsens as ms
from mdsens.equilibrium import relaxation
from mdsens.equilibrium.together import member, workers
from mdsens.structures.packing import random_packing

DIAMETERS = {"A": 1.0, "B": 0.6}


@pytest.fixture
def alone(monkeypatch):
    """The structures that `relax` took one by one."""
    taken, original = [], relaxation.relax

    def spy(system, potential, **options):
        taken.append(system)
        return original(system, potential, **options)

    monkeypatch.setattr(relaxation, "relax", spy)
    return taken


def rattled(seed, cells=(2, 1, 1), missing=0, size=0.05):
    atoms = bulk("Si", cubic=True) * cells
    del atoms[missing]
    atoms.rattle(size, seed=seed)
    return atoms


def vacancy(seed, **options):
    return ms.System.from_ase(rattled(seed, **options))


def held(seed):
    atoms = rattled(seed)
    return ms.System(atoms.positions, cell=atoms.cell.array, pbc=True, species="Si", frozen=np.arange(len(atoms)) < 4)


def cluster(seed):
    corners = np.array([[0, 0, 0], [1.1, 0, 0], [0.5, 0.95, 0], [0.5, 0.3, 0.9], [0.5, 0.3, -0.9]])
    return ms.System(corners + 0.02 * np.random.default_rng(seed).normal(size=corners.shape))


def argon(seed):
    atoms = make_supercell(bulk("Ar", "fcc", a=1.55), 2 * np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]]))
    del atoms[5]
    atoms.rattle(0.02, seed=seed)
    return ms.System.from_ase(atoms)


def tersoff():
    return ms.Tersoff.silicon()


def copper(seed):
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    del atoms[0]
    atoms.rattle(0.03, seed=seed)
    return ms.System.from_ase(atoms)


def argon_potential():
    return ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=2.5, onset=2.0)


CASES = {
    "sizes": (lambda seed: vacancy(seed, cells=(1 + seed % 2, 1, 1)), ms.StillingerWeber.silicon, {}),
    "frozen": (held, ms.StillingerWeber.silicon, {}),
    "free cell": (vacancy, ms.StillingerWeber.silicon, {"cell": "free", "pressure": 2.0}),
    "isotropic cell": (vacancy, ms.StillingerWeber.silicon, {"cell": "isotropic", "smax": 1e-5}),
    "cluster": (cluster, argon_potential, {}),
    "pairs": (argon, argon_potential, {}),
    "sum": (argon, lambda: argon_potential() + ms.SoftSphere(diameter=0.8, epsilon=1.0), {}),
    "rattlers": (
        lambda seed: random_packing(64, DIAMETERS, seed=seed),
        lambda: ms.SoftSphere(diameter=DIAMETERS, epsilon=1.0),
        {},
    ),
    "bond order": (vacancy, tersoff, {}),
    "embedded": (copper, lambda: ms.Gupta.published("Cu"), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_together_they_arrive_where_each_does_alone(name, alone):
    structure, potential, options = CASES[name]
    systems, potential = [structure(seed) for seed in range(4)], potential()
    eqs = ms.relax(systems, potential, **options)
    assert not alone
    for system, eq in zip(systems, eqs, strict=True):
        one = ms.relax(system, potential, **options)
        assert eq.converged and eq.load == one.load and eq.cell == one.cell and eq.solver == one.solver
        assert eq.energy == pytest.approx(one.energy, rel=1e-10, abs=1e-14)
        assert eq.spectrum.lowest == pytest.approx(one.spectrum.lowest, rel=1e-5)
        assert eq.spectrum.rattlers == one.spectrum.rattlers and eq.spectrum.index == 0
        # Free clusters turn and all of them drift, rattlers stay where a solver left them.
        moving = np.setdiff1d(np.arange(len(system)), one.spectrum.rattlers)
        distances = [np.linalg.norm(x[moving, None] - x[moving], axis=-1) for x in (eq.system.positions, one.system.positions)]
        np.testing.assert_allclose(*distances, rtol=0.0, atol=1e-7)
        if system.cell is not None:
            np.testing.assert_allclose(eq.system.cell, one.system.cell, rtol=0.0, atol=1e-8)
        assert eq.stress_error <= options.get("smax", 1e-6)


def test_a_dict_gives_a_dict(silicon):
    systems = {name: vacancy(seed) for seed, name in enumerate("abcde")}
    eqs = ms.relax(systems, silicon)
    assert list(eqs) == list(systems)
    assert eqs["c"].energy == pytest.approx(ms.relax(systems["c"], silicon).energy, rel=1e-12)


def test_a_committee_relaxes_one_structure(silicon, alone):
    scaled = lambda scale: eqx.tree_at(lambda p: (p.epsilon, p.lam), silicon, (scale * silicon.epsilon, scale * silicon.lam))  # noqa: E731
    committee = [scaled(scale) for scale in np.linspace(0.9, 1.1, 5)]
    eqs = ms.relax(vacancy(1), committee)
    assert not alone
    for potential, eq in zip(committee, eqs, strict=True):
        assert eq.potential is potential
        assert eq.energy == pytest.approx(ms.relax(vacancy(1), potential).energy, rel=1e-12)


def meeting():
    atoms = rattled(7)
    atoms.positions[1] = atoms.positions[2]
    return ms.System.from_ase(atoms)


def symmetric():
    """A simple cubic crystal: by symmetry no forces act, and it is no minimum."""
    return ms.System.from_ase(Atoms("Si", cell=3 * [3.0], pbc=True) * (2, 2, 2))


def test_a_bad_member_changes_nothing_for_the_others_bit_for_bit(silicon):
    good = [vacancy(seed) for seed in range(5)]
    plain = ms.relax(good, silicon)
    mixed = ms.relax([good[0], meeting(), *good[1:], symmetric()], silicon, throw=False)
    assert mixed[1].status is ms.Status.COINCIDING and mixed[-1].status is ms.Status.SADDLE
    for eq, other in zip(plain, [mixed[0], *mixed[2:-1]], strict=True):
        assert np.array_equal(eq.system.positions, other.system.positions)
        assert eq.energy == other.energy and eq.spectrum == other.spectrum


def test_a_member_that_cannot_be_listed_leaves_the_others_together(alone, monkeypatch):
    """An atom so far away that distances have no digits: an error of the search for its own neighbours."""
    far = ms.System([[0.0, 0.0, 0.0], [1.1, 0.0, 0.0], [0.5, 0.95, 0.0], [0.5, 0.3, 0.9], [1e12, 0.3, -0.9]])
    with pytest.raises(ms.InputError, match=r"Structure 4: .* too far away"):
        ms.relax([*(cluster(seed) for seed in range(4)), far], argon_potential(), throw=False)
    assert len(alone) == 1


def test_bad_members_are_named_when_all_are_done(silicon):
    systems = {"good": vacancy(0), "bad": meeting(), "fine": vacancy(1), "other": vacancy(2), "more": vacancy(3)}
    with pytest.raises(ms.BatchError, match=r"1 of 5 .* Structure 'bad'") as error:
        ms.relax(systems, silicon)
    assert [eq.converged for eq in error.value.results] == [True, False, True, True, True]


def test_too_few_steps_are_said(silicon):
    eqs = ms.relax([vacancy(seed) for seed in range(4)], silicon, max_steps=2, throw=False)
    assert {eq.status for eq in eqs} == {ms.Status.MAX_STEPS}


@pytest.mark.parametrize(
    ("systems", "potential", "words"),
    [
        ([], ms.StillingerWeber.silicon(), "empty"),
        ([vacancy(0), rattled(1)], ms.StillingerWeber.silicon(), "Structure 1"),
        ([random_packing(8, DIAMETERS, seed=0), argon(1)], ms.SoftSphere(diameter=DIAMETERS, epsilon=1.0), "Structure 1.*Ar"),
        ({"a": argon(1)}, ms.SoftSphere(diameter=DIAMETERS, epsilon=1.0), "Structure 'a'"),
        ([vacancy(0)], [ms.StillingerWeber.silicon()], "one structure with several"),
        (vacancy(0), [], "empty"),
        (vacancy(0), [ms.StillingerWeber.silicon(), "tersoff"], "Potential 1"),
    ],
)
def test_what_cannot_be_relaxed_is_refused_at_once(systems, potential, words):
    with pytest.raises(ms.InputError, match=words):
        ms.relax(systems, potential)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cell": "free"}, "Structure 4: .* not periodic"),
        ({"smax": 1e-3}, "Structure 0: smax is for a cell"),
        ({"pressure": 1.0}, "Structure 0: A pressure acts"),
        ({"fmax": -1.0}, "Structure 0: fmax must be"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_before_any_work(silicon, options, words, monkeypatch):
    monkeypatch.setattr("mdsens.equilibrium.relaxations.run_courses", None)
    loose = ms.System(vacancy(0).positions, species="Si")
    with pytest.raises(ms.InputError, match=words):
        ms.relax([*(vacancy(seed) for seed in range(4)), loose], silicon, **options)


def test_single_precision_beside_double_is_refused_by_name(silicon):
    single = vacancy(1).astype("float32")
    with pytest.raises(ms.InputError, match=r"Structure 1: .*float32"):
        ms.relax([vacancy(0), single, vacancy(2), vacancy(3)], silicon, fmax=1e-2)


def test_what_needs_another_way_goes_alone(silicon, alone):
    systems = [vacancy(seed) for seed in range(4)]
    eqs = ms.relax(systems, silicon, solver=ms.LBFGS())
    assert len(alone) == 4 and all(eq.converged for eq in eqs)


def test_derivatives_are_those_of_a_structure_relaxed_alone(silicon):
    systems = [vacancy(seed) for seed in range(4)]
    for cell in ("fixed", "free"):
        for system, eq in zip(systems, ms.relax(systems, silicon, cell=cell), strict=True):
            together, one = ms.sensitivity(eq), ms.sensitivity(ms.relax(system, silicon, cell=cell))
            assert together.certificate.trusted
            np.testing.assert_allclose(together.positions.sigma, one.positions.sigma, rtol=0.0, atol=1e-7)


def test_a_second_list_compiles_nothing(silicon):
    ms.relax([vacancy(seed) for seed in range(4)], silicon)
    with jax_compilations() as count:
        ms.relax([vacancy(seed, missing=3) for seed in range(10, 18)], silicon)
    assert count() == 0


class jax_compilations:
    """How many programs JAX compiles meanwhile."""

    def __enter__(self):
        import jax.monitoring

        self.events = []
        jax.monitoring.register_event_duration_secs_listener(self._record)
        return lambda: len(self.events)

    def _record(self, event, *_, **__):
        if "backend_compile" in event:
            self.events.append(event)

    def __exit__(self, *_):
        pass


class Own(ms.PairPotential):
    strength: float
    cutoff: float = ms.static(2.5)

    def pair_energy(self, r, i, j):
        return self.strength * ((1.0 / r) ** 12 - (1.0 / r) ** 6) * jnp.where(r < 2.5, (1.0 - (r / 2.5) ** 2) ** 3, 0.0)


class Lopsided(Own):
    def pair_energy(self, r, i, j):
        return jnp.where(i.index < j.index, 1.0, 1.3) * super().pair_energy(r, i, j)


class Forgetful(ms.SitePotential):
    strength: float
    cutoff: float = ms.static(2.5)

    def site_energy(self, d, i, j, mask):
        r = jnp.linalg.norm(d, axis=-1)
        return jnp.sum(self.strength * ((1.0 / r) ** 12 - (1.0 / r) ** 6) * (1.0 - (r / 2.5) ** 2) ** 3)


def test_energies_of_ones_own_are_looked_at_as_closely(alone):
    clusters = [cluster(seed) for seed in range(4)]
    assert all(eq.converged for eq in ms.relax(clusters, Own(1.0))) and not alone
    with pytest.raises(ms.InputError, match=r"Structure 0: .* no gradient"):
        ms.relax(clusters, Lopsided(1.0))
    with pytest.raises(ms.InputError, match=r"Structure 0: .* mask is False"):
        ms.relax(clusters, Forgetful(1.0))


def test_threads_change_nothing_bit_for_bit(silicon, monkeypatch):
    systems, ends = [vacancy(seed) for seed in range(24)], []
    for count in (1, 3):
        monkeypatch.setattr(workers, "MAX_THREADS", count)
        monkeypatch.setattr(workers.os, "sched_getaffinity", lambda _: range(8), raising=False)
        ends.append(ms.relax(systems, silicon))
    for eq, other in zip(*ends, strict=True):
        assert np.array_equal(eq.system.positions, other.system.positions) and eq.spectrum == other.spectrum


def test_a_list_that_atoms_leave_is_made_again(silicon, monkeypatch):
    plain = ms.relax([vacancy(seed, size=0.15) for seed in range(4)], silicon)
    lists = []
    original = member.Member.pairs_at
    monkeypatch.setattr(member.Member, "pairs_at", lambda self, system: lists.append(1) or original(self, system))
    again = ms.relax([vacancy(seed, size=0.15) for seed in range(4)], silicon)
    # Each has one to start with, a tight one, and others on its way.
    assert len(lists) > 8
    for eq, other in zip(plain, again, strict=True):
        assert eq.energy == other.energy == pytest.approx(ms.relax(eq.system, silicon).energy, rel=1e-12)


def test_modes_that_cost_nothing_are_counted(alone):
    """Two pairs of atoms that do not see each other."""
    pairs = [ms.System([[0.0, 0.0, 0.0], [1.1 + 0.01 * k, 0.0, 0.0], [9.0, 0.0, 0.0], [9.0, 1.1, 0.0]]) for k in range(4)]
    eqs = ms.relax(pairs, argon_potential())
    assert len(alone) == 4 and all(eq.spectrum.floppy == 4 for eq in eqs)
