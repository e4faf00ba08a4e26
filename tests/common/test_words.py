"""What is printed says in a few lines what a physicist asks first."""

import jax
import jax.numpy as jnp
import pytest
from ase.build import bulk

import mdsens as ms

SILICON = ms.StillingerWeber.silicon()


@pytest.fixture(scope="module")
def crystal():
    return ms.relax(ms.System.from_ase(bulk("Si")), SILICON, cell="free", pressure=1.0)


@pytest.mark.slow
def test_an_equilibrium_says_atoms_cell_state_and_curvature(crystal):
    lines = repr(crystal).splitlines()
    assert len(lines) <= 8 and lines[0] == "Equilibrium"
    assert "2 atoms in 3-D (2 Si)" in lines[1]
    assert "3.8278 x 3.8278 x 3.8278 Å, 60, 60, 60°, periodic along xyz" in lines[2]
    assert "StillingerWeber" in lines[3]
    assert "equilibrium at 0 K, CONVERGED: energy -8.671998737 eV, fmax" in lines[4]
    assert "cell free, relaxed to a pressure or stress of 1.0 GPa" in lines[5]
    assert "lowest 1.262, highest 39.05 eV/Å²" in lines[6]


@pytest.mark.slow
def test_a_sensitivity_and_its_certificate_say_whether_to_trust_them(crystal):
    sensitivity = ms.sensitivity(crystal)
    first, second = repr(sensitivity).splitlines()
    assert first == "Sensitivity  of positions and cell to epsilon, sigma, a, lam, gamma, costheta0, 2 more of StillingerWeber"
    assert "trusted: θ dX/dθ in float64" in second
    assert repr(sensitivity.certificate).startswith("Certificate: trusted: θ dX/dθ")


def test_a_system_says_its_formula_cell_and_periodicity():
    slab = ms.System(
        jnp.zeros((3, 2)) + jnp.arange(3)[:, None], cell=[[4.0, 0.0], [2.0, 4.0]], pbc=[True, False], species=list("BAB")
    )
    assert repr(slab) == "System(3 atoms in 2-D (2 B, 1 A), cell 4.0000 x 4.4721 Å, 63.435°, periodic along x)"
    assert repr(ms.System([[0.0, 0.0, 0.0]], species="Ar", frozen=[True])) == (
        "System(1 atom in 3-D (1 Ar), cell none, periodic along no direction, 1 frozen)"
    )


def test_a_potential_and_its_gradient_show_their_numbers(crystal):
    assert "epsilon=2.1683, sigma=2.0951" in repr(SILICON)
    slope = ms.gradient(ms.observables.volume, crystal)
    assert f"sigma={slope.sigma.item():.6g}" in repr(slope)
    mixture = ms.LennardJones(epsilon={"A-A": 1.0, "A-B": 1.5, "B-B": 0.5}, sigma=1.0, cutoff=2.5, onset=2.0)
    assert "epsilon={A-A: 1, A-B: 1.5, B-B: 0.5}, sigma=1, cutoff=2.5" in repr(mixture)
    assert repr(ms.fixed(SILICON, "sigma")).count("\n") <= 5 and "sigma=None" in repr(ms.fixed(SILICON, "sigma"))
    assert repr(SILICON + SILICON).count("epsilon=2.1683") == 2
    assert "f64[63,3]" in repr(jax.tree.map(lambda leaf: jnp.zeros((63, 3)), SILICON))


def test_what_is_traced_or_holds_something_else_prints_too(crystal):
    shown = []
    jax.jit(lambda potential, system: shown.extend(map(repr, (potential, system))))(SILICON, crystal.system)
    assert "sigma=f64[]" in shown[0] and "positions=f64[2,3]" in shown[1]
    for tree in (SILICON, crystal.system, crystal, ms.sensitivity(crystal)):
        for empty in (None, "text", jnp.zeros((5, 4))):
            assert repr(jax.tree.map(lambda leaf, empty=empty: empty, tree))
