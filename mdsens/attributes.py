"""Attributes in HDF5 files, of which each has room for 64 kB: what is longer lies beside them as data."""

import h5py
import numpy as np

ROOM = 32_000
"""Bytes of an array that an attribute is given; a text, however long, is a reference."""

REFERENCE = 16
"""Bytes of one text of several."""


def set_attribute(item: h5py.Group | h5py.Dataset, name: str, value) -> None:
    """Keep a value with a group or a dataset."""
    array = np.asarray(value)
    if array.ndim == 0 or array.size * (array.itemsize if array.dtype.kind in "biuf" else REFERENCE) <= ROOM:
        item.attrs[name] = value
    else:
        item.file[_beside(item, name)] = value


def has_attribute(item: h5py.Group | h5py.Dataset, name: str) -> bool:
    """Whether `set_attribute` kept something of this name."""
    return name in item.attrs or _beside(item, name) in item.file


def attribute(item: h5py.Group | h5py.Dataset, name: str):
    """What `set_attribute` kept.

    Raises:
        KeyError: nothing.
    """
    if name in item.attrs or _beside(item, name) not in item.file:
        return item.attrs[name]
    data = item.file[_beside(item, name)]
    return data.asstr()[()] if h5py.check_string_dtype(data.dtype) else data[()]


def _beside(item, name) -> str:
    return f"{item.name}_{name}" if isinstance(item, h5py.Dataset) else f"{item.name}/{name}"
