"""A study's tasks merged into one HDF5 file.

/h5md                   version, creator, as in all files of mdsens
/study                  attributes: kind, toml (the file's text), tasks, failed
/study/tasks/00000      what the task's file has, in the study's order
/study/inputs/<digest>  the structures' and potentials' files, so that the study can be done again elsewhere
/table/<column>         labels, parameters and observables of all tasks, one row each, NaN where one failed
/particles/trajectory   the relaxed structures, a frame each (`trajectories`)

Axes and units have names everywhere: `xarray.open_dataset(path, group="/table/values")`.
"""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from mdsens.common.errors import MdsensError, StoreError
from mdsens.common.untrusted_hdf5 import check_harmless, open_untrusted
from mdsens.files.atomic_write import check_writable, write_whole
from mdsens.files.hdf5_attributes import attribute, set_attribute
from mdsens.files.hdf5_labels import name_axes, name_unit, name_units
from mdsens.files.state_files import write_h5md
from mdsens.potentials import Potential
from mdsens.studies.input import recipes
from mdsens.studies.input.tasks import Study
from mdsens.studies.input.toml_schema import KINDS
from mdsens.studies.results.record import Collected, Outcome
from mdsens.studies.storage.task_files import STUDY_FORMAT, outcome_of, read_task, task_failures, task_paths
from mdsens.studies.storage.trajectories import write_particles

TOML, PLAN = "study.toml", "study.json"
"""The study's text in its folder, and the names and labels of its tasks."""

LARGEST_INPUT = 50_000_000
"""Bytes of a file that is kept with a study's results."""

TABLE_GROUPS = ("values/", "std/", "derivatives/", "shares/")
"""Groups that have columns in the table."""


def write_plan(folder: Path, study: Study) -> None:
    """Write what a study consists of, `study.toml` and `study.json`, unless they are there.

    Raises:
        StoreError: the folder is that of a study of another kind.
    """
    kind = study.kind
    with contextlib.suppress(StoreError):  # none is there, or it is damaged
        kind = _read_plan(folder)[0]
    if kind != study.kind:
        raise StoreError(
            f"The folder {str(folder)!r} has results of a study of the kind {kind}, not {study.kind}: choose another (-o DIR)."
        )
    tasks = [[task.name, task.label] for task in study.tasks]
    plan = {"format": STUDY_FORMAT, "kind": study.kind, "tasks": tasks}
    for name, text in ((TOML, study.text), (PLAN, json.dumps(plan))):
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_whole(path, text.encode(), overwrite=True)


def collect(folder: Path, path: Path, *, overwrite: bool = False) -> tuple[int, int]:
    """Merge the tasks of a study into one file, whole or not at all; return the numbers of tasks and of failed ones.

    Raises:
        StoreError: no study is in the folder, tasks are missing, or the file cannot be written.
    """
    check_writable(path, overwrite=overwrite)
    study, missing = read_folder(folder)
    if missing:
        raise StoreError(
            f"{len(missing)} of {len(missing) + len(study.outcomes)} tasks are not there yet ({missing[0]!r}, for one): finish "
            "the study with 'mdsens run' first; it does only what is missing."
        )
    outcomes, paths = study.outcomes, task_paths(folder)
    failed = sum(outcome.failed for outcome in outcomes)
    with h5py.File(f"study-{id(outcomes)}", "w", driver="core", backing_store=False) as file:
        write_h5md(file)
        group = file.create_group("study")
        group.attrs.update({"kind": study.kind, "tasks": len(outcomes), "failed": failed})
        set_attribute(group, "toml", study.toml)
        for k, outcome in enumerate(outcomes):
            with h5py.File(paths[outcome.name], "r") as task:
                task.copy(task["/"], group.require_group("tasks"), f"{k:05d}")
            _name_numbers(group[f"tasks/{k:05d}"], outcome)
        inputs = group.create_group("inputs")
        for digest, place in _files(outcomes).items():
            _store_input(inputs, digest, place)
        _write_table(file.create_group("table"), outcomes)
        write_particles(file, outcomes)
        file.flush()
        image = file.id.get_file_image()
    write_whole(path, image, overwrite=overwrite)
    return len(outcomes), failed


def _name_numbers(group: h5py.Group, outcome: Outcome) -> None:
    """Name the axes and units of all numbers of a task."""
    record, observables = outcome.record, outcome.input["observables"]
    for path in record.arrays:
        axes = record.axes(path)
        labels = {axis: record.labels(axis) for axis in axes}
        # Structures have axes of their own: their numbers of atoms differ.
        name_axes(group[path], axes, group[path].parent if path.startswith("structures/") else group, labels)
        name_unit(group[path], record.unit(path, observables))
        name_units(group[path], record.units_by_parameter(path, observables))


def _files(outcomes: Sequence[Outcome]) -> dict[str, Path]:
    """Return the places of the files that tasks were made from, by digest."""
    files: dict[str, Path] = {}
    for outcome in outcomes:
        for recipe in (*outcome.input["structures"].values(), outcome.input["potential"]):
            if recipes.PATH in recipe:
                places, digests = recipe[recipes.PATH], recipe.get("file", recipe.get("files"))
                pairs = [(digests, places)] if isinstance(places, str) else zip(digests, places, strict=True)
                files |= {digest: Path(place) for digest, place in pairs}
    return files


def _store_input(group: h5py.Group, digest: str, place: Path) -> None:
    """Store a file, unless it is gone, has changed or is large: then it has to be given again."""
    try:
        content = place.read_bytes() if place.stat().st_size <= LARGEST_INPUT else b""
    except OSError:
        return
    if content and hashlib.sha256(content).hexdigest() == digest:
        group[digest] = np.void(content)
        group[digest].attrs["name"] = place.name


def _write_table(table: h5py.Group, outcomes: Sequence[Outcome]) -> None:
    labels = [outcome.label for outcome in outcomes]
    name_axes(table.create_dataset("label", data=labels), ("task",), table)
    first = next((outcome for outcome in outcomes if not outcome.failed), outcomes[0])
    potential = _potential(first)
    for name in dict.fromkeys(name for outcome in outcomes for name in outcome.input["parameters"]):
        column = [outcome.input["parameters"].get(name, np.nan) for outcome in outcomes]
        dataset = table.create_dataset(f"parameters/{name}", data=np.array(column))
        name_axes(dataset, ("task",), table)
        name_unit(dataset, None if potential is None else potential.unit_of(name))
    for path, numbers in _columns(outcomes).items():
        dataset = table.create_dataset(path, data=numbers)
        record = next(outcome.record for outcome in outcomes if path in outcome.record.arrays)
        name_axes(dataset, ("task", *record.axes(path)), table, {"parameter": record.labels("parameter")})
        name_unit(dataset, record.unit(path, first.input["observables"]))
        name_units(dataset, record.units_by_parameter(path, first.input["observables"]))


def _potential(outcome: Outcome) -> Potential | None:
    """Return the potential of a task; None where its files are gone."""
    try:
        return recipes.potential_of(outcome.input["potential"])
    except MdsensError:
        return None


def _columns(outcomes: Sequence[Outcome]) -> dict[str, np.ndarray]:
    columns = {}
    for path in dict.fromkeys(path for outcome in outcomes for path in outcome.record.arrays if path.startswith(TABLE_GROUPS)):
        # Numbers that have another shape in other tasks have no column.
        values = [outcome.record.arrays.get(path) for outcome in outcomes]
        shapes = {value.shape for value in values if value is not None}
        if len(shapes) == 1:
            (shape,) = shapes
            columns[path] = np.stack([np.full(shape, np.nan) if value is None else value for value in values])
    return columns


def read_folder(folder: Path) -> tuple[Collected, list[str]]:
    """Read the folder of a study; return its content, and the labels of the tasks that are not there yet.

    Raises:
        StoreError: no study is in the folder.
    """
    kind, toml, names = _read_plan(folder)
    here, paths = task_failures(folder), task_paths(folder)
    outcomes = tuple(read_task(paths[name]) for name, _ in names if name in here)
    return Collected(kind, toml, outcomes), [label for name, label in names if name not in here]


def _read_plan(folder: Path) -> tuple[str, str, list[tuple[str, str]]]:
    """Return what `write_plan` wrote: kind, text, and names and labels of the tasks."""
    try:
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        toml = (folder / TOML).read_text(encoding="utf-8")
        return str(plan["kind"]), toml, [(str(name), str(label)) for name, label in plan["tasks" if "tasks" in plan else "units"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise StoreError(f"{str(folder)!r} is no folder of a study: give the one that 'mdsens run' wrote into.") from None


def is_collected(path: Path) -> bool:
    """Return whether a file is a collected study of mdsens."""
    try:
        with h5py.File(path, "r") as file:
            return "study" in file and "kind" in file["study"].attrs
    except (OSError, KeyError, RuntimeError):
        return False


def read_collected(path: Path) -> Collected:
    """Read a file of `collect`.

    Raises:
        StoreError: it is no such file, or damaged.
    """
    with open_untrusted(path, "collected study") as file:
        check_harmless(file, path)
        group = file["study"]
        tasks = group["tasks" if "tasks" in group else "units"]
        if (kind := str(group.attrs["kind"])) not in KINDS:
            raise StoreError(f"{str(path)!r} holds a study of a kind {kind!r:.40} that this mdsens does not know.")
        return Collected(kind, str(attribute(group, "toml")), tuple(outcome_of(tasks[key]) for key in sorted(tasks)))
