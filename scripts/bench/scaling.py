"""Cost per atom and memory against the number of atoms: silicon with a vacancy, relaxed, one adjoint, each size in its process.

    python scripts/bench/scaling.py [--cells 4 8 16 32] [--picture FILE]

Times are of a second job after one that compiles; memory is the largest resident size of the process. On the CPU or a GPU.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import jax
from ase.build import bulk

import mdsens as ms
from mdsens.potentials.base import _forces

COLUMNS = ("forces", "relaxation", "curvatures", "adjoint")


def seconds(function):
    began = time.perf_counter()
    result = function()
    jax.block_until_ready(jax.tree.leaves(result))
    return time.perf_counter() - began, result


def job(cells, fmax):
    atoms = bulk("Si", cubic=True) * cells
    del atoms[len(atoms) // 2]
    system, potential = ms.System.from_ase(atoms), ms.StillingerWeber.silicon()
    listed = system.with_neighbors(potential)
    row = {"atoms": len(atoms)}
    # The first of each compiles.
    for _ in range(2):
        row["forces"], _ = seconds(lambda: _forces(potential, listed))
    for _ in range(2):
        row["relaxation"], _ = seconds(lambda: ms.relax(system, potential, fmax=fmax, check_minimum=False).system.positions)
    for _ in range(2):
        whole, eq = seconds(lambda: ms.relax(system, potential, fmax=fmax))
    row["curvatures"] = whole - row["relaxation"]
    for _ in range(2):
        row["adjoint"], _ = seconds(lambda: ms.value_and_gradient(ms.observables.pressure, eq)[0])
    row |= {"steps": int(eq.steps), "fmax": float(eq.fmax)}
    # Linux counts kilobytes, macOS bytes.
    row["gigabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)
    return row


def draw(rows, file):
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    atoms = [row["atoms"] for row in rows]
    for name in COLUMNS:
        left.semilogx(atoms, [1e6 * row[name] / row["atoms"] for row in rows], "o-", label=name)
    left.set(xlabel="atoms", ylabel="µs per atom", title="Silicon with a vacancy")
    left.set_ylim(0.0, 1.5 * left.get_ylim()[1])
    left.legend(frameon=False, ncols=2, loc="upper center")
    right.semilogx(atoms, [row["gigabytes"] for row in rows], "o-", color="black")
    right.set(xlabel="atoms", ylabel="largest resident size [GB]", ylim=(0.0, None))
    figure.savefig(file, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", nargs="+", type=int, default=[4, 8, 16, 32], help="cubic cells of 8 atoms along each edge")
    parser.add_argument("--fmax", type=float, default=1e-10)
    parser.add_argument("--picture", help="file to draw into")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(job(options.cells[0], options.fmax)))
        return
    print(f"{jax.devices()[0].platform}; µs per atom")
    print(f"{'atoms':>9}" + "".join(f"{name:>12}" for name in COLUMNS) + f"{'whole job':>12}{'steps':>7}{'GB':>8}", flush=True)
    rows = []
    for cells in options.cells:
        command = [sys.executable, __file__, "--one", "--cells", str(cells), "--fmax", str(options.fmax)]
        row = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        rows.append(row)
        each = [1e6 * row[name] / row["atoms"] for name in COLUMNS]
        whole = sum(each[1:])
        print(
            f"{row['atoms']:9d}" + "".join(f"{t:12.2f}" for t in (*each, whole)) + f"{row['steps']:7d}{row['gigabytes']:8.2f}",
            flush=True,
        )
    if options.picture:
        draw(rows, options.picture)


if __name__ == "__main__":
    main()
