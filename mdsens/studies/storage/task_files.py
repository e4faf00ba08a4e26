"""Tasks as HDF5 files, `DIR/tasks/NAME.h5`:

/          attributes: task (its name), label, status ("done" or "failed"), reason; input, facts, provenance as JSON
/texts     texts of 30,000 letters and more, in older files
/<path>    its numbers
"""

import contextlib
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5f, h5o, h5p, h5s, h5t

from mdsens.common.errors import StoreError
from mdsens.common.untrusted_hdf5 import NUMBER_KINDS, check_harmless, open_untrusted
from mdsens.common.version import VERSION
from mdsens.files.atomic_write import write_all
from mdsens.files.hdf5_attributes import attribute, has_attribute
from mdsens.files.provenance import current_provenance
from mdsens.studies.input.tasks import Task
from mdsens.studies.results.record import STATES, Outcome, Record

TASKS, TASKS_OF_FORMAT_1 = "tasks", "units"
"""Folder of the tasks' files. In format 1, that of mdsens 0.1, a task is called a unit everywhere."""

STUDY_FORMAT = 2

SCALAR = h5s.create(h5s.SCALAR)
TEXT, PYTHON_TEXT = (h5t.py_create(h5py.string_dtype(), logical=logical) for logical in (True, False))
"""Types of texts in the file, and in NumPy's arrays."""

INPUT_KEYS = {"structures", "potential", "parameters", "relax", "observables", "settings"}
"""Keys of a task's input."""
REMEDY = ": delete it, and run again"


def task_path(folder: Path, name: str) -> Path:
    """Return the place of a task's file."""
    return folder / TASKS / f"{name}.h5"


def task_paths(folder: Path) -> dict[str, Path]:
    """Return the tasks' files that are in a study's folder, by name; a newer one goes before one of format 1."""
    return {path.stem: path for home in (TASKS_OF_FORMAT_1, TASKS) for path in sorted((folder / home).glob("*.h5"))}


def write_tasks(folder: Path, images: Mapping[str, bytes]) -> None:
    """Write tasks' files by name: each whole or not at all."""
    write_all({task_path(folder, name): image for name, image in images.items()}, overwrite=True)


def task_image(task: Task, record: Record, reason: str, seconds: float) -> bytes:
    """Return the file of a task's result or failure. HDF5's own calls take a third of the time of h5py's objects."""
    texts = {
        "creator": json.dumps({"name": "mdsens", "version": VERSION, "format": STUDY_FORMAT}),
        "task": task.name,
        "label": task.label,
        "status": "failed" if reason else "done",
        "reason": reason,
        "input": json.dumps(task.input),
        "facts": json.dumps(record.facts),
        "provenance": json.dumps({**current_provenance(), "seconds": seconds}),
    }
    in_memory, _, _ = _properties()
    file = h5f.create(f"task-{task.name}".encode(), h5f.ACC_TRUNC, fapl=in_memory)
    try:
        for key, text in texts.items():
            h5a.create(file, key.encode(), TEXT, SCALAR).write(np.array(text, dtype=object), PYTHON_TEXT)
        for path, values in record.arrays.items():
            _set_array(file, path, np.asarray(values, order="C"))
        h5f.flush(file)
        return file.get_file_image()
    finally:
        file.close()


def _set_array(file: h5f.FileID, path: str, values: np.ndarray) -> None:
    _, timeless, through_groups = _properties()
    dtype = _hdf5_type(values.dtype)
    dataset = h5d.create(file, None, dtype, _space(values.shape), timeless)
    dataset.write(h5s.ALL, h5s.ALL, values, dtype)
    h5o.link(dataset, file, path.encode(), lcpl=through_groups)


@functools.lru_cache
def _space(shape: tuple[int, ...]) -> h5s.SpaceID:
    return h5s.create_simple(shape) if shape else SCALAR


@functools.lru_cache
def _hdf5_type(dtype: np.dtype) -> h5t.TypeID:
    return h5t.py_create(dtype, logical=True)


@functools.cache
def _properties() -> tuple[h5p.PropFAID, h5p.PropDCID, h5p.PropLCID]:
    """Return HDF5's properties of a file in memory, of a dataset without time stamps, and of a link that makes groups."""
    in_memory, timeless, through_groups = map(h5p.create, (h5p.FILE_ACCESS, h5p.DATASET_CREATE, h5p.LINK_CREATE))
    in_memory.set_fapl_core(65_536, False)  # bytes by which it grows
    in_memory.set_fclose_degree(h5f.CLOSE_STRONG)
    timeless.set_obj_track_times(False)
    through_groups.set_create_intermediate_group(True)
    through_groups.set_char_encoding(h5t.CSET_UTF8)
    return in_memory, timeless, through_groups


def read_task(path: Path) -> Outcome:
    """Read a task's file.

    Raises:
        StoreError: it is no such file, or damaged.
    """
    with open_untrusted(path, "task of a study", REMEDY) as file:
        check_harmless(file, path)
        return outcome_of(file)


def outcome_of(group: h5py.Group) -> Outcome:
    """Read an open file of a task, or its copy in a collected study.

    Raises:
        StoreError: a newer mdsens wrote it.
        KeyError, ValueError: something is missing, or does not fit.
    """
    if json.loads(group.attrs["creator"])["format"] > STUDY_FORMAT:
        raise StoreError(f"A newer mdsens than {VERSION} wrote {group.file.filename!r}: upgrade mdsens.")
    arrays: dict[str, np.ndarray] = {}

    def gather(path: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset) and not path.startswith("texts/") and not item.is_scale:
            if item.dtype.kind not in NUMBER_KINDS:
                raise StoreError(f"{group.file.filename!r} has texts at {item.name}, where numbers should be.")
            arrays[path] = np.asarray(item[()])

    group.visititems(gather)
    recipe, facts, provenance = (json.loads(attribute(group, key)) for key in ("input", "facts", "provenance"))
    if not all(isinstance(value, dict) for value in (recipe, facts, provenance)) or not recipe.keys() >= INPUT_KEYS:
        raise StoreError(f"{group.file.filename!r} has a task at {group.name} that does not say what it was made from.")
    _check_structures(arrays, facts.get("states", {}))
    label, reason = (str(attribute(group, key)) for key in ("label", "reason"))
    return Outcome(_name_of(group), label, recipe, Record(arrays, facts), reason, provenance)


def _name_of(group: h5py.Group) -> str:
    return str(attribute(group, "task" if has_attribute(group, "task") else "unit"))


def _check_structures(arrays: Mapping[str, np.ndarray], states: Mapping[str, Any]) -> None:
    """Check that each relaxed structure has positions, and in files that are not older a species for each atom.

    Raises:
        KeyError, ValueError: it names what is missing or does not fit.
    """
    for name, state in states.items():
        positions, species = f"{STATES}/{name}/positions", f"{STATES}/{name}/species"
        if arrays[positions].ndim != 2:
            raise ValueError(f"{positions} has shape {arrays[positions].shape}")
        if "labels" in state and not (
            arrays[species].shape == arrays[positions].shape[:1] and np.isin(arrays[species], range(len(state["labels"]))).all()
        ):
            raise ValueError(f"{species} does not say what the atoms are")


def task_failures(folder: Path) -> dict[str, str]:
    """Return why each task of a folder failed, or "", by name; damaged files are left out."""
    failures = {}
    for name, path in task_paths(folder).items():
        with contextlib.suppress(StoreError), open_untrusted(path, "task of a study") as file:
            check_harmless(file, path)
            if _name_of(file) == name:
                failures[name] = str(attribute(file, "reason"))
    return failures
