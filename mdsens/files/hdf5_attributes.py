"""Attributes in HDF5 files, of which each has room for 64 kB: what is longer lies beside them as data."""

import dataclasses
from typing import Any

import h5py
import numpy as np

ROOM = 32_000
"""Bytes of an array that an attribute is given; a text, however long, is a reference."""

REFERENCE = 16
"""Bytes of one text of several."""


def set_attribute(item: h5py.Group | h5py.Dataset, name: str, value: Any) -> None:
    """Keep a value with a group or a dataset."""
    array = np.asarray(value)
    if array.ndim == 0 or array.size * (array.itemsize if array.dtype.kind in "biuf" else REFERENCE) <= ROOM:
        item.attrs[name] = value
    else:
        item.file[_beside(item, name)] = value


def has_attribute(item: h5py.Group | h5py.Dataset, name: str) -> bool:
    """Whether `set_attribute` kept something of this name."""
    return name in item.attrs or _beside(item, name) in item.file


def attribute(item: h5py.Group | h5py.Dataset, name: str) -> Any:
    """What `set_attribute` kept.

    Raises:
        KeyError: nothing.
    """
    if name in item.attrs or _beside(item, name) not in item.file:
        return item.attrs[name]
    data = item.file[_beside(item, name)]
    return data.asstr()[()] if h5py.check_string_dtype(data.dtype) else data[()]


def write_record(group: h5py.Group, record: Any) -> None:
    """Keep the fields of a dataclass: plain values, and tuples of them."""
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, tuple):
            kind = type(value[0]) if value else int
            value = np.array(value, dtype={str: h5py.string_dtype(), float: np.float64}.get(kind, np.int64))
        set_attribute(group, field.name, value)


def read_record(kind: Any, group: h5py.Group) -> Any:
    """The dataclass of this kind that `write_record` kept. Fields that an older file lacks have their defaults."""
    values = {}
    for field in dataclasses.fields(kind):
        if not has_attribute(group, field.name) and field.default is not dataclasses.MISSING:
            continue
        value = attribute(group, field.name)
        if isinstance(value, np.ndarray):
            value = tuple(value.tolist())
        elif isinstance(value, np.generic):
            value = value.item()
        values[field.name] = value
    return kind(**values)


def _beside(item: h5py.Group | h5py.Dataset, name: str) -> str:
    return f"{item.name}_{name}" if isinstance(item, h5py.Dataset) else f"{item.name}/{name}"
