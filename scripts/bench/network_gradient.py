"""The gradient of one observable in a hundred thousand weights of a network beside that in ten of them.

    python scripts/bench/network_gradient.py [--cells 5] [--hidden 310]

Silicon with a vacancy, relaxed with the network that mdsens ships, widened by units of little weight to two hidden layers of
the given size. The observable is the distance between two of the vacancy's neighbours. In the second potential all weights but
ten are constants. Times are the least of several runs after one that compiles.
"""

import argparse
import importlib.metadata
import os
import platform
import resource
import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from ase.build import bulk
from engine import medians

import mdsens as ms
from mdsens.potentials.species import Atom

FMAX = 1e-8
FLOOR = 1.5
"""The gradient in all weights costs at most so many times that in ten."""


def widened(potential, hidden, rng):
    """The same network with more units, whose weights hardly count."""
    old = potential.network["Si"]
    sizes = [potential.n_inputs, hidden, hidden, 1]
    network = {}
    for k in (1, 2, 3):
        weight, bias = 0.01 * rng.normal(size=(sizes[k], sizes[k - 1])) / np.sqrt(sizes[k - 1]), np.zeros(sizes[k])
        rows, columns = old[f"W{k}"].shape
        weight[:rows, :columns], bias[:rows] = old[f"W{k}"], old[f"b{k}"]
        network[f"W{k}"], network[f"b{k}"] = weight, bias
    return ms.BehlerParrinello(**potential.parameters() | {"network": {"Si": network}}, **settings(potential))


def settings(potential):
    return {name: getattr(potential, name) for name in ("zeta", "lam", "cutoff", "cutoff_function", "angular", "activation")}


def with_ten_parameters(potential):
    """The same energies; parameters are ten weights of the second layer, the others are constants."""

    def apply(ten, d, i, j, mask):
        whole = eqx.tree_at(lambda p: p.network["Si"]["W2"], potential, potential.network["Si"]["W2"].at[0, :10].set(ten))
        return whole.site_energy(d, *(Atom(code, code, ("Si",), 0) for code in (i, j)), mask)

    ten = potential.network["Si"]["W2"][0, :10]
    return ms.NetworkPotential(apply, ten, potential.cutoff, continuous=2, width=potential.site_numbers(1))


def vacancy(cells):
    """`(system, the atoms around the vacancy)`."""
    atoms = bulk("Si", cubic=True) * cells
    near = np.argsort(atoms.get_distances(0, range(len(atoms)), mic=True))[1:5]
    atoms.positions[near] -= 0.1 * atoms.get_distances(0, near, mic=True, vector=True)
    del atoms[0]
    return ms.System.from_ase(atoms), near - 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=5, help="cubic cells of 8 atoms along each edge (default: 5)")
    parser.add_argument("--hidden", type=int, default=310, help="units of each hidden layer (default: 310)")
    parser.add_argument("--repeat", type=int, default=2, help="runs (default: 2)")
    options = parser.parse_args()
    potential = widened(ms.BehlerParrinello.silicon(), options.hidden, np.random.default_rng(0))
    system, near = vacancy(options.cells)
    weights = sum(leaf.size for leaf in jax.tree.leaves(potential))
    print(f"{os.cpu_count()} cores, {platform.machine()}, {jax.devices()[0].platform}; jax {importlib.metadata.version('jax')}")
    print(f"{len(system)} atoms, {weights} parameters")

    def opening(system, potential):
        gap = system.positions[near[0]] - system.positions[near[1]]
        return jnp.linalg.norm(gap - system.cell.T @ jnp.round(jnp.linalg.solve(system.cell.T, gap)))

    ms.relax(system, potential, fmax=FMAX)
    began = time.perf_counter()
    eq = ms.relax(system, potential, fmax=FMAX)
    relaxation = time.perf_counter() - began
    few = ms.relax(eq.system, with_ten_parameters(potential), fmax=FMAX)

    def first_gradient(eq):
        # A state keeps ∂F/∂θ of a few parameters: here each gradient is the first one at its state.
        eq.hessian.aside.value.slopes = None
        return ms.gradient(opening, eq)

    of_all, of_ten = medians(options.repeat, lambda: first_gradient(eq), lambda: first_gradient(few))
    same = np.asarray(ms.gradient(opening, eq).network["Si"]["W2"])[0, :10], np.asarray(ms.gradient(opening, few).params)
    np.testing.assert_allclose(*same, rtol=1e-5, atol=1e-6 * np.abs(same[0]).max())
    print(f"{'relaxation':38s} {relaxation:8.2f} s, {eq.steps} steps")
    print(f"{'gradient in ten weights':38s} {of_ten:8.2f} s")
    print(f"{f'gradient in all {weights} parameters':38s} {of_all:8.2f} s, {of_all / of_ten:.2f} times (floor {FLOOR})")
    print(f"memory at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")
    if of_all > FLOOR * of_ten:
        sys.exit("the floor was missed")


if __name__ == "__main__":
    main()
