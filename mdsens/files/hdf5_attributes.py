"""Values beside groups and datasets in HDF5 files, as attributes, or as data where an attribute's 64 kB have no room for them."""

import dataclasses
from typing import Any, TypeVar

import h5py
import numpy as np

ROOM = 32_000
"""Bytes of an array that an attribute is given; a text, however long, is a reference."""

REFERENCE = 16
"""Bytes of one text of several."""

Record = TypeVar("Record")


def set_attribute(item: h5py.Group | h5py.Dataset, name: str, value: Any) -> None:
    """Keep a number, a text, or an array of them with a group or a dataset."""
    array = np.asarray(value)
    if array.ndim == 0 or array.size * (array.itemsize if array.dtype.kind in "biuf" else REFERENCE) <= ROOM:
        item.attrs[name] = value
    else:
        item.file[_places(item, name)[0]] = value


def has_attribute(item: h5py.Group | h5py.Dataset, name: str) -> bool:
    """Return whether `set_attribute` kept a value of this name."""
    return name in item.attrs or any(place in item.file for place in _places(item, name))


def attribute(item: h5py.Group | h5py.Dataset, name: str) -> Any:
    """Return the value that `set_attribute` kept; raise KeyError where there is none."""
    place = next((place for place in _places(item, name) if place in item.file), None)
    if name in item.attrs or place is None:
        return item.attrs[name]
    data = item.file[place]
    return data.asstr()[()] if h5py.check_string_dtype(data.dtype) else data[()]


def _places(item: h5py.Group | h5py.Dataset, name: str) -> tuple[str, ...]:
    """Paths of data beside an item: the one of today, and that of long texts in studies' older files."""
    return (f"{item.name}_{name}",) if isinstance(item, h5py.Dataset) else (f"{item.name}/{name}", f"{item.name}/texts/{name}")


def write_record(group: h5py.Group, record: Any) -> None:
    """Keep the fields of a dataclass: plain values, and tuples of them."""
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, tuple):
            kind = type(value[0]) if value else int
            value = np.array(value, dtype={str: h5py.string_dtype(), float: np.float64}.get(kind, np.int64))
        set_attribute(group, field.name, value)


def read_record(kind: type[Record], group: h5py.Group) -> Record:
    """Return the dataclass of this kind that `write_record` kept; fields that an older file lacks have their defaults."""
    values = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if has_attribute(group, field.name) or field.default is dataclasses.MISSING:
            value = attribute(group, field.name)
            value = value.item() if isinstance(value, np.generic) else value
            values[field.name] = tuple(value.tolist()) if isinstance(value, np.ndarray) else value
    return kind(**values)
