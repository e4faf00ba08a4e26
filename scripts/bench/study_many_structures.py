"""A sensitivity study of many structures by `mdsens run`, and the same in a loop in Python: both from a new process.

    python scripts/bench/study_many_structures.py [--count 200] [--shapes 8]

Cells of silicon of 8 to 64 atoms, rattled, so that no two are the same, of so many different shapes. The loop relaxes each and
asks for the same observables, their derivatives and the certificate; both compile once for each shape. Prints both times and
their ratio; exit 1 if `mdsens run` takes more than 1.3 times as long.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FLOOR = 1.3
SIZES = ((1, 1, 1), (2, 1, 1), (2, 2, 1), (2, 2, 2))
"""Cubic cells: 8, 16, 32, 64 atoms, and without some of them."""

STUDY = """
[study]
kind = "sensitivity"
[potential]
name = "StillingerWeber"
constructor = "silicon"
[observables.energy]
[observables.pressure]
"""

STRUCTURE = """
[structures.cell{k}]
file = "cell{k}.extxyz"
"""

LOOP = """
import sys
from pathlib import Path
import mdsens as ms
observables = {"energy": ms.observables.energy, "pressure": ms.observables.pressure}
for path in sorted(Path(sys.argv[1]).glob("cell*.extxyz")):
    eq = ms.relax(ms.read(path), ms.StillingerWeber.silicon())
    ms.studies.sensitivity_table(eq, observables)
"""


def made(folder, count, shapes):
    """Write structures and a study of them."""
    import ase.io
    from ase.build import bulk

    text = STUDY
    for k in range(count):
        shape = k % shapes
        atoms = bulk("Si", cubic=True) * SIZES[shape % len(SIZES)]
        del atoms[: shape // len(SIZES)]
        atoms.rattle(0.02, seed=k)
        ase.io.write(folder / f"cell{k}.extxyz", atoms)
        text += STRUCTURE.format(k=k)
    (folder / "study.toml").write_text(text)


def seconds(*command):
    # What one compiles must not be there for the other.
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    begun = time.perf_counter()
    subprocess.run([sys.executable, *map(str, command)], check=True, stdout=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - begun


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--shapes", type=int, default=8)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made(folder, given.count, given.shapes)
        loop = seconds("-c", LOOP, folder)
        run = seconds("-m", "mdsens.cli.app", "run", folder / "study.toml", "-o", folder / "out")
    print(f"{given.count} cells of {given.shapes} shapes: in a loop {loop:.0f} s, by mdsens run {run:.0f} s")
    print(f"ratio {run / loop:.2f} (at most {FLOOR:g})")
    raise SystemExit(int(run > FLOOR * loop))


if __name__ == "__main__":
    main()
