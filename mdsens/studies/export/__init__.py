"""Results for other programs: xarray, pandas, CSV, extended XYZ, netCDF.

A result is the return value of a function of `mdsens.studies`, an equilibrium and its sensitivity, or the path of a file that
mdsens wrote: a collected study or a stored result. xarray and pandas come with `pip install 'mdsens[export]'`.
"""

import csv
import importlib
import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mdsens.common.errors import InputError
from mdsens.common.suggestions import suggest_names
from mdsens.derivatives.sensitivities import Sensitivity
from mdsens.equilibrium.relaxation import Equilibrium
from mdsens.files.atomic_write import check_writable, write_whole
from mdsens.files.state_files import load_one
from mdsens.studies.export.states import state_atoms, state_columns, state_dataset, state_verdict
from mdsens.studies.export.tables import frame_atoms, study_columns, study_dataset, study_verdict
from mdsens.studies.results import result as results
from mdsens.studies.results.record import Collected
from mdsens.studies.storage.collected_file import is_collected, read_collected
from mdsens.studies.storage.trajectories import frames

if TYPE_CHECKING:
    import ase
    import pandas
    import xarray

Result = str | Path | Collected | results.Result | Equilibrium
"""Results that can be exported."""

SUFFIXES = (".csv", ".extxyz", ".xyz", ".nc")


@suggest_names
def to_xarray(result: Result, sensitivity: Sensitivity | None = None) -> "xarray.Dataset":
    """Return a result as a labelled dataset.

    A study has a dimension `task`, swept parameters as coordinates, and the results of its tasks: observables by name,
    `std_NAME`, `derivatives_NAME`, `shares_NAME`; NaN where a task failed or has fewer numbers. Relaxed structures are
    left to `to_atoms`. An equilibrium has atoms, cell and dX/dθ as `dX_dNAME`, with units.

    Raises:
        InputError: xarray is missing, or `result` is no result.
        StoreError: a file that cannot be read.
    """
    xarray = _import("xarray", "to_xarray")
    content = _read(result, sensitivity)
    return study_dataset(xarray, content) if isinstance(content, Collected) else state_dataset(xarray, *content)


@suggest_names
def to_dataframe(result: Result, sensitivity: Sensitivity | None = None, *, table: str | None = None) -> "pandas.DataFrame":
    """Return a result as a data frame; its `attrs["units"]` are the columns' units, where they are known.

    Where derivatives have a certificate, the column `trusted` and `attrs["trusted"]` say whether they are trusted, and a column
    `reasons` why not.

    Args:
        table: its name. Of a sweep `"points"`, a row a task; of a table of sensitivities `"derivatives"`, θ dg/dθ; of an
            uncertainty `"observables"`; of a calibration `"parameters"`, `"targets"` or `"directions"`; of a continuation
            `"path"`; of an equilibrium `"atoms"`, with dX/dθ, or `"parameters"`, with the largest |dX/dθ|. By default the first.

    Raises:
        InputError: pandas is missing, there is no such table, or `result` is no result.
        StoreError: a file that cannot be read.
    """
    pandas = _import("pandas", "to_dataframe")
    columns, units, verdict = _columns(result, sensitivity, table)
    frame = pandas.DataFrame(columns)
    frame.attrs["units"] = units
    frame.attrs |= verdict
    return frame


@suggest_names
def to_atoms(result: Result, sensitivity: Sensitivity | None = None) -> "list[ase.Atoms]":
    """Return the relaxed structures, for OVITO, ASE and others.

    A study has one for each structure that a task relaxed, with task, structure, parameters and scalar observables in `info`.
    An equilibrium has dX/dθ as arrays of vectors, `dX_dsigma`, for each number of each parameter.

    Raises:
        InputError: `result` is no result.
        StoreError: a file that cannot be read.
    """
    content = _read(result, sensitivity)
    if isinstance(content, Collected):
        return [frame_atoms(frame) for frame in frames(content.outcomes)]
    return [state_atoms(*content)]


@suggest_names
def write(
    result: Result, path: str | Path, sensitivity: Sensitivity | None = None, *, table: str | None = None, overwrite: bool = False
) -> Path:
    """Write a result whole or not at all, by the extension: `.csv`, `.extxyz` (or `.xyz`; eight decimals), `.nc`.

    The columns of a `.csv` are named with their units, `energy [eV]`; the columns `trusted` and `reasons` are the certificate's.

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
        content = _csv(*_columns(result, sensitivity, table)[:2])
    elif path.suffix == ".nc":
        content = _netcdf(to_xarray(result, sensitivity))
    else:
        content = _extxyz(to_atoms(result, sensitivity))
    write_whole(path, content, overwrite=overwrite)
    return path


def _columns(
    result: Result, sensitivity: Sensitivity | None, table: str | None
) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
    """Return columns, their units, and what certificates say of them."""
    content = _read(result, sensitivity)
    if isinstance(content, Collected):
        return *study_columns(content, table), study_verdict(content)
    return *state_columns(*content, table), state_verdict(*content)


def _import(module: str, user: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"{user} needs {module}: python -m pip install 'mdsens[export]'.") from None


def _read(result: Result, sensitivity: Sensitivity | None) -> Collected | tuple[Equilibrium, Sensitivity | None]:
    if isinstance(result, str | Path):
        path = Path(result)
        return read_collected(path) if is_collected(path) else load_one(path)
    if isinstance(result, Equilibrium):
        return result, sensitivity
    if isinstance(result, Collected):
        return result
    if isinstance(result, results.Result):
        return result.collected()
    wanted = "A study's result is wanted, an equilibrium (with its sensitivity behind it), or a file of one"
    raise InputError(f"{wanted}, not {type(result).__name__}.")


def _csv(columns: dict[str, Any], units: dict[str, str]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(f"{name} [{units[name]}]" if units.get(name) else name for name in columns)
    # Python's own numbers: repr has all digits.
    writer.writerows(zip(*(np.asarray(column, dtype=object).tolist() for column in columns.values()), strict=True))
    return text.getvalue().encode()


def _netcdf(dataset: Any) -> bytes:
    _import("h5netcdf", "A netCDF file")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "data.nc"
        dataset.to_netcdf(place, engine="h5netcdf")
        return place.read_bytes()


def _extxyz(images: Any) -> bytes:
    import ase.io

    if not images:
        raise InputError("No structure came to rest in this study: there is none to write.")
    text = io.StringIO()
    ase.io.write(text, images, format="extxyz")
    return text.getvalue().encode()


__all__ = ["to_atoms", "to_dataframe", "to_xarray", "write"]


def __dir__() -> list[str]:
    return sorted(__all__)
