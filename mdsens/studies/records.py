"""Units as HDF5 files, `DIR/units/NAME.h5`:

/          attributes: unit (its name), label, status ("done" or "failed"), reason; input, facts, provenance as JSON
/texts     those that are too long for an attribute
/<path>    the numbers that it found
"""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import mdsens
from mdsens.errors import StoreError
from mdsens.harmless import NUMBERS, check_harmless, readable
from mdsens.store import made_with, write_whole
from mdsens.studies.findings import Record
from mdsens.studies.units import Unit

UNITS = "units"
"""Folder of the units' files."""

STUDY_FORMAT = 1

PARTS = {"structures", "potential", "parameters", "relax", "observables", "settings"}
"""Of a unit's input."""
DELETE = ": delete it, and run again"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A unit that was done, or failed."""

    name: str
    label: str
    input: dict[str, Any]
    record: Record
    reason: str
    provenance: dict[str, Any]

    @property
    def failed(self) -> bool:
        return bool(self.reason)


def unit_path(folder: Path, name: str) -> Path:
    return folder / UNITS / f"{name}.h5"


def write_unit(folder: Path, name: str, image: bytes) -> None:
    """Write a unit's file: whole or not at all."""
    write_whole(unit_path(folder, name), image, overwrite=True)


def image_of(unit: Unit, record: Record, reason: str, seconds: float) -> bytes:
    """The file of what a unit found, or why it failed."""
    with h5py.File(f"unit-{unit.name}", "w", driver="core", backing_store=False) as file:
        file.attrs["creator"] = json.dumps({"name": "mdsens", "version": mdsens.__version__, "format": STUDY_FORMAT})
        texts = {"unit": unit.name, "label": unit.label, "status": "failed" if reason else "done", "reason": reason}
        plain = {"input": unit.input, "facts": record.facts, "provenance": {**made_with(), "seconds": seconds}}
        for key, value in (texts | {key: json.dumps(value) for key, value in plain.items()}).items():
            set_text(file, key, value)
        for path, values in record.arrays.items():
            file[path] = values
        file.flush()
        return file.id.get_file_image()


def set_text(group: Any, key: str, text: str) -> None:
    """Keep a text, which may be longer than the 64 kB that an attribute holds."""
    if len(text) < 30_000:
        group.attrs[key] = text
    else:
        group[f"texts/{key}"] = text


def text_of(group: Any, key: str) -> str:
    """What `set_text` wrote."""
    return str(group.attrs[key]) if key in group.attrs else group[f"texts/{key}"].asstr()[()]


def read_unit(path: Path) -> Outcome:
    """Read what `write_unit` wrote.

    Raises:
        StoreError: no such file, or not one of these.
    """
    with readable(path, "unit of a study", DELETE), h5py.File(path, "r") as file:
        check_harmless(file, path.stat().st_size, path)
        return outcome_of(file)


def outcome_of(group: Any) -> Outcome:
    """A unit's file, or its copy in a collected study.

    Raises:
        StoreError: a newer mdsens wrote it.
    """
    if json.loads(group.attrs["creator"])["format"] > STUDY_FORMAT:
        raise StoreError(f"A newer mdsens than {mdsens.__version__} wrote {group.file.filename!r}: upgrade mdsens.")
    arrays: dict[str, np.ndarray] = {}

    def gather(path: Any, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and not path.startswith("texts/") and not item.is_scale:
            if item.dtype.kind not in NUMBERS:
                raise StoreError(f"{group.file.filename!r} has texts at {item.name}, where numbers should be.")
            arrays[path] = np.asarray(item[()])

    group.visititems(gather)
    given, facts, provenance = (json.loads(text_of(group, key)) for key in ("input", "facts", "provenance"))
    if not all(isinstance(value, dict) for value in (given, facts, provenance)) or not given.keys() >= PARTS:
        raise StoreError(f"{group.file.filename!r} has a unit at {group.name} that does not say what it was made from.")
    unit, label, reason = (text_of(group, key) for key in ("unit", "label", "reason"))
    return Outcome(unit, label, given, Record(arrays, facts), reason, provenance)


def finished(folder: Path) -> dict[str, str]:
    """The units that are there by name: why they failed, or "". Those that are damaged are left out."""
    found = {}
    for path in sorted((folder / UNITS).glob("*.h5")):
        with contextlib.suppress(StoreError), readable(path, "unit of a study"), h5py.File(path, "r") as file:
            check_harmless(file, path.stat().st_size, path)
            if text_of(file, "unit") == path.stem:
                found[path.stem] = text_of(file, "reason")
    return found
