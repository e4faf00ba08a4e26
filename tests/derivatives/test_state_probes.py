"""What a state cannot hide: forces that are no gradient, replaced parts, masks forgotten, kinks where it stands."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.calculators.lj import LennardJones as AseLennardJones
from helpers import refused

import mdsens as ms

CLUSTER = np.array([[0.0, 0.0, 0.0], [1.12, 0.0, 0.0], [0.56, 0.97, 0.0], [0.56, 0.32, 0.91], [1.5, 0.9, 0.9]])


@pytest.fixture(scope="module")
def cluster():
    return ms.relax(ms.System(CLUSTER), ms.LennardJones(sigma=1.0, epsilon=1.0, cutoff=4.0))


# Forces that are no gradient


class Curled(AseLennardJones):
    """Each atom is driven round a place by a force that grows with the distance: beside a stiffness of 57, per cents of it."""

    curl, places = 0.0, CLUSTER

    def calculate(self, atoms=None, *args, **kwargs):
        super().calculate(atoms, *args, **kwargs)
        x = atoms.positions - self.places
        self.results["forces"] = self.results["forces"] + self.curl * np.stack([-x[:, 1], x[:, 0], 0.0 * x[:, 2]], axis=1)


def wrapped(curl, places=CLUSTER):
    kind = type("Curled", (Curled,), {"curl": curl, "places": np.array(places)})
    return ms.from_ase(lambda sigma: kind(sigma=sigma, epsilon=1.0, rc=4.0, smooth=True), {"sigma": 1.0})


def held(positions, species="Ar"):
    """Three atoms hold the cluster, which forces without a balance would drive on for ever."""
    return ms.System(positions, species=species, frozen=np.arange(len(positions)) < 3)


@pytest.mark.parametrize("curl", [0.05, 1.0])
def test_a_calculator_whose_forces_have_a_curl_is_refused(curl):
    """Round the places of rest, where it is no force at all."""
    rest = np.asarray(ms.relax(held(CLUSTER), wrapped(0.0)).system.positions)
    refused(lambda: ms.relax(held(rest), wrapped(curl, rest)), "gradient of")
    unseen = ms.relax(held(rest), wrapped(curl, rest), check_minimum=False)
    refused(lambda: ms.jvp(unseen, {"sigma": 1.0}), "gradient of")


def test_a_calculator_whose_forces_have_none_is_not():
    assert ms.sensitivity(ms.relax(held(CLUSTER), wrapped(0.0))).certificate.trusted


class OneSided(ms.PairPotential):
    share: float
    cutoff: float = ms.static(3.0)
    onset: float = ms.static(2.0)

    def pair_energy(self, r, i, j):
        return (1.0 + self.share * (i.code > j.code)) * (r - 1.0) ** 2


@pytest.mark.parametrize("limit", [1500, 3])
def test_a_pair_energy_that_is_another_from_the_other_side_is_refused(limit, monkeypatch):
    monkeypatch.setattr("mdsens.mechanics.softest_modes.DENSE_LIMIT", limit)
    system = held(CLUSTER, list("ABBAB"))
    refused(lambda: ms.relax(system, OneSided(0.03)), "no gradient of", "OneSided", "j, i")
    assert ms.relax(system, OneSided(0.0)).converged


# Places of a list that nobody is in


class Sites(ms.SitePotential):
    sigma: float
    masked: bool = ms.static(True)
    cutoff: float = ms.static(3.0)

    def site_energy(self, d, i, j, mask):
        r = jnp.linalg.norm(d, axis=-1)
        energies = 2.0 * ((self.sigma / r) ** 12 - (self.sigma / r) ** 6)
        return jnp.sum(jnp.where(mask, energies, 0.0) if self.masked else energies)


@pytest.mark.slow
@pytest.mark.parametrize("beside", [None, ms.LennardJones(sigma=0.9, epsilon=0.1, cutoff=4.0)])
def test_a_site_energy_that_forgets_its_mask_is_refused(beside):
    system = ms.System(np.concatenate([CLUSTER, [[9.0, 0.0, 0.0]]]))  # the last atom has no neighbour
    of = lambda masked: Sites(1.0, masked=masked) if beside is None else beside + Sites(1.0, masked=masked)  # noqa: E731
    refused(lambda: ms.relax(system, of(False)), "mask is False")
    assert ms.relax(system, of(True)).converged


# Kinks at the state


class Dimer(ms.PairPotential):
    length: float
    cutoff: float = ms.static(2.0)
    onset: float = ms.static(1.5)


class Hinged(Dimer):
    """Twice as stiff when stretched."""

    def pair_energy(self, r, i, j):
        return 0.5 * (r - self.length) ** 2 * jnp.where(r > 1.0, 2.0, 1.0)


class Notched(Dimer):
    """Held at r = 1 by a notch, whatever the length."""

    def pair_energy(self, r, i, j):
        return 0.5 * (r - self.length) ** 2 + jnp.abs(r - 1.0)


class Cubic(Dimer):
    def pair_energy(self, r, i, j):
        return 0.5 * (r - self.length) ** 2 + (r - 1.0) ** 3


class Unsworn(Cubic):
    """Which promises nothing."""

    @property
    def smoothness(self):
        return -1


@pytest.mark.parametrize(("kind", "trusted"), [(Hinged, False), (Cubic, True), (Unsworn, True)])
@pytest.mark.parametrize("shift", [0.0, 1024.0])
def test_a_kink_at_the_very_state_is_seen(kind, trusted, shift):
    certificate = ms.sensitivity(ms.relax(ms.System(shift + np.array([[0.0, 0.0], [1.0, 0.0]])), kind(1.0))).certificate
    assert certificate.trusted == trusted, certificate
    assert (certificate.kink_distance == 0.0) == (not trusted)
    assert trusted or any("jump at this very state" in reason for reason in certificate.reasons)


def test_a_notch_is_no_equilibrium():
    """Its forces are of size 1 on both sides, and never small."""
    with pytest.raises(ms.ConvergenceError):
        ms.relax(ms.System([[0.0, 0.0], [1.0, 0.0]]), Notched(1.0), max_steps=50)


# Replaced parts


@pytest.mark.slow
def test_a_state_whose_potential_was_replaced_knows_nothing_of_the_old_one(cluster):
    """Twice ε is twice the Hessian at the same places: dX/dσ = X/σ about the middle, as before."""
    exact = cluster.system.positions - cluster.system.positions.mean(axis=0)
    twice = ms.LennardJones(sigma=1.0, epsilon=2.0, cutoff=4.0)
    for changed in (
        eqx.tree_at(lambda eq: eq.potential.epsilon, cluster, jnp.asarray(2.0)),
        dataclasses.replace(cluster, potential=twice),
    ):
        S = ms.sensitivity(changed)
        np.testing.assert_allclose(S.certificate.lowest_curvature, 2.0 * cluster.spectrum.lowest, rtol=1e-6)
        np.testing.assert_allclose(S.positions.sigma, ms.sensitivity(cluster).positions.sigma, atol=1e-8)
        np.testing.assert_allclose(ms.jvp(changed, {"sigma": 1.0}), S.positions.sigma, atol=1e-8)
    # All pairs are nearer than where the switch begins.
    np.testing.assert_allclose(S.positions.sigma, exact, atol=1e-7)


def test_a_state_that_is_no_equilibrium_of_what_was_replaced_is_refused(cluster, tmp_path):
    wider = eqx.tree_at(lambda eq: eq.potential.sigma, cluster, jnp.asarray(1.01))
    moved = dataclasses.replace(cluster, system=cluster.system.with_positions(1.01 * cluster.system.positions))
    ms.save(tmp_path / "state.h5", cluster)
    loaded = dataclasses.replace(ms.load(tmp_path / "state.h5")[0], potential=wider.potential)
    for changed in (wider, moved, loaded):
        for ask in (
            ms.sensitivity,
            lambda eq: ms.jvp(eq, {"sigma": 1.0}),
            lambda eq: ms.gradient(lambda s, p: s.positions[0, 0], eq),
        ):
            with pytest.raises(ms.ConvergenceError, match="replaced after it was relaxed"):
                ask(changed)
        refused(lambda: ms.save(tmp_path / "changed.h5", changed), "replaced")  # noqa: B023
        assert changed.again().converged


def test_a_copy_is_no_replacement(cluster):
    copy = jax.tree.map(lambda leaf: leaf + 0, cluster)
    assert copy.is_as_relaxed and cluster.is_as_relaxed
    assert dataclasses.replace(cluster, solver="another").is_as_relaxed
    far = dataclasses.replace(cluster, system=cluster.system.with_positions(cluster.system.positions + 2.0))
    assert not far.is_as_relaxed and ms.sensitivity(far).certificate.trusted
