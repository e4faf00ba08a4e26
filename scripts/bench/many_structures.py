"""Many structures at once: structures a second, beside LAMMPS in a loop as two processes, and beside mdsens's own loop.

    python scripts/bench/many_structures.py [--count 500] [--packings 1000] [--growth 10 100 1000 10000] [--only NAMES]

Needs the wheels of the test extra. mdsens uses the cores that it finds, LAMMPS as many processes. Times are those of calls after
one that compiles; LAMMPS's are with the set-up of each structure, and of `minimize` alone. Both reach the same largest force;
mdsens proves in that time that each state is a minimum. Exits 1 where a floor is missed (not with `--quick`).
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from ase.build import bulk, make_supercell

import mdsens as ms
from mdsens.structures.packing import random_packing

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
import lammps_reference

FMAX = 1e-8
SHAKEN = 0.05
SW_LINE = "Si Si Si 2.1683 2.0951 1.80 21.0 1.20 -0.333333333333333333 7.049556277 0.6022245584 4.0 0.0 0.0\n"
DIFFERENCES = 17
"""Relaxations of one structure for central differences in eight parameters."""


def vacancy(seed):
    atoms = bulk("Si", cubic=True) * 2
    del atoms[seed % 64]
    atoms.rattle(SHAKEN, seed=seed)
    return atoms


def by_lammps(count):
    """Relax so many vacancies one after the other; print the seconds of all, and of `minimize`."""
    lmp, _ = lammps_reference._instance()
    path = Path(f"many.{os.getpid()}.sw").absolute()
    path.write_text(SW_LINE)
    all_atoms, inside = [vacancy(seed) for seed in range(count)], 0.0
    try:
        for turn in range(2):
            begun, inside = time.perf_counter(), 0.0
            for atoms in all_atoms:
                lx, ly, lz = atoms.cell.lengths().tolist()
                for command in ("clear", "units metal", "atom_style atomic", "atom_modify map array", "boundary p p p"):
                    lmp.command(command)
                for command in (f"region cell block 0 {lx!r} 0 {ly!r} 0 {lz!r}", "create_box 1 cell", "mass * 28.0"):
                    lmp.command(command)
                lmp.create_atoms(len(atoms), None, [1] * len(atoms), atoms.positions.ravel().tolist())
                for command in ("pair_style sw", f"pair_coeff * * {path} Si", "neighbor 1.0 bin", "thermo 100000"):
                    lmp.command(command)
                lmp.command("min_style cg")
                lmp.command("min_modify norm max")
                before = time.perf_counter()
                lmp.command(f"minimize 0 {FMAX} 5000 100000")
                inside += time.perf_counter() - before
            if turn:
                print(time.perf_counter() - begun, inside)
    finally:
        path.unlink()


def lammps_rates(count, processes):
    """Return structures a second by so many processes at once, with their set-up and without."""
    share = max(1, count // processes)
    command = [sys.executable, __file__, "--lammps", str(share)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(processes)]
    rates = np.zeros(2)
    for process in running:
        whole, inside = map(float, process.communicate()[0].split())
        rates += share / np.array([whole, inside])
    return rates


def median_time(function, repeats=3):
    function()
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        function()
        times.append(time.perf_counter() - begun)
    return float(np.median(times))


class Page:
    """What is measured, and the floors that were missed."""

    def __init__(self, judges):
        self.judges, self.missed = judges, []

    def say(self, text, value=None, floor=None):
        mark = "" if floor is None else f"  (at least {floor:g})"
        print(f"{text}{mark}", flush=True)
        if floor is not None and self.judges and not value >= floor:
            self.missed.append(text)


def silicon(page, options):
    potential, count = ms.StillingerWeber.silicon(), options.count
    systems = [ms.System.from_ase(vacancy(seed)) for seed in range(count)]
    cores = len(os.sched_getaffinity(0))
    whole, inside = lammps_rates(min(count, 200), cores)
    page.say(f"LAMMPS cg, {cores} processes: {whole:.0f} structures a second, {inside:.0f} without set-up")
    seconds = median_time(lambda: ms.relax(systems, potential, fmax=FMAX))
    rate = count / seconds
    page.say(
        f"{count} vacancies of 63 atoms, relaxed to {FMAX:g} eV/Å and proven minima: {rate:.0f} a second, "
        f"{rate / whole:.2f} of LAMMPS's rate ({rate / inside:.2f} without set-up)",
        rate / whole,
        0.6,
    )
    eqs = ms.relax(systems, potential, fmax=FMAX)
    more = median_time(lambda: ms.sensitivity(eqs))
    rate = count / (seconds + more)
    page.say(
        f"the same with dX/dθ for 8 parameters: {rate:.0f} a second, {rate / (whole / DIFFERENCES):.1f} × LAMMPS's central "
        f"differences ({rate / (inside / DIFFERENCES):.1f} × without set-up); sensitivity alone {1e3 * more / count:.2f} ms each",
        rate / (whole / DIFFERENCES),
        8.0,
    )
    few = systems[: max(4, count // 10)]
    loop = median_time(lambda: [ms.relax(system, potential, fmax=FMAX) for system in few]) / len(few)
    page.say(
        f"a loop of relax: {1e3 * loop:.1f} ms each, together {1e3 * seconds / count:.2f} ms: {loop / (seconds / count):.1f} ×"
    )


def beside_loop(page, name, systems, potential, floor, loop_count=8, **relax):
    seconds = median_time(lambda: ms.relax(systems, potential, **relax), 1) / len(systems)
    eqs = ms.relax(systems, potential, **relax)
    more = median_time(lambda: ms.sensitivity(eqs), 1) / len(systems)
    few = systems[:loop_count]
    loop = median_time(lambda: [ms.sensitivity(ms.relax(system, potential, **relax)) for system in few]) / len(few)
    page.say(
        f"{len(systems)} {name}: {1e3 * seconds:.2f} + {1e3 * more:.2f} ms each (relax, sensitivity), loop {1e3 * loop:.1f} ms: "
        f"{loop / (seconds + more):.1f} ×",
        loop / (seconds + more),
        floor,
    )


def packings(page, options):
    diameters = {"A": 1.0, "B": 0.6}
    systems = [random_packing(128, diameters, seed=seed) for seed in range(options.packings)]
    beside_loop(page, "packings of 128 particles", systems, ms.SoftSphere(diameter=diameters, epsilon=1.0), 10.0)


def others(page, options):
    count = max(8, options.count // 10)

    def copper(seed):
        atoms = bulk("Cu", cubic=True) * 3
        del atoms[seed % 108]
        atoms.rattle(SHAKEN, seed=seed)
        return ms.System.from_ase(atoms)

    beside_loop(
        page,
        "copper vacancies (EAM, 107 atoms)",
        [copper(k) for k in range(count)],
        ms.EAM.from_file(lammps_reference.shipped("Cu_u3.eam")),
        1.0,
        fmax=FMAX,
    )

    def glass(seed):
        atoms = make_supercell(bulk("Ar", "fcc", a=1.6), 4 * np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]]))
        atoms.rattle(0.3, seed=seed)
        return ms.System(atoms.positions, cell=atoms.cell.array, pbc=True)

    beside_loop(
        page,
        "Lennard-Jones glasses of 256",
        [glass(k) for k in range(count)],
        ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=2.5, onset=2.0),
        1.0,
        loop_count=4,
    )

    def carbide(seed):
        atoms = bulk("SiC", "zincblende", a=4.36, cubic=True) * 2
        del atoms[seed % 64]
        atoms.rattle(SHAKEN, seed=seed)
        return ms.System.from_ase(atoms)

    tersoff = ms.Tersoff.from_file(lammps_reference.shipped("SiC.tersoff"))
    beside_loop(
        page, "silicon carbide vacancies (Tersoff, 63 atoms)", [carbide(k) for k in range(count)], tersoff, 1.0, fmax=FMAX
    )
    cells = [ms.System.from_ase(bulk("Si", cubic=True, a=5.43 + 0.002 * k)) for k in range(50)]
    beside_loop(page, "free cells of 8 silicon atoms", cells, ms.StillingerWeber.silicon(), 1.0, cell="free", pressure=1.0)


def committee(page, options):
    import jax

    silicon, system = ms.StillingerWeber.silicon(), ms.System.from_ase(vacancy(1))
    random = np.random.default_rng(0)
    sets = [jax.tree.map(lambda leaf: leaf * (1.0 + 0.02 * random.normal()), silicon) for _ in range(50)]
    seconds = median_time(lambda: ms.relax(system, sets, fmax=FMAX))
    loop = median_time(lambda: [ms.relax(system, one, fmax=FMAX) for one in sets])
    page.say(
        f"50 sets of parameters on one vacancy: {seconds:.2f} s, a loop {loop:.2f} s: {loop / seconds:.1f} ×", loop / seconds, 5.0
    )


def growth(page, options):
    potential, rates = ms.StillingerWeber.silicon(), {}
    for count in options.growth:
        systems = [ms.System.from_ase(vacancy(seed)) for seed in range(count)]
        seconds = median_time(lambda systems=systems: ms.relax(systems, potential, fmax=FMAX), max(1, 3 - count // 1000)) / count
        rates[count] = seconds
        page.say(f"{count} vacancies: {1e3 * seconds:.2f} ms each")
    first, last = rates[options.growth[0]], rates[options.growth[-1]]
    page.say(f"cost a structure from {options.growth[0]} to {options.growth[-1]}: × {last / first:.2f}", first / last, 1.0 / 1.1)


PARTS = {part.__name__: part for part in (silicon, packings, others, committee, growth)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--packings", type=int, default=1000)
    parser.add_argument("--growth", type=int, nargs="*", default=[10, 100, 1000, 10000])
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="few structures, and no floors")
    parser.add_argument("--lammps", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.lammps:
        by_lammps(options.lammps)
        return
    if options.quick:
        options.count, options.packings, options.growth = 16, 8, [8, 16]
    page = Page(judges=not options.quick)
    for name in options.only:
        PARTS[name](page, options)
    if page.missed:
        sys.exit("Missed: " + "; ".join(page.missed))


if __name__ == "__main__":
    main()
