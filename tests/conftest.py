"""Structures that several tests share, and how their code is compiled, which is what most of the suite's time goes into."""

import gc
import importlib.metadata
import os
import pathlib
import types

# Halves the time of a first run; `XLA_FLAGS= sh scripts/test.sh` tests optimised code. Later versions than 0.10 end the
# process at a flag that they don't know.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0"
    + " --xla_cpu_use_fusion_emitters=false" * importlib.metadata.version("jaxlib").startswith(("0.9.", "0.10.")),
)
# Shared by all processes of a run (the command line's and the notebooks' too) and by the next run.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent.parent / ".pytest_cache" / "jax"))
# Small programs are many, and dropped with the large ones after each file.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import numpy as np
import pytest
from ase.build import bulk, make_supercell

import mdsens as ms
from mdsens.equilibrium.elastic_band import nudged_chain
from mdsens.structures.packing import random_packing

# JAX makes millions of small objects that live; looking through all of them again and again is a tenth of the time.
gc.set_threshold(50_000, 20, 100)

MEMORY_MAPS = 30_000
"""Of the 65,000 that a process may have on Linux. Every compiled program keeps some, and XLA crashes where they run out."""


@pytest.fixture(scope="module", autouse=True)
def _compiled_code_is_dropped_after_each_file():
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def _compiled_code_is_dropped_where_it_is_too_much():
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MEMORY_MAPS:
        jax.clear_caches()


@pytest.fixture(scope="session")
def silicon():
    return ms.StillingerWeber.silicon()


@pytest.fixture(scope="session")
def silicon_vacancy(silicon):
    """215 atoms in the vacancy's ground state: the ideal lattice is a metastable place without forces, not a test."""
    atoms = bulk("Si", cubic=True) * 3
    arms = atoms.get_distances(100, range(len(atoms)), mic=True, vector=True)
    lengths = np.linalg.norm(arms, axis=1)
    near = np.argsort(lengths)[1:5]
    atoms.positions[near] -= 0.4 * arms[near] / lengths[near, None]
    del atoms[100]
    return ms.relax(ms.System.from_ase(atoms), silicon, fmax=1e-12)


@pytest.fixture(scope="session")
def soft_packing():
    """The packing of Blondel et al. 2021, section 4.4."""
    diameters = {"A": 1.0, "B": 0.6}
    system = random_packing(128, diameters, seed=1)
    return ms.relax(system, ms.SoftSphere(diameter=diameters, epsilon=1.0), fmax=1e-12)


@pytest.fixture(scope="session")
def argon_vacancy():
    """An fcc crystal with a vacancy, Lennard-Jones in reduced units, lattice constant near that at zero pressure."""
    atoms = make_supercell(bulk("Ar", "fcc", a=1.55), 3 * np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]]))
    del atoms[50]
    potential = ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=2.5, onset=2.0)
    return ms.relax(ms.System.from_ase(atoms), potential, fmax=1e-12)


@pytest.fixture(scope="session")
def glass():
    """A binary Lennard-Jones glass of Kob and Andersen's parameters, quenched from random places.

    By FIRE: the glass that L-BFGS finds from there is soft, with a pair so near the cutoff that differences prove nothing.
    """
    rng = np.random.default_rng(3)
    n, density = 80, 1.2
    side = (n / density) ** (1 / 3)
    # A soft repulsion first takes the overlaps out of the random start.
    species = ["A"] * 64 + ["B"] * 16
    start = ms.System(rng.uniform(0, side, (n, 3)), cell=np.eye(3) * side, pbc=True, species=species)
    spread = ms.relax(
        start, ms.SoftSphere(diameter=1.0, epsilon=10.0), solver=ms.FIRE(), fmax=1e-3, throw=False, check_minimum=False
    )
    potential = ms.LennardJones(
        epsilon={"A-A": 1.0, "A-B": 1.5, "B-B": 0.5},
        sigma={"A-A": 1.0, "A-B": 0.8, "B-B": 0.88},
        cutoff=2.5,
        onset=2.0,
    )
    return ms.relax(start.with_positions(spread.system.positions), potential, solver=ms.FIRE(), fmax=1e-12)


@pytest.fixture(scope="session")
def vacancy_jump(argon_vacancy):
    """A neighbour of argon's vacancy jumps into it: both ends, a rough chain between them, which atom and whereto."""
    initial = argon_vacancy
    ideal = make_supercell(bulk("Ar", "fcc", a=1.55), 3 * np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]]))
    arms = ideal.get_distances(50, range(len(ideal)), mic=True, vector=True)
    atom = int(np.argsort(np.linalg.norm(arms, axis=1))[1])
    jump, atom = -arms[atom], atom - (atom > 50)
    there = initial.system.with_positions(initial.system.positions.at[atom].add(jump))
    final = ms.relax(there, initial.potential, fmax=1e-12)
    chain = nudged_chain(initial, final, fmax=0.5)
    return types.SimpleNamespace(initial=initial, final=final, chain=chain, atom=atom, jump=jump)


@pytest.fixture(scope="session")
def salt():
    """`(system, potential)`: a crystal of two Lennard-Jones species in a sheared cell, unrelaxed."""
    potential = ms.LennardJones(
        epsilon={"A-A": 0.05, "A-B": 0.4, "B-B": 0.08}, sigma={"A-A": 2.2, "A-B": 2.5, "B-B": 3.1}, cutoff=7.0, onset=5.5
    )
    atoms = bulk("NaCl", "rocksalt", a=5.4)
    cell = atoms.cell.array @ np.array([[1.0, 0.04, 0.02], [0.0, 1.03, 0.0], [0.01, 0.0, 1.0]])
    return ms.System(atoms.get_scaled_positions() @ cell, cell=cell, pbc=True, species=["A", "B"]), potential


@pytest.fixture(scope="session")
def squeezed_salt(salt):
    """The same, its cell relaxed at 10 GPa."""
    return ms.relax(*salt, cell="free", pressure=10.0, fmax=1e-12)
