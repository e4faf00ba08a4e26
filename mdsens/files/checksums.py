"""Whether a result is still as it was written: a checksum of its numbers and texts, which copies and other filters keep."""

import hashlib
from typing import Any

import h5py
import numpy as np

PARTS = ("particles", "parameters", "observables", "equilibrium", "sensitivity", "states")
"""Groups of a file that have one together: who made it, and what others add beside them, does not count."""


def checksum(file: h5py.File) -> str:
    """A checksum of all names, numbers and texts in a file's parts."""
    found: list[tuple[str, Any]] = []
    for part in PARTS:
        if part in file:
            found.append((part, file[part]))
            file[part].visititems(lambda path, item, part=part: found.append((f"{part}/{path}", item)))
    digest = hashlib.sha256()
    for path, item in sorted(found, key=lambda one: one[0]):
        digest.update(path.encode())
        if isinstance(item, h5py.Dataset):
            _add(digest, item.asstr()[()] if h5py.check_string_dtype(item.dtype) else item[()])
        for name in sorted(item.attrs):
            # Names of axes are kept as references, which are places in a file.
            if item.attrs.get_id(name).dtype.kind not in "OV" or h5py.check_string_dtype(item.attrs.get_id(name).dtype):
                digest.update(name.encode())
                _add(digest, item.attrs[name])
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    array = np.asarray(value)
    digest.update(f"{array.dtype.kind}{array.shape}".encode())
    if array.dtype.kind in "biuf":
        digest.update(np.ascontiguousarray(array).tobytes())
    else:
        digest.update("\0".join(map(str, np.ravel(array).tolist())).encode())
