"""The elastic tensor of a silicon vacancy with its derivative in all eight parameters, beside what differences would cost.

    python scripts/bench/elastic_jacobian.py [-n 8] [--parameters sigma lam ...]

One process measures, each after a first call that compiles: `ms.relax` from the unrelaxed vacancy in 8 n³ - 1 atoms, the
elastic tensor of the relaxed structure, the tensor with `ms.value_and_jacobian(elastic_constants, eq)`, and differences: for
each parameter two relaxations from the equilibrium (without the check of the lowest curvature, which a difference could
do without) and two tensors. The differences of parameters that were not asked for are counted as those of the mean one.

Exit 1 if the tensor with its Jacobian takes longer than 5 relaxations, or more than a tenth of the differences.
"""

import argparse
import importlib.metadata
import os
import platform
import time

import jax
import numpy as np
from ase.build import bulk

import mdsens as ms
from mdsens.observables import elastic_constants
from mdsens.potentials.base import parameter_paths

RELAXATIONS = 5.0
DIFFERENCES = 10.0

FMAX = 1e-8
STEP = 1e-4
"""Relative change of a parameter."""


def vacancy(n: int) -> ms.System:
    """Perfect silicon without one atom, its four neighbours a little inward: the ideal lattice is a metastable place."""
    atoms = bulk("Si", cubic=True) * n
    missing = len(atoms) // 2
    arms = atoms.get_distances(missing, range(len(atoms)), mic=True, vector=True)
    lengths = np.linalg.norm(arms, axis=1)
    near = np.argsort(lengths)[1:5]
    atoms.positions[near] -= 0.4 * arms[near] / lengths[near, None]
    del atoms[missing]
    return ms.System.from_ase(atoms)


def timed(function):
    """`(result, seconds of the first call, seconds of the second)`."""
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        result = jax.block_until_ready(function())
        seconds.append(time.perf_counter() - began)
    return result, *seconds


def differences(eq, name):
    """dC/dθ by two relaxations and two tensors."""
    leaves, structure = jax.tree.flatten(eq.potential)
    k = parameter_paths(eq.potential).index(name)
    h = STEP * abs(float(leaves[k]))

    def at(change):
        potential = jax.tree.unflatten(structure, [leaf + change * (m == k) for m, leaf in enumerate(leaves)])
        again = ms.relax(eq.system, potential, fmax=FMAX, check_minimum=False, progress=False)
        return np.asarray(elastic_constants(again.system, potential))

    return (at(h) - at(-h)) / (2 * h)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=8, help="cubic cells along each side (8: 4,095 atoms)")
    parser.add_argument("--parameters", nargs="+", help="whose differences are measured (all)")
    options = parser.parse_args()
    system, potential = vacancy(options.n), ms.StillingerWeber.silicon()
    paths = parameter_paths(potential)
    measured = options.parameters or paths
    if unknown := set(measured) - set(paths):
        parser.error(f"there is no parameter {unknown.pop()!r}: choose from {', '.join(paths)}")
    names = ("jax", "jaxlib", "mdsens")
    print(
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, "
        + ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    )

    eq, *relaxing = timed(lambda: ms.relax(system, potential, fmax=FMAX, progress=False))
    C, *of_tensor = timed(lambda: elastic_constants(eq.system, potential))
    (_, J), *of_both = timed(lambda: ms.value_and_jacobian(elastic_constants, eq))
    differences(eq, measured[0])  # compiles
    columns, seconds = {}, {}
    for name in measured:
        began = time.perf_counter()
        columns[name] = differences(eq, name)
        seconds[name] = time.perf_counter() - began
    mean = float(np.mean(list(seconds.values())))

    relaxation, both, whole = relaxing[1], of_both[1], mean * len(paths)
    print(f"\n{len(eq.system)} atoms, relaxed in {eq.steps} steps to {eq.fmax:.0e} eV/Å; C11 = {C[0, 0]:.3f} GPa")
    print(f"  {'':58} {'first [s]':>10} {'then [s]':>10} {'relaxations':>12}")
    rows = [
        ("relaxation", *relaxing),
        ("elastic tensor", *of_tensor),
        (f"tensor with its Jacobian in {len(paths)} parameters", *of_both),
        (f"differences in one parameter, mean of {len(measured)}", None, mean),
        (f"differences in all {len(paths)}" + ("" if len(measured) == len(paths) else ", counted"), None, whole),
    ]
    for name, first, then in rows:
        print(f"  {name:58} {'' if first is None else f'{first:.2f}':>10} {then:10.2f} {then / relaxation:12.2f}")
    found = dict(zip(paths, jax.tree.leaves(J), strict=True))
    scaled = {name: abs(float(getattr(potential, name))) for name in measured}
    largest = max(scaled[name] * np.abs(found[name]).max() for name in measured)
    off = max(scaled[name] * np.abs(columns[name] - found[name]).max() for name in measured) / largest
    print(f"\nThe Jacobian and the differences agree to {off:.1e} of the largest θ dC/dθ.")
    print(f"Tensor and Jacobian: {both / relaxation:.2f} relaxations, {whole / both:.1f} times under the differences.")
    return int(both > RELAXATIONS * relaxation or whole < DIFFERENCES * both)


if __name__ == "__main__":
    raise SystemExit(main())
