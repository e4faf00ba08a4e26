"""A diameter for each particle: all sensitivities of a packing, and a dense solve of as many right-hand sides by NumPy.

    python scripts/bench/many_parameters.py [-n 1000] [--repetitions 3]

dX/dD has 2 n unknowns and n parameters. NumPy solves A X = B of that size, `numpy.linalg.solve` with a full matrix, and
nothing else: no ∂F/∂D, no residuals, no bound. Exit 1 if `ms.sensitivity` of 1,000 diameters or more, once compiled, takes more
than twice as long.
"""

import argparse
import time

import jax.numpy as jnp
import numpy as np

import mdsens as ms
from mdsens.structures.packing import random_packing

FLOOR = 2.0
FLOOR_FROM = 1000


def best(action, repetitions):
    """The shortest of several times."""
    times = []
    for _ in range(repetitions):
        begun = time.perf_counter()
        action()
        times.append(time.perf_counter() - begun)
    return min(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--dim", type=int, default=2)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    system = random_packing(given.n, {"A": 1.0}, packing_fraction=1.0 if given.dim == 2 else 0.8, dim=given.dim)
    eq = ms.relax(system, ms.SoftSphere(diameter=jnp.asarray(rng.uniform(0.8, 1.2, given.n)), epsilon=1.0), fmax=1e-10)
    begun = time.perf_counter()
    S = ms.sensitivity(eq, wrt=["diameter"])
    first = time.perf_counter() - begun
    unknowns = given.dim * given.n
    matrix = rng.normal(size=(unknowns, unknowns)) + unknowns * np.eye(unknowns)
    sides = rng.normal(size=(unknowns, given.n))
    by_numpy = best(lambda: np.linalg.solve(matrix, sides), given.repetitions)
    ours = best(lambda: ms.sensitivity(eq, wrt=["diameter"]), given.repetitions)
    print(f"{given.n} parameters, {unknowns} unknowns, {S.certificate.linear_solver}")
    print(f"numpy.linalg.solve {by_numpy:.2f} s; ms.sensitivity {ours:.2f} s (the first time {first:.1f} s)")
    print(f"ratio {ours / by_numpy:.2f} (at most {FLOOR:g})")
    raise SystemExit(int(given.n >= FLOOR_FROM and ours > FLOOR * by_numpy))


if __name__ == "__main__":
    main()
