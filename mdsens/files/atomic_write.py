"""Files that are written whole or not at all."""

import contextlib
import errno
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mdsens.common.errors import StoreError


def check_writable(path: Path, *, overwrite: bool) -> None:
    """Raise StoreError, before any long work, where a file exists or its folder is missing or read-only."""
    if path.is_dir():
        raise StoreError(f"{str(path)!r} is a folder: give the name of a file.")
    if path.exists() and not overwrite:
        raise StoreError(f"{str(path)!r} exists already: choose another name, or allow it with overwrite=True (--overwrite).")
    if not path.parent.is_dir():
        raise StoreError(f"The folder {str(path.parent)!r} does not exist: make it first.")
    if not os.access(path.parent, os.W_OK):
        raise StoreError(f"The folder {str(path.parent)!r} cannot be written to.")


def save_picture(ax: Any, path: Path, *, overwrite: bool = False) -> Path:
    """Write the figure of some axes as PNG, whole or not at all; raise StoreError as `save`, and return the path."""
    check_writable(path, overwrite=overwrite)
    image = io.BytesIO()
    ax.figure.savefig(image, format="png", dpi=150)
    write_whole(path, image.getvalue(), overwrite=overwrite)
    return path


def write_whole(path: Path, image: bytes, *, overwrite: bool) -> None:
    """Write a file so that, whenever the process dies, it is there whole or not at all."""
    write_all({path: image}, overwrite=overwrite)


def write_all(images: Mapping[Path, bytes], *, overwrite: bool) -> None:
    """Write files, each as `write_whole` does; together it takes less time."""
    parts = {path: path.with_name(f".{path.name}.{os.getpid()}.part") for path in images}
    path = next(iter(images))
    try:
        with contextlib.ExitStack() as stack:
            files = []
            for path, part in parts.items():
                files.append(stack.enter_context(part.open("wb")))
                files[-1].write(images[path])
                files[-1].flush()
            for file in files:
                os.fsync(file.fileno())
        for path, part in parts.items():
            if overwrite:
                part.replace(path)
            else:
                _link(part, path)
        if os.name == "posix":  # Windows opens no folders
            for parent in {path.parent for path in images}:
                folder = os.open(parent, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
    except FileExistsError:
        raise StoreError(f"{str(path)!r} appeared while the result was computed: choose another name.") from None
    except OSError as error:
        raise StoreError(f"{str(path)!r} could not be written ({error.strerror or error}); nothing was left behind.") from error
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def _link(part: Path, path: Path) -> None:
    """Give a file its name by a link, which never replaces a file that appeared meanwhile; some filesystems have none."""
    try:
        os.link(part, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP):
            raise
        if path.exists():
            raise FileExistsError(path) from None
        part.replace(path)
