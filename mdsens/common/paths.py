"""Files: those that come with mdsens, whether there is one, and its text."""

from pathlib import Path

from mdsens.common.errors import InputError


def data_file(name: str) -> Path:
    """Return the path of a file shipped with mdsens; raise InputError where it is missing from the installation."""
    here = Path(__file__).parents[1]
    for folder in (here / "_data", here.parent / "data"):
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"The data file {name!r} is missing from this installation: install mdsens again.")


def is_file(path: Path) -> bool:
    """Return whether there is a file; none has a name of 5,000 letters, or one with a NUL in it."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def read_text(path: Path) -> str:
    """Return a file's text, unpacked where its name says that it is compressed; strange bytes are replaced."""
    from ase.io.formats import open_with_compression

    with open_with_compression(str(path), "rb") as file:
        return str(file.read().decode("utf-8-sig", errors="replace"))
