"""Paths of files: those that come with mdsens, and whether there is one."""

from pathlib import Path

from mdsens.common.errors import InputError


def data_file(name: str) -> Path:
    """A file shipped with mdsens.

    Raises:
        InputError: it is missing, so the installation is broken.
    """
    here = Path(__file__).parents[1]
    for folder in (here / "_data", here.parent / "data"):
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"The data file {name!r} is missing from this installation: install mdsens again.")


def is_file(path: Path) -> bool:
    """Whether there is one; no file has a name of 5,000 letters, or one with a NUL in it."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
