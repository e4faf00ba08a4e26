"""Train a small Behler-Parrinello network on Stillinger and Weber's silicon, and save it.

    python scripts/train_silicon_network.py [--output data/silicon_network.npz] [--steps 1500]

Energies and forces of rattled, strained cells, with and without a vacancy, are made on the fly; a fifth of them tests. The
symmetry functions have no weights, so they and their derivatives are computed once, and only the network is evaluate in
the fit: full batch, L-BFGS of SciPy. What is printed are errors on structures that the fit did not see.
"""

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from ase.build import bulk
from jax.flatten_util import ravel_pytree

import mdsens as ms
from mdsens.potentials.learned.perceptron import depth, evaluate
from mdsens.structures.neighbors.neighbor_list import widen
from mdsens.structures.neighbors.sums_over_neighbors import from_neighbors

FORCE_WEIGHT = 0.05
"""Weight of the squared error of a force component [eV/Å] against that of an energy per atom [eV]."""

DECAY = 1e-7
"""Weight of the mean square of the weights, which makes the fit's answer one."""


def structures(rng, count):
    """Rattled and strained silicon: 64 atoms, or 63 around a vacancy."""
    for k in range(count):
        atoms = bulk("Si", cubic=True) * 2
        if k % 2:
            del atoms[rng.integers(len(atoms))]
        strain = rng.normal(scale=0.015, size=(3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.5 * (strain + strain.T)), scale_atoms=True)
        atoms.positions += rng.normal(scale=rng.choice([0.02, 0.05, 0.1, 0.15]), size=atoms.positions.shape)
        yield ms.System.from_ase(atoms)


def start():
    """What is trained: 12 radial and 12 angular functions, two hidden layers."""
    grid = [(eta, zeta, lam) for eta in (0.01, 0.06) for zeta in (1, 2, 4) for lam in (1, -1)]
    angular_eta, zeta, lam = zip(*grid, strict=True)
    Rs = np.linspace(1.8, 3.8, 12)
    return ms.BehlerParrinello.untrained(
        "Si",
        cutoff=4.2,
        eta=np.full(len(Rs), 12.0),
        Rs=Rs,
        angular_eta=angular_eta,
        zeta=zeta,
        lam=lam,
        angular="G5",
        hidden=(32, 32),
        seed=1,
    )


class Data(NamedTuple):
    """Structures side by side, atoms along the last axis: inputs of the network, their slopes in the bonds, and the truth."""

    inputs: jax.Array
    slopes: jax.Array
    atom: jax.Array
    opposite: jax.Array
    owner: jax.Array
    sizes: jax.Array
    energies: jax.Array
    forces: jax.Array


def measured(potential, systems, truth):
    """The symmetry functions of all structures, scaled, with true energies per atom and forces."""
    listed = [system.with_neighbors(potential, skin=0.0) for system in systems]
    capacity = max(system.neighbors.atom.shape[0] for system in listed)
    total = sum(map(len, systems))

    @jax.jit
    def functions(system):
        sites = potential._sites(system)
        values = jax.vmap(potential.features, in_axes=-1, out_axes=-1)(*sites)
        return values, jax.vmap(jax.jacrev(potential.features), in_axes=-1, out_axes=-1)(*sites)

    columns, first = [], 0
    for k, system in enumerate(listed):
        neighbors = widen(system.neighbors, capacity)
        values, slopes = functions(eqx.tree_at(lambda s: s.neighbors, system, neighbors))
        # In the list of all structures each place has the same row and a later column.
        row, column = np.divmod(np.asarray(neighbors.opposite), len(system))
        opposite = np.where(neighbors.used, row * total + column + first, -1)
        owner, forces = np.full(len(system), k), np.asarray(truth.forces(system)).T
        columns.append((values, slopes, np.asarray(neighbors.atom) + first, opposite, owner, forces))
        first += len(system)
    values, slopes, atom, opposite, owner, forces = (np.concatenate(part, axis=-1) for part in zip(*columns, strict=True))
    mean, spread = np.asarray(potential.mean["Si"]), np.asarray(potential.spread["Si"])
    return Data(
        inputs=jnp.asarray((values - mean[:, None]) / spread[:, None]),
        slopes=jnp.asarray(slopes / spread[:, None, None, None]),
        atom=jnp.asarray(atom),
        opposite=jnp.asarray(opposite),
        owner=jnp.asarray(owner),
        sizes=jnp.asarray([len(system) for system in systems]),
        energies=jnp.asarray([float(truth.energy(system)) / len(system) for system in systems]),
        forces=jnp.asarray(forces),
    )


def errors(network, data, activation):
    """Of the energy per atom of each structure, and of each force component."""
    energies, pullback = jax.vjp(lambda x: evaluate(network, x, activation)[0], data.inputs)
    by_input = pullback(jnp.ones_like(energies))[0]
    on_bonds = jnp.moveaxis(jnp.sum(by_input[:, None, None] * data.slopes, axis=0), 1, 0)
    forces = jnp.sum(on_bonds, axis=1) - from_neighbors(on_bonds, data)
    means = jax.ops.segment_sum(energies, data.owner, len(data.sizes)) / data.sizes
    return means - data.energies, forces - data.forces


def trained(potential, data, steps):
    """The potential with the network that L-BFGS finds, and the steps it took."""
    flat, unravel = ravel_pytree(potential.network["Si"])

    @jax.jit
    def slope(flat, data):
        def loss(flat):
            energy, force = errors(unravel(flat), data, potential.activation)
            return jnp.mean(energy**2) + FORCE_WEIGHT * jnp.mean(force**2) + DECAY * jnp.mean(flat**2)

        return jax.value_and_grad(loss)(flat)

    found = scipy.optimize.minimize(
        lambda x: tuple(np.asarray(part, dtype=float) for part in slope(jnp.asarray(x), data)),
        np.asarray(flat),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": steps, "maxfun": 2 * steps, "maxcor": 40, "ftol": 0.0, "gtol": 0.0},
    )
    return eqx.tree_at(lambda p: p.network["Si"], potential, unravel(jnp.asarray(found.x))), found.nit


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("silicon_network.npz"), help="file to write")
    parser.add_argument("--structures", type=int, default=60, help="how many (default: 60)")
    parser.add_argument("--steps", type=int, default=1500, help="of L-BFGS (default: 1500)")
    options = parser.parse_args()

    began, rng = time.perf_counter(), np.random.default_rng(0)
    truth, systems = ms.StillingerWeber.silicon(), list(structures(rng, options.structures))
    potential = start().scaled_to(systems)
    fifth = len(systems) // 5
    test, train = (measured(potential, part, truth) for part in (systems[:fifth], systems[fifth:]))
    # The network learns what differs from the mean energy of an atom.
    last = f"b{depth(potential.network['Si'])}"
    potential = eqx.tree_at(lambda p: p.network["Si"][last], potential, jnp.mean(train.energies)[None])
    size = sum(leaf.size for leaf in jax.tree.leaves(potential.network))
    print(f"{len(systems)} structures, {size} weights, {time.perf_counter() - began:.0f} s", flush=True)

    potential, steps = trained(potential, train, options.steps)
    potential.to_file(options.output)
    for name, data in (("fitted", train), ("not seen", test)):
        energy, force = (float(jnp.sqrt(jnp.mean(e**2))) for e in errors(potential.network["Si"], data, potential.activation))
        spread = float(jnp.std(data.forces))
        print(f"{name:9s} rms error: energy {1e3 * energy:.2f} meV/atom, forces {1e3 * force:.1f} of {1e3 * spread:.0f} meV/Å")
    print(f"{steps} steps, {time.perf_counter() - began:.0f} s; written to {options.output}")


if __name__ == "__main__":
    main()
