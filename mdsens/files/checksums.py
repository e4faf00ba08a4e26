"""Checksums of results: of their numbers and texts, which copies and other filters keep."""

import hashlib

import h5py
import numpy as np
from numpy.typing import ArrayLike

PARTS = ("particles", "parameters", "observables", "equilibrium", "sensitivity", "states")
"""Groups of a file that have one together: who made it, and what others add beside them, does not count."""


def checksum(file: h5py.File) -> str:
    """Return a checksum of all names, numbers and texts in a file's parts."""
    items: dict[str, h5py.Group | h5py.Dataset] = {}
    for part in PARTS:
        if part in file:
            items[part] = file[part]
            file[part].visititems(lambda path, item, part=part: items.update({f"{part}/{path}": item}))
    digest = hashlib.sha256()
    for path, item in sorted(items.items()):
        digest.update(path.encode())
        if isinstance(item, h5py.Dataset):
            digest.update(_content(item.asstr()[()] if h5py.check_string_dtype(item.dtype) else item[()]))
        for name in sorted(item.attrs):
            # Names of axes are kept as references, which are places in a file.
            dtype = item.attrs.get_id(name).dtype
            if dtype.kind not in "OV" or h5py.check_string_dtype(dtype):
                digest.update(name.encode() + _content(item.attrs[name]))
    return digest.hexdigest()


def _content(value: ArrayLike) -> bytes:
    """Kind, shape and values of an array, as bytes."""
    array = np.asarray(value)
    numbers = array.dtype.kind in "biuf"
    content = array.tobytes() if numbers else "\0".join(map(str, np.ravel(array).tolist())).encode()
    return f"{array.dtype.kind}{array.shape}".encode() + content
