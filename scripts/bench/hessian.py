"""Assembling the Hessian of silicon with a vacancy as a sparse matrix: `mdsens.hessian` beside matscipy's analytic one.

Both from positions to the finished SciPy matrix, each with its own neighbour list; medians of a few calls after a first.
"""

import argparse
import time

import numpy as np
from ase.build import bulk
from matscipy.calculators.manybody import Manybody, StillingerWeber
from matscipy.calculators.manybody.explicit_forms.stillinger_weber import Stillinger_Weber_PRB_31_5262_Si as published

import mdsens as ms


def median(call, repeats):
    call()
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - begun)
    return float(np.median(times)), result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=8, help="cubic cells of 8 atoms along each edge (default: 8)")
    parser.add_argument("--calls", type=int, default=3, help="calls of each (default: 3)")
    options = parser.parse_args()
    atoms = bulk("Si", cubic=True) * options.repeat
    del atoms[0]
    atoms.rattle(0.01, seed=1)
    system, potential = ms.System.from_ase(atoms), ms.StillingerWeber.silicon()
    peer = Manybody(**StillingerWeber({**published, "costheta0": 1.0 / 3.0}))
    ours, matrix = median(lambda: ms.hessian(system, potential), options.calls)
    theirs, expected = median(lambda: peer.get_hessian(atoms, format="sparse"), options.calls)
    difference = abs(matrix.tocsr() - expected.tocsr()).max() / abs(expected).max()
    print(f"{'atoms':>9}{'mdsens s':>11}{'matscipy s':>12}{'ratio':>8}{'difference':>13}")
    print(f"{len(atoms):9d}{ours:11.3f}{theirs:12.3f}{ours / theirs:8.3f}{difference:13.1e}")


if __name__ == "__main__":
    main()
