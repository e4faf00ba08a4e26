"""Results for other programs: xarray, pandas, CSV, extended XYZ, netCDF.

A result is what a function of `mdsens.studies` returned, an equilibrium and its sensitivity, or the path of a file that mdsens
wrote: a collected study or a stored result. xarray and pandas come with `pip install 'mdsens[export]'`.
"""

import csv
import importlib
import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from mdsens.derivatives import Sensitivity
from mdsens.equilibrium import Equilibrium
from mdsens.errors import InputError, did_you_mean
from mdsens.potentials.base import parameter_paths
from mdsens.store import check_writable, load, write_whole
from mdsens.studies.collecting import Collected, is_collected, read_collected
from mdsens.studies.findings import STATES
from mdsens.studies.recording import collected_of
from mdsens.studies.tabulating import study_tables
from mdsens.studies.trajectories import frames

if TYPE_CHECKING:
    import ase
    import pandas
    import xarray

SUFFIXES = (".csv", ".extxyz", ".xyz", ".nc")

LAYER = 1.0
"""Thickness [Å] of a 2-D structure's cell, for programs that know three dimensions only."""


def to_xarray(result, sensitivity: Sensitivity | None = None) -> "xarray.Dataset":
    """A result as a labelled dataset.

    Of a study: a dimension `unit`, its swept parameters as coordinates, and what each unit found: observables by name,
    `std_NAME`, `derivatives_NAME`, `shares_NAME`; NaN where a unit failed or found fewer numbers. Relaxed structures are
    left to `to_atoms`. Of an equilibrium: atoms, cell and dX/dθ as `dX_dNAME`, with units.

    Raises:
        InputError: xarray is missing, or it is no result.
        StoreError: a file that cannot be read.
    """
    xarray = _needed("xarray", "to_xarray")
    found = _found(result, sensitivity)
    return _study_dataset(xarray, found) if isinstance(found, Collected) else _state_dataset(xarray, *found)


def to_dataframe(result, sensitivity: Sensitivity | None = None, *, table: str | None = None) -> "pandas.DataFrame":
    """A result as a data frame.

    Args:
        table: which one. Of a sweep `"points"`, a row a unit; of a table of sensitivities `"derivatives"`, θ dg/dθ; of an
            uncertainty `"observables"`; of a calibration `"parameters"`, `"targets"` or `"directions"`; of a continuation
            `"path"`; of an equilibrium `"atoms"`, with dX/dθ, or `"parameters"`, with the largest |dX/dθ|. By default the first.

    Raises:
        InputError: pandas is missing, there is no such table, or it is no result.
        StoreError: a file that cannot be read.
    """
    pandas = _needed("pandas", "to_dataframe")
    return pandas.DataFrame(_columns(_found(result, sensitivity), table))


def to_atoms(result, sensitivity: Sensitivity | None = None) -> "list[ase.Atoms]":
    """The relaxed structures, for OVITO, ASE and others.

    Of a study: one for each structure of each unit that found one, with unit, structure, parameters and scalar observables in
    `info`. Of an equilibrium: dX/dθ as arrays of vectors, `dX_dsigma`, for each scalar parameter; of array-valued ones for
    each number.

    Raises:
        InputError: it is no result.
        StoreError: a file that cannot be read.
    """
    found = _found(result, sensitivity)
    if isinstance(found, Collected):
        return [_frame_atoms(frame) for frame in frames(found.outcomes)]
    return [_state_atoms(*found)]


def write(result, path, sensitivity: Sensitivity | None = None, *, table: str | None = None, overwrite: bool = False) -> Path:
    """Write a result by a file's extension: `.csv`, `.extxyz` (or `.xyz`; eight decimals), `.nc`. Whole or not at all.

    Args:
        table: for `.csv`, as for `to_dataframe`.

    Raises:
        InputError: another extension, a module that is missing, no such table, nothing to write.
        StoreError: the file exists (`overwrite=True` replaces it) or cannot be written.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path.name!r} has none of the extensions {', '.join(SUFFIXES)}: name the file by what it is to be.")
    check_writable(path, overwrite=overwrite)
    if table is not None and path.suffix != ".csv":
        raise InputError(f"A table is for .csv, not for {path.suffix}: leave it out.")
    if path.suffix == ".csv":
        content = _csv(_columns(_found(result, sensitivity), table))
    elif path.suffix == ".nc":
        content = _netcdf(to_xarray(result, sensitivity))
    else:
        content = _extxyz(to_atoms(result, sensitivity))
    write_whole(path, content, overwrite=overwrite)
    return path


def _needed(module: str, what: str):
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"{what} needs {module}: python -m pip install 'mdsens[export]'.") from None


def _found(result, sensitivity) -> Collected | tuple[Equilibrium, Sensitivity | None]:
    if isinstance(result, str | Path):
        path = Path(result)
        return read_collected(path) if is_collected(path) else load(path)
    if isinstance(result, Equilibrium):
        return result, sensitivity
    return result if isinstance(result, Collected) else collected_of(result)


# Files


def _csv(columns: dict[str, Any]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    # Python's own numbers: repr has all digits.
    writer.writerows(zip(*(np.asarray(column, dtype=object).tolist() for column in columns.values()), strict=True))
    return text.getvalue().encode()


def _netcdf(dataset) -> bytes:
    _needed("h5netcdf", "A netCDF file")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "data.nc"
        dataset.to_netcdf(place, engine="h5netcdf")
        return place.read_bytes()


def _extxyz(images) -> bytes:
    import ase.io

    if not images:
        raise InputError("No structure came to rest in this study: there is none to write.")
    text = io.StringIO()
    ase.io.write(text, images, format="extxyz")
    return text.getvalue().encode()


# Studies


def _columns(found, table: str | None) -> dict[str, Any]:
    """A table's columns by name."""
    if not isinstance(found, Collected):
        tables = {"atoms": _atom_columns, "parameters": _parameter_columns}
        return tables[_chosen(table, tables)](*found)
    tables = study_tables(found.kind, found.outcomes)
    if not tables:
        raise InputError("All units of this study failed: there is no table.")
    name = _chosen(table, dict.fromkeys(one.name for one in tables))
    columns: dict[str, list] = {}
    length = 0
    for one in (one for one in tables if one.name == name):
        rows = {column.meaning or column.name: list(column.values) for column in one.columns}
        if one.unit:
            rows = {"unit": [one.unit] * len(one), **rows}
        for key in (key for key in rows if key not in columns):
            columns[key] = [np.nan] * length
        length += len(one)
        for key, column in columns.items():
            column += rows.get(key, [np.nan] * len(one))
    return columns


def _chosen(table, known) -> str:
    if table is None:
        return next(iter(known))
    if table not in known:
        raise InputError(f"There is no table {table!r}.{did_you_mean(table, known)}")
    return table


def _study_dataset(xarray, study: Collected):
    outcomes = study.outcomes
    dataset = xarray.Dataset(coords={"unit": [outcome.label for outcome in outcomes]})
    paths = dict.fromkeys(path for one in outcomes for path in one.record.arrays if not path.startswith(f"{STATES}/"))
    for path in paths:
        records = [one.record for one in outcomes if path in one.record.arrays]
        known = max(records, key=lambda record: record.arrays[path].size)
        shape = np.max([record.arrays[path].shape for record in records], axis=0).astype(int)
        stacked = np.full((len(outcomes), *shape), np.nan)
        for k, one in enumerate(outcomes):
            if path in one.record.arrays:
                value = one.record.arrays[path]
                stacked[(k, *map(slice, value.shape))] = value
        axes = known.axes(path)
        for axis, size in zip(axes, shape, strict=True):
            labels = known.labels(axis)
            if labels is not None and len(labels) == size:
                dataset.coords[axis] = list(labels)
        name = path.removeprefix("values/").replace("/", "_")
        unit = known.unit(path, outcomes[0].input["observables"])
        dataset[name] = (("unit", *axes), stacked, {} if unit is None else {"units": unit})
    for name in dict.fromkeys(name for one in outcomes for name in one.input["parameters"]):
        column = [one.input["parameters"].get(name, np.nan) for one in outcomes]
        dataset.coords[f"parameter_{name}" if name in dataset.variables else name] = ("unit", column)
    dataset["failed"] = ("unit", [one.reason for one in outcomes])
    made = outcomes[0].provenance
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    dataset.attrs = {"kind": study.kind, "made with": versions, "created": made["created"], "study": study.toml}
    return dataset


def _frame_atoms(frame):
    atoms = _in_space(frame.system)
    atoms.info = {"unit": frame.outcome.label, "structure": frame.structure, **frame.outcome.input["parameters"]}
    values = {path.removeprefix("values/"): value for path, value in frame.outcome.record.arrays.items()}
    for name in frame.outcome.input["observables"]:
        if name in values and values[name].ndim == 0:
            atoms.info.setdefault(name, float(values[name]))
    return atoms


def _in_space(system):
    atoms = system.to_ase()
    if system.dim == 2 and system.cell is not None:
        atoms.cell[2, 2] = LAYER
    return atoms


# An equilibrium and its sensitivity


def _derivatives(sensitivity: Sensitivity | None, part: str = "positions") -> dict[str, np.ndarray]:
    tree = None if sensitivity is None else getattr(sensitivity, part)
    return {} if tree is None else dict(zip(parameter_paths(tree), map(np.asarray, jax.tree.leaves(tree)), strict=True))


def _numbers(sensitivity) -> dict[str, np.ndarray]:
    """dX/dθ, `(N, dim)`, by each number of each parameter: `"sigma"`, `"table[3]"`."""
    return {
        path + (f"[{','.join(map(str, index))}]" if index else ""): leaf[(..., *index)]
        for path, leaf in _derivatives(sensitivity).items()
        for index in np.ndindex(leaf.shape[2:])
    }


def _atom_columns(eq, sensitivity) -> dict[str, Any]:
    system = eq.system
    columns = {"species": system.symbols, "frozen": np.asarray(system.frozen)}
    columns |= dict(zip("xyz", np.asarray(system.positions).T, strict=False))
    for name, leaf in _numbers(sensitivity).items():
        columns |= {f"d{axis}/d{name}": part for axis, part in zip("xyz", leaf.T, strict=False)}
    return columns


def _parameter_columns(eq, sensitivity) -> dict[str, Any]:
    values = dict(zip(parameter_paths(eq.potential), map(np.asarray, jax.tree.leaves(eq.potential)), strict=True))
    names = [f"{path}{list(index) if index else ''}" for path, theta in values.items() for index in np.ndindex(theta.shape)]
    thetas = np.concatenate([theta.ravel() for theta in values.values()])
    columns = {"parameter": names, "value": thetas}
    columns["unit"] = [eq.potential.unit_of(path) or "" for path, theta in values.items() for _ in range(theta.size)]
    for part, what in (("positions", "dX"), ("cell", "dh")):
        if derivatives := _derivatives(sensitivity, part):
            largest = [
                np.linalg.norm(derivatives[path], axis=1).max(axis=0).ravel()
                if path in derivatives
                else np.full(theta.size, np.nan)
                for path, theta in values.items()
            ]
            columns[f"max |{what}/dθ|"] = np.concatenate(largest)
            columns[f"max |θ {what}/dθ|"] = np.abs(thetas * columns[f"max |{what}/dθ|"])
    return columns


def _state_dataset(xarray, eq, sensitivity):
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
    if system.cell is not None:
        dataset["cell"] = (("vector", "space"), np.asarray(system.cell), length)
    for part, what, first in (("positions", "dX", "atom"), ("cell", "dh", "vector")):
        for path, leaf in _derivatives(sensitivity, part).items():
            axes = (first, "space", *(f"{path}_{k}" for k in range(leaf.ndim - 2)))
            unit = eq.potential.unit_of(path)
            named = {} if unit is None else {"units": f"Angstrom ({unit})-1" if unit else "Angstrom"}
            dataset[f"{what}_d{path}"] = (axes, leaf, named)
    dataset.attrs["potential"] = type(eq.potential).__name__
    if sensitivity is not None:
        dataset.attrs["certificate"] = str(sensitivity.certificate)
        dataset.attrs["trusted"] = int(sensitivity.certificate.trusted)
    return dataset


def _state_atoms(eq, sensitivity):
    atoms = _in_space(eq.system)
    atoms.info = {"energy": float(eq.energy), "fmax": float(eq.fmax)}
    for name, leaf in _numbers(sensitivity).items():
        vectors = np.zeros((len(atoms), 3))
        vectors[:, : leaf.shape[1]] = leaf
        # Of what OVITO takes in a property's name.
        plain = "".join(letter if letter.isalnum() else "_" for letter in f"dX_d{name}").rstrip("_")
        atoms.set_array(plain, vectors)
    return atoms
