"""Units as HDF5 files, `DIR/units/NAME.h5`:

/          attributes: unit (its name), label, status ("done" or "failed"), reason; input, facts, provenance as JSON
/texts     those of 30,000 letters and more, in older files
/<path>    the numbers that it found
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
from mdsens.common.untrusted_hdf5 import NUMBERS, check_harmless, opened
from mdsens.common.version import VERSION
from mdsens.files.atomic_write import write_all
from mdsens.files.hdf5_attributes import attribute
from mdsens.files.provenance import current_provenance
from mdsens.studies.input.tasks import Unit
from mdsens.studies.results.record import STATES, Outcome, Record

UNITS = "units"
"""Folder of the units' files."""

STUDY_FORMAT = 1

SCALAR = h5s.create(h5s.SCALAR)
TEXT, PYTHON_TEXT = (h5t.py_create(h5py.string_dtype(), logical=logical) for logical in (True, False))
"""Of texts in the file, and in NumPy's arrays."""

PARTS = {"structures", "potential", "parameters", "relax", "observables", "settings"}
"""Of a unit's input."""
DELETE = ": delete it, and run again"


def unit_path(folder: Path, name: str) -> Path:
    return folder / UNITS / f"{name}.h5"


def write_units(folder: Path, images: Mapping[str, bytes]) -> None:
    """Write units' files by name: each whole or not at all."""
    write_all({unit_path(folder, name): image for name, image in images.items()}, overwrite=True)


def image_of(unit: Unit, record: Record, reason: str, seconds: float) -> bytes:
    """The file of what a unit found, or why it failed. By HDF5's own calls, which take a third of what h5py's objects take."""
    texts = {
        "creator": json.dumps({"name": "mdsens", "version": VERSION, "format": STUDY_FORMAT}),
        "unit": unit.name,
        "label": unit.label,
        "status": "failed" if reason else "done",
        "reason": reason,
        "input": json.dumps(unit.input),
        "facts": json.dumps(record.facts),
        "provenance": json.dumps({**current_provenance(), "seconds": seconds}),
    }
    in_memory, _, _ = _properties()
    file = h5f.create(f"unit-{unit.name}".encode(), h5f.ACC_TRUNC, fapl=in_memory)
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
    kind = _kind(values.dtype)
    dataset = h5d.create(file, None, kind, _space(values.shape), timeless)
    dataset.write(h5s.ALL, h5s.ALL, values, kind)
    h5o.link(dataset, file, path.encode(), lcpl=through_groups)


@functools.lru_cache
def _space(shape: tuple[int, ...]) -> h5s.SpaceID:
    return h5s.create_simple(shape) if shape else SCALAR


@functools.lru_cache
def _kind(dtype: np.dtype) -> h5t.TypeID:
    return h5t.py_create(dtype, logical=True)


@functools.cache
def _properties() -> tuple[h5p.PropFAID, h5p.PropDCID, h5p.PropLCID]:
    """HDF5's lists of properties: for a file in memory, for a dataset without time stamps, for a link that makes groups."""
    in_memory, timeless, through_groups = map(h5p.create, (h5p.FILE_ACCESS, h5p.DATASET_CREATE, h5p.LINK_CREATE))
    in_memory.set_fapl_core(65_536, False)  # bytes by which it grows
    in_memory.set_fclose_degree(h5f.CLOSE_STRONG)
    timeless.set_obj_track_times(False)
    through_groups.set_create_intermediate_group(True)
    through_groups.set_char_encoding(h5t.CSET_UTF8)
    return in_memory, timeless, through_groups


def read_unit(path: Path) -> Outcome:
    """Read what `write_units` wrote.

    Raises:
        StoreError: no such file, or not one of these.
    """
    with opened(path, "unit of a study", DELETE) as file:
        check_harmless(file, path)
        return outcome_of(file)


def outcome_of(group: Any) -> Outcome:
    """A unit's file, or its copy in a collected study.

    Raises:
        StoreError: a newer mdsens wrote it.
        KeyError, ValueError: something is missing, or does not fit.
    """
    if json.loads(group.attrs["creator"])["format"] > STUDY_FORMAT:
        raise StoreError(f"A newer mdsens than {VERSION} wrote {group.file.filename!r}: upgrade mdsens.")
    arrays: dict[str, np.ndarray] = {}

    def gather(path: Any, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and not path.startswith("texts/") and not item.is_scale:
            if item.dtype.kind not in NUMBERS:
                raise StoreError(f"{group.file.filename!r} has texts at {item.name}, where numbers should be.")
            arrays[path] = np.asarray(item[()])

    group.visititems(gather)
    given, facts, provenance = (json.loads(attribute(group, key)) for key in ("input", "facts", "provenance"))
    if not all(isinstance(value, dict) for value in (given, facts, provenance)) or not given.keys() >= PARTS:
        raise StoreError(f"{group.file.filename!r} has a unit at {group.name} that does not say what it was made from.")
    _check_structures(arrays, facts.get("states", {}))
    unit, label, reason = (str(attribute(group, key)) for key in ("unit", "label", "reason"))
    return Outcome(unit, label, given, Record(arrays, facts), reason, provenance)


def _check_structures(arrays: Mapping[str, np.ndarray], states: Mapping[str, Any]) -> None:
    """Each relaxed structure has positions, and a species for each; older files leave those to what it was made from.

    Raises:
        KeyError, ValueError: naming what is missing or does not fit.
    """
    for name, state in states.items():
        positions, species = f"{STATES}/{name}/positions", f"{STATES}/{name}/species"
        if arrays[positions].ndim != 2:
            raise ValueError(f"{positions} has shape {arrays[positions].shape}")
        if "labels" in state and not (
            arrays[species].shape == arrays[positions].shape[:1] and np.isin(arrays[species], range(len(state["labels"]))).all()
        ):
            raise ValueError(f"{species} does not say what the atoms are")


def finished(folder: Path) -> dict[str, str]:
    """The units that are there by name: why they failed, or "". Those that are damaged are left out."""
    found = {}
    for path in sorted((folder / UNITS).glob("*.h5")):
        with contextlib.suppress(StoreError), opened(path, "unit of a study") as file:
            check_harmless(file, path)
            if attribute(file, "unit") == path.stem:
                found[path.stem] = str(attribute(file, "reason"))
    return found
