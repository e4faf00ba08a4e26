"""One right-hand side of silicon's Hessian beside algebraic multigrid and SciPy, to the same residual.

    python scripts/bench/linear_systems.py [--cells 8] [--rtol 1e-10]

Needs `pip install -e '.[test,bench]'`. mdsens solves with the Hessian that an equilibrium keeps, preconditioned by a coarse
grid of its own; pyamg's smoothed aggregation is given the assembled matrix and the translations, SciPy the matrix alone.
Setting up is what comes before the first iteration; the assembly of the matrix counts for neither peer.
"""

import argparse
import time

import jax
import numpy as np
import pyamg
import scipy.sparse
import scipy.sparse.linalg
from ase.build import bulk

import mdsens as ms
from mdsens.implicit import CG


def timed(call):
    began = time.perf_counter()
    result = jax.block_until_ready(call())
    return result, time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=8, help="cubic cells of 8 atoms along each edge (default: 8)")
    parser.add_argument("--rtol", type=float, default=1e-10, help="relative residual (default: 1e-10)")
    options = parser.parse_args()
    atoms = bulk("Si", cubic=True) * options.cells
    del atoms[len(atoms) // 2]
    eq = ms.relax(ms.System.from_ase(atoms), ms.StillingerWeber.silicon(), fmax=1e-10)
    matrix = scipy.sparse.csr_matrix(ms.hessian(eq.system, eq.potential).tocsr())
    n = len(atoms)
    translations = np.tile(np.eye(3), (n, 1))
    b = np.random.default_rng(0).normal(size=3 * n)
    b -= translations @ (translations.T @ b) / n

    hessian = eq.hessian.solved_by(CG(rtol=options.rtol))
    solve = jax.jit(lambda b: hessian.solve(b)[0])
    solve(b)
    blocks = matrix.tobsr((3, 3))
    settings = {"B": translations, "symmetry": "symmetric", "max_coarse": 300}
    grids, set_up = timed(lambda: pyamg.smoothed_aggregation_solver(blocks, **settings))
    rows = {
        "mdsens, coarse grid and block Jacobi": (0.0, lambda: solve(b)),
        "pyamg, smoothed aggregation with CG": (set_up, lambda: grids.solve(b, tol=options.rtol, accel="cg", maxiter=1000)),
        "SciPy, CG alone": (0.0, lambda: scipy.sparse.linalg.cg(matrix, b, rtol=options.rtol)[0]),
    }
    print(f"{len(atoms)} atoms, {matrix.nnz} numbers in the matrix")
    print(f"{'':38}{'set up [s]':>11}{'solve [s]':>11}{'residual':>10}{'× mdsens':>10}")
    ours = None
    for name, (before, call) in rows.items():
        u, seconds = timed(call)
        ours = seconds if ours is None else ours
        residual = np.linalg.norm(b - matrix @ u) / np.linalg.norm(b)
        print(f"{name:38}{before:11.2f}{seconds:11.3f}{residual:10.1e}{(before + seconds) / ours:10.1f}", flush=True)


if __name__ == "__main__":
    main()
