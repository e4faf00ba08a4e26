"""HDF5 files of strangers: checks before anything is read, and a sentence about damage."""

import contextlib
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from mdsens.common.errors import MdsensError, StoreError, reason

NUMBER_KINDS = "biuf"
"""Kinds of NumPy's numbers that mdsens stores, beside texts."""

SIGNATURE, HEAP = b"\x89HDF\r\n\x1a\n", b"GCOL\x01\0\0\0"
"""The first bytes of HDF5 files, and of the heaps in them that hold texts (HDF5 File Format Specification, II.A, III.E)."""

LOCK_MESSAGES = ("unable to lock file", "already open for")
"""Parts of h5py's messages about files that another program writes."""

HEADER = 16
"""Bytes before a heap's objects, and before each one's content."""


@contextlib.contextmanager
def explain_damage(path: Path, what: str, remedy: str = "") -> Iterator[None]:
    """Turn errors while a file is read into a StoreError: it is no `what`, or damaged; with the remedy."""
    try:
        yield
    except MdsensError:
        raise
    except PermissionError:
        raise StoreError(f"{str(path)!r} may not be read by you: change its permissions.") from None
    except Exception as error:  # h5py's errors for damaged files are of all kinds
        if isinstance(error, OSError) and any(word in str(error) for word in LOCK_MESSAGES):
            raise StoreError(
                f"{str(path)!r} is in use by another program, which locks it: close it there, and try again."
            ) from error
        raise StoreError(f"{str(path)!r} is no {what}, or damaged or cut off ({reason(error)}){remedy}.") from error


@contextlib.contextmanager
def open_untrusted(path: Path, what: str, remedy: str = "") -> Iterator[h5py.File]:
    """Open an HDF5 file of a stranger to read it; raise errors as `explain_damage` does."""
    with explain_damage(path, what, remedy):
        with path.open("rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _check_heaps(content)
        with h5py.File(path, "r") as file:
            if file.userblock_size:
                raise StoreError(f"{str(path)!r} begins with something else than HDF5, which mdsens's files do not.")
            yield file


def _check_heaps(content: mmap.mmap) -> None:
    """Raise ValueError for heaps of texts in which an object ends where it begins, and for heaps that lie in each other.

    HDF5's library (2.0.0) never returns from them. Lengths must have eight bytes, as in mdsens's files.
    """
    if content[: len(SIGNATURE)] != SIGNATURE:
        return  # no HDF5 file, which h5py says
    if content[10 if content[8] >= 2 else 14] != 8:
        raise ValueError("its lengths do not have eight bytes")
    at, left = content.find(HEAP), len(content)
    while at >= 0:
        (size,) = struct.unpack_from("<Q", content, at + len(HEAP)) if at + HEADER <= len(content) else (0,)
        place, end = at + HEADER, min(at + size, len(content))
        while place + HEADER <= end:
            index, size = struct.unpack_from("<H6xQ", content, place)
            step = size if index == 0 else (HEADER + -(-size // 8) * 8) % 2**64
            left -= HEADER
            if step < HEADER or left < 0:
                raise ValueError(f"its texts at {at} have no end")
            place += step
        at = content.find(HEAP, at + 1)


def check_harmless(file: h5py.File, path: Path) -> None:
    """Check that a file has plain data in groups, all of it together no larger than the file.

    Raises:
        StoreError: links to elsewhere, data from elsewhere (external, virtual), data that a filter, the fill value or many
            names for the same make large, references, types and spaces without data, groups that are inside themselves.
    """
    left, groups = path.stat().st_size, set()

    def check(group: h5py.Group) -> None:
        nonlocal left
        for name in group:
            where = f"{group.name.rstrip('/')}/{name}"
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise StoreError(f"{str(path)!r} has a link to elsewhere at {where}, which mdsens does not follow.")
            item = group[name]
            if isinstance(item, h5py.Group):
                place = h5py.h5o.get_info(item.id).addr
                if place in groups:
                    raise StoreError(f"{str(path)!r} has the same group twice, the second time at {where}: it may be endless.")
                groups.add(place)
                check(item)
                continue
            if not isinstance(item, h5py.Dataset) or item.shape is None:
                raise StoreError(f"{str(path)!r} has something without data at {where}.")
            if item.is_virtual or item.external or (left := left - item.nbytes) < 0:
                raise StoreError(f"{str(path)!r} has data from elsewhere, or more than it can hold, at {where}.")
            if item.dtype.kind not in NUMBER_KINDS and not _is_opaque(item.dtype):
                left = _after_texts(item, left)
                if left < 0:
                    raise StoreError(f"{str(path)!r} has data at {where} that are neither numbers nor texts of its size.")

    groups.add(h5py.h5o.get_info(file.id).addr)
    check(file)


def _is_opaque(dtype: np.dtype) -> bool:
    """Return whether a type is bytes without a meaning to HDF5, such as a stored file."""
    return dtype.kind == "V" and dtype.names is None and dtype.subdtype is None


def _after_texts(item: h5py.Dataset, left: int) -> int:
    """Return the rest of a file's size after the texts of a dataset, one by one: all of them may be one and the same."""
    if h5py.check_string_dtype(item.dtype) is None or item.ndim > 1:
        return -1
    for k in range(item.size):
        if left < 0:
            break
        left -= len(item[k] if item.ndim else item[()])
    return left
