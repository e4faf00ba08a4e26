"""An equilibrium and its sensitivity as columns, datasets and structures."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from mdsens.common.errors import InputError, did_you_mean
from mdsens.common.units import derivative_unit, unit_text
from mdsens.derivatives.sensitivities import Sensitivity
from mdsens.equilibrium.relaxation import Equilibrium
from mdsens.potentials.base import parameter_paths
from mdsens.structures.system import System

LAYER = 1.0
"""Thickness [Å] of a 2-D structure's cell, for programs that know three dimensions only."""

_VERDICT_NAMES = ("status", "trusted", "reasons")
"""Entries of a verdict that stand beside the numbers."""


def choose_table(table: str | None, known: Iterable[str]) -> str:
    """Return the name of the table that is asked for, by default the first.

    Raises:
        InputError: there is none.
    """
    if table is None:
        return next(iter(known))
    if table not in known:
        raise InputError(f"There is no table {table!r}.{did_you_mean(table, known)}")
    return table


def state_columns(eq: Equilibrium, sensitivity: Sensitivity | None, table: str | None) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the columns of the table `"atoms"` or `"parameters"`, and their units, by name."""
    tables = {"atoms": _atom_columns, "parameters": _parameter_columns}
    columns, units = tables[choose_table(table, tables)](eq, sensitivity)
    rows = len(next(iter(columns.values())))
    verdict = state_verdict(eq, sensitivity)
    return columns | {name: [verdict[name]] * rows for name in _VERDICT_NAMES if name in verdict}, units


def state_verdict(eq: Equilibrium, sensitivity: Sensitivity | None) -> dict[str, Any]:
    """Return how a relaxation ended, where not well, and what a certificate says."""
    verdict: dict[str, Any] = {} if eq.converged else {"status": eq.status.name}
    if sensitivity is not None:
        certificate = sensitivity.certificate
        verdict |= {"trusted": bool(certificate.trusted), "certificate": str(certificate)}
        if not certificate.trusted:
            verdict["reasons"] = "; ".join(certificate.reasons)
    return verdict


def spatial_atoms(system: System) -> Any:
    """Return a structure as `ase.Atoms`, with a cell that has a volume."""
    atoms = system.to_ase()
    if system.dim == 2 and system.cell is not None:
        atoms.cell[2, 2] = LAYER
    return atoms


def _derivatives(sensitivity: Sensitivity | None, part: str = "positions") -> dict[str, np.ndarray]:
    tree = None if sensitivity is None else getattr(sensitivity, part)
    return {} if tree is None else dict(zip(parameter_paths(tree), map(np.asarray, jax.tree.leaves(tree)), strict=True))


def _numbers(sensitivity: Sensitivity | None) -> dict[str, np.ndarray]:
    """Return dX/dθ, `(N, dim)`, for each number of each parameter: `"sigma"`, `"table[3]"`."""
    return {
        path + (f"[{','.join(map(str, index))}]" if index else ""): leaf[(..., *index)]
        for path, leaf in _derivatives(sensitivity).items()
        for index in np.ndindex(leaf.shape[2:])
    }


def _atom_columns(eq: Equilibrium, sensitivity: Sensitivity | None) -> tuple[dict[str, Any], dict[str, str]]:
    system = eq.system
    columns = {"species": system.symbols, "frozen": np.asarray(system.frozen)}
    columns |= dict(zip("xyz", np.asarray(system.positions).T, strict=False))
    units = dict.fromkeys("xyz"[: system.dim], "Å")
    for name, leaf in _numbers(sensitivity).items():
        derived = {f"d{axis}/d{name}": part for axis, part in zip("xyz", leaf.T, strict=False)}
        columns |= derived
        units |= dict.fromkeys(derived, unit_text(derivative_unit("Angstrom", eq.potential.unit_of(name.partition("[")[0]))))
    return columns, units


def _parameter_columns(eq: Equilibrium, sensitivity: Sensitivity | None) -> tuple[dict[str, Any], dict[str, str]]:
    values = dict(zip(parameter_paths(eq.potential), map(np.asarray, jax.tree.leaves(eq.potential)), strict=True))
    names = [f"{path}{list(index) if index else ''}" for path, theta in values.items() for index in np.ndindex(theta.shape)]
    thetas = np.concatenate([theta.ravel() for theta in values.values()])
    columns = {"parameter": names, "value": thetas}
    columns["unit"] = [unit_text(eq.potential.unit_of(path)) for path, theta in values.items() for _ in range(theta.size)]
    units = {}
    for part, symbol in (("positions", "dX"), ("cell", "dh")):
        if derivatives := _derivatives(sensitivity, part):
            largest = [
                np.linalg.norm(derivatives[path], axis=1).max(axis=0).ravel()
                if path in derivatives
                else np.full(theta.size, np.nan)
                for path, theta in values.items()
            ]
            columns[f"max |{symbol}/dθ|"] = np.concatenate(largest)
            columns[f"max |θ {symbol}/dθ|"] = np.abs(thetas * columns[f"max |{symbol}/dθ|"])
            units[f"max |θ {symbol}/dθ|"] = "Å"
    return columns, units


def state_dataset(xarray: Any, eq: Equilibrium, sensitivity: Sensitivity | None) -> Any:
    """Return atoms, cell and derivatives with units as a dataset; `xarray` is the module."""
    system, space = eq.system, list("xyz"[: eq.system.dim])
    length = {"units": "Angstrom"}
    dataset = xarray.Dataset(
        {
            "positions": (("atom", "space"), np.asarray(system.positions), length),
            "species": ("atom", system.symbols),
            "masses": ("atom", np.asarray(system.masses), {"units": "u"}),
            "frozen": ("atom", np.asarray(system.frozen)),
            "energy": ((), eq.energy, {"units": "eV"}),
            "fmax": ((), eq.fmax, {"units": "eV Angstrom-1"}),
        },
        coords={"space": space},
    )
    verdict = {name: int(value) if name == "trusted" else value for name, value in state_verdict(eq, sensitivity).items()}
    if system.cell is not None:
        dataset["cell"] = (("vector", "space"), np.asarray(system.cell), length)
    for part, symbol, first in (("positions", "dX", "atom"), ("cell", "dh", "vector")):
        for path, leaf in _derivatives(sensitivity, part).items():
            axes = (first, "space", *(f"{path}_{k}" for k in range(leaf.ndim - 2)))
            unit = derivative_unit("Angstrom", eq.potential.unit_of(path))
            named = {} if unit is None else {"units": unit}
            # An array that is taken out of the dataset keeps its verdict.
            dataset[f"{symbol}_d{path}"] = (
                axes,
                leaf,
                named | {name: verdict[name] for name in _VERDICT_NAMES if name in verdict},
            )
    dataset.attrs = {"potential": type(eq.potential).__name__, **verdict}
    return dataset


def state_atoms(eq: Equilibrium, sensitivity: Sensitivity | None) -> Any:
    """Return atoms with dX/dθ as arrays of vectors."""
    atoms = spatial_atoms(eq.system)
    verdict = state_verdict(eq, sensitivity)
    verdict.pop("certificate", None)
    atoms.info = {"energy": float(eq.energy), "fmax": float(eq.fmax), **verdict}
    for name, leaf in _numbers(sensitivity).items():
        vectors = np.zeros((len(atoms), 3))
        vectors[:, : leaf.shape[1]] = leaf
        # OVITO takes no other letters in a property's name.
        plain = "".join(letter if letter.isalnum() else "_" for letter in f"dX_d{name}").rstrip("_")
        atoms.set_array(plain, vectors)
    return atoms
