"""What the first call costs a person at a prompt: relax silicon with a vacancy and differentiate it, in new processes.

Prints a row each for a process without kept programs, one that writes them (`mdsens.keep_compiled`) and one that finds them;
each with the first call, a second structure of as many atoms, and the first structure again.
"""

import argparse
import os
import subprocess
import sys
import tempfile

PROGRAM = """
import sys, time
begun = time.perf_counter()
import mdsens as ms
from ase.build import bulk
if len(sys.argv) > 2:
    ms.keep_compiled(sys.argv[2])
def structure(seed):
    atoms = bulk("Si", cubic=True) * int(sys.argv[1])
    del atoms[0]
    atoms.rattle(0.02, seed=seed)
    return ms.System.from_ase(atoms)
def job(seed):
    start = time.perf_counter()
    assert ms.sensitivity(ms.relax(structure(seed), ms.StillingerWeber.silicon())).certificate.trusted
    return time.perf_counter() - start
ms.relax, ms.sensitivity, ms.StillingerWeber
print(time.perf_counter() - begun, job(1), job(2), job(1))
"""


def seconds(repeat, folder=None):
    arguments = [sys.executable, "-c", PROGRAM, str(repeat), *([] if folder is None else [folder])]
    # What earlier sessions have compiled does not count.
    environment = {**os.environ, "MDSENS_KEEP_COMPILED": "0"}
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, env=environment)
    return [float(word) for word in done.stdout.split()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="cubic cells of 8 atoms along each edge (default: 3)")
    repeat = parser.parse_args().repeat
    print(f"silicon, {8 * repeat**3 - 1} atoms, seconds")
    print(f"{'':22}{'import':>9}{'first':>9}{'similar':>9}{'again':>9}")
    with tempfile.TemporaryDirectory() as folder:
        for name, where in (("nothing kept", None), ("kept for the first time", folder), ("found again", folder)):
            print(f"{name:22}" + "".join(f"{s:9.2f}" for s in seconds(repeat, where)), flush=True)


if __name__ == "__main__":
    main()
