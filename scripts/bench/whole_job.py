"""The whole job beside what a physicist does today: relax silicon with a vacancy and differentiate it in all 8 parameters.

    python scripts/bench/whole_job.py [--cells 16]

LAMMPS relaxes the structure, changes each parameter up and down by a thousandth, and relaxes again from where it was, on one
core and on all. Its largest force is 1e-8 eV/Å, at which its differences are as good as at 1e-10 (the step of the differences
decides) for less work; mdsens's is its default, the same. mdsens relaxes and solves, with its certificate, on the cores that
JAX finds.
Both end with 8 derivatives of all positions (`sensitivity`) or of one observable (the adjoint gradient). Times are medians of
three runs after one that compiles; the largest difference of θ dX/dθ between both is printed.
"""

import argparse
import importlib.metadata
import os
import platform
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from engine import SW_FILE, Lammps, medians, silicon

import mdsens as ms

STEP = 1e-3
FMAX = 1e-8


class Differences(Lammps):
    """Central differences of structures that LAMMPS relaxed again."""

    def minimised(self):
        """`(seconds, positions)`, from where it is; by fire from where cg's line search sees nothing but rounding."""
        began = time.perf_counter()
        for style in ("cg", "fire"):
            for command in (f"min_style {style}", "min_modify norm max", f"minimize 0 {FMAX} 20000 200000"):
                self.lmp.command(command)
            if self.lmp.get_thermo("fmax") <= FMAX:
                seconds = time.perf_counter() - began
                return seconds, np.array(self.lmp.gather_atoms("x", 1, 3)).reshape(len(self.system), 3)
        raise RuntimeError(f"LAMMPS did not reach a largest force of {FMAX}.")

    def job(self, potential, folder):
        """`(seconds, θ dX/dθ by name)`."""
        self.start()
        total, relaxed = self.minimised()
        values = {name: float(value) for name, value in potential.parameters().items()}
        columns, box = {}, np.diag(np.asarray(self.system.cell))
        for name, value in values.items():
            ends = []
            for sign in (1.0, -1.0):
                path = folder / f"{name}{sign:+.0f}.sw"
                path.write_text(SW_FILE.format(**values | {name: value * (1.0 + sign * STEP)}))
                self.lmp.command(f"pair_coeff * * {path} Si")
                self.lmp.scatter_atoms("x", 1, 3, np.ctypeslib.as_ctypes(relaxed.ravel().copy()))
                seconds, positions = self.minimised()
                total += seconds
                ends.append(positions)
            moved = ends[0] - ends[1]
            # LAMMPS may have brought an atom back into the box in one of both.
            columns[name] = (moved - box * np.round(moved / box)) / (2.0 * STEP)
        return total, columns


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=16, help="cubic cells of 8 atoms along each edge (default: 16)")
    system, potential = silicon(parser.parse_args().cells)
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in ("jax", "lammps"))
    print(f"{os.cpu_count()} cores, {platform.machine()}, {jax.devices()[0].platform}; {versions}; {len(system)} atoms")

    def relaxed():
        return ms.relax(system, potential, fmax=FMAX)

    ours, adjoint = medians(
        3,
        lambda: ms.sensitivity(relaxed()).certificate.trusted,
        lambda: ms.value_and_gradient(ms.observables.pressure, relaxed())[0],
    )
    sensitivity = ms.sensitivity(relaxed())
    assert sensitivity.certificate.trusted, sensitivity.certificate
    with tempfile.TemporaryDirectory() as folder:
        peer = Differences(system, potential, Path(folder))
        theirs, columns = peer.job(potential, Path(folder))
        peer.threads = os.cpu_count()
        threaded, _ = peer.job(potential, Path(folder))
    scaled = sensitivity.scaled().positions.parameters()
    # The differences leave the crystal's place open, and are good to a millionth, the square of their step.
    gaps = [np.abs(_centred(np.asarray(scaled[name])) - _centred(column)).max() for name, column in columns.items()]
    print(f"largest |θ dX/dθ| {max(np.abs(c).max() for c in columns.values()):.3f} Å, largest difference {max(gaps):.1e} Å")
    print(f"{'LAMMPS, 17 relaxations on one core':44s} {theirs:9.2f} s")
    print(f"{f'LAMMPS, the same on {peer.threads} threads':44s} {threaded:9.2f} s")
    for what, seconds in (("all sensitivities", ours), ("adjoint gradient", adjoint)):
        ratios = f"{theirs / seconds:.1f} and {threaded / seconds:.1f} times faster"
        print(f"{'mdsens, relaxation and ' + what:44s} {seconds:9.2f} s, {ratios}")


def _centred(displacements):
    return displacements - displacements.mean(axis=0)


if __name__ == "__main__":
    main()
