"""Atoms per second and bytes per second on whatever device JAX has, beside what a plain copy on it reaches.

    python scripts/bench/gpu.py [--cells 11 23 50] [--dtype float64]

Silicon with a vacancy. Bytes are those of the arrays that a call must read and write at least once; what is gathered twice or
spilled counts once, so a share above one half is good.
"""

import argparse
import time

import equinox as eqx
import jax
import jax.numpy as jnp
from ase.build import bulk

import mdsens as ms
from mdsens.potentials.base import _forces

COPIED = 2**27
"""Numbers in the array whose copy is timed: more than any cache holds."""


def least(function, *arguments, repeat=5):
    """Seconds of the fastest call, after one that compiles."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(repeat):
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - began)
    return min(times)


def size_of(*trees):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(trees))


def copy_speed():
    # In place, in a loop that a compiler cannot unroll: memory that is fresh each time costs more than the copy.
    times, x = 8, jnp.zeros(COPIED)
    passes = jax.jit(lambda n, x: jax.lax.fori_loop(0, n, lambda _, x: x + 1.0, x), donate_argnums=1)
    x = jax.block_until_ready(passes(times, x))
    began = time.perf_counter()
    jax.block_until_ready(passes(times, x))
    return 2 * COPIED * x.dtype.itemsize * times / (time.perf_counter() - began)


def measure(cells, dtype, speed):
    atoms = bulk("Si", cubic=True) * cells
    del atoms[len(atoms) // 2]
    system = ms.System.from_ase(atoms).astype(dtype)
    potential = ms.StillingerWeber.silicon().astype(dtype)
    listed = system.with_neighbors(potential, skin=0.0)
    neighbors, x = listed.neighbors, listed.positions
    lists = (neighbors.atom, neighbors.kind, neighbors.opposite)
    stored = eqx.filter_jit(lambda potential, system: potential.local_stiffness(system))
    product = jax.jit(lambda stiffness, v, neighbors: stiffness.product(v, neighbors))
    stiffness = stored(potential, listed)
    rows = {
        "forces": (least(_forces, potential, listed), size_of(lists, x, x)),
        "second derivatives": (least(stored, potential, listed), size_of(lists, x, stiffness)),
        "stored product": (least(product, stiffness, x.T, neighbors), size_of(lists, stiffness, x, x)),
    }
    for name, (seconds, moved) in rows.items():
        print(
            f"{len(atoms):9d} {name:20s}{1e3 * seconds:11.3f}{len(atoms) / seconds / 1e6:11.2f}{moved / seconds / 1e9:9.1f}"
            f"{moved / seconds / speed:8.2f}",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", nargs="+", type=int, default=[11, 23, 50], help="cubic cells of 8 atoms along each edge")
    parser.add_argument("--dtype", choices=("float64", "float32"), default="float64")
    options = parser.parse_args()
    device, speed = jax.devices()[0], copy_speed()
    print(
        f"{device.device_kind} ({device.platform}), jax {jax.__version__}, {options.dtype}; a copy reaches {speed / 1e9:.1f} GB/s"
    )
    print(f"{'atoms':>9} {'':20}{'ms':>11}{'Matoms/s':>11}{'GB/s':>9}{'share':>8}")
    for cells in options.cells:
        measure(cells, options.dtype, speed)


if __name__ == "__main__":
    main()
