"""Spoiling files: by bytes, by words and lines, and inside of HDF5. The same seed spoils in the same way."""

import re
import shutil
from pathlib import Path

import h5py
import numpy as np

NUMBERS = (
    *("nan", "inf", "-inf", "0", "-1", "1e308", "-1e308", "1e-300", "999999999999", "1000000000", "100000", "88", "0.1"),
    *("1e999", "12345678901234567890123", "1_000", "0x10", "１２", "--3", "1.2.3", "9" * 5000),
)
WORDS = (
    *("", "\0", "../../../etc/passwd", "/etc/passwd", "x" * 100_000, "🧪", "%s%n", "__import__('os')", "\u202e", "\ufeff"),
    *("[[[[", "{", '"', "'''", "=", "#", "Xx", "Si", "\r", "\x1b[2J", "[" * 5000, "a.b.c"),
)
BYTES = (b"\0", b"\xff\xfe", b"\n\n\n", b"\x89HDF\r\n\x1a\n", b"PK\x03\x04", b"\x80\x04\x95", b"%" * 50)


def spoil(rng: np.random.Generator, source: Path, target: Path) -> str:
    """Write a spoilt copy of a file; what was done to it."""
    if source.suffix == ".h5" and rng.random() < 0.7:
        shutil.copy(source, target)
        try:
            with h5py.File(target, "a") as file:
                return " and ".join(_inside(rng, file) for _ in range(rng.integers(1, 3)))
        except Exception as error:  # h5py's, of what the first change did
            return f"half of a change ({type(error).__name__})"
    binary = source.suffix in (".h5", ".traj")
    content, done = source.read_bytes(), []
    for _ in range(rng.integers(1, 4)):
        ways = _OF_BYTES if binary or rng.random() < 0.3 else _OF_TEXT
        way = ways[rng.integers(len(ways))]
        content = way(rng, content)
        done.append(way.__name__.strip("_"))
    target.write_bytes(content)
    return " and ".join(done)


def _flip(rng, content):
    spoilt = bytearray(content)
    for k in rng.integers(0, max(len(spoilt), 1), size=rng.integers(1, 9)) if spoilt else ():
        spoilt[k] ^= 1 << int(rng.integers(8))
    return bytes(spoilt)


def _cut(rng, content):
    return content[: rng.integers(0, len(content) + 1)]


def _drop(rng, content):
    a, b = sorted(rng.integers(0, len(content) + 1, size=2))
    return content[:a] + content[b:] if b - a < 200 else content[:a] + content[a + 20 :]


def _insert(rng, content):
    k = rng.integers(0, len(content) + 1)
    more = BYTES[rng.integers(len(BYTES))] if rng.random() < 0.5 else rng.bytes(rng.integers(1, 40))
    return content[:k] + more + content[k:]


def _repeat(rng, content):
    a, b = sorted(rng.integers(0, len(content) + 1, size=2))
    return content[:b] + content[a:b] * int(rng.integers(1, 4)) + content[b:]


def _number(rng, content):
    return _replaced(rng, content, rb"[-+]?\d+\.?\d*(?:[eE][-+]?\d+)?", NUMBERS)


def _word(rng, content):
    return _replaced(rng, content, rb"[A-Za-z_]+", WORDS)


def _replaced(rng, content, pattern, others):
    found = list(re.finditer(pattern, content))
    if not found:
        return content
    one = found[rng.integers(len(found))]
    return content[: one.start()] + others[rng.integers(len(others))].encode() + content[one.end() :]


def _lines(rng, content):
    lines = content.split(b"\n")
    a, b = rng.integers(0, len(lines), size=2)
    if rng.random() < 0.5:
        lines[a], lines[b] = lines[b], lines[a]
    else:
        del lines[a]
    return b"\n".join(lines)


_OF_BYTES = (_flip, _cut, _drop, _insert, _repeat)
_OF_TEXT = (_number, _number, _word, _word, _lines, _drop, _repeat)


def _inside(rng, file) -> str:
    """Change something in an open HDF5 file."""
    items: list = [file]
    file.visititems(lambda _, item: items.append(item))
    item = items[rng.integers(len(items))]
    if len(item.attrs) and rng.random() < 0.4:
        names = sorted(item.attrs)
        name = names[rng.integers(len(names))]
        del item.attrs[name]
        if rng.random() < 0.8:
            item.attrs[name] = _value(rng)
        return f"attribute {item.name}@{name}"
    datasets = [one for one in items if isinstance(one, h5py.Dataset)]
    item = datasets[rng.integers(len(datasets))]
    name, parent, kept = item.name, item.parent, item[()]
    del file[name]
    way = int(rng.integers(9))
    if way == 1:
        parent.create_group(name.split("/")[-1])
    elif way == 2:
        file[name] = h5py.SoftLink("/") if rng.random() < 0.5 else h5py.ExternalLink("elsewhere.h5", "/")
    elif way == 3:
        file[name] = parent  # a cycle of hard links
    elif way == 4:
        file.create_dataset(name, shape=(10**6, 10**6), dtype="f8", chunks=(100, 100))
    elif way == 5:
        file[name] = np.dtype("f8")  # a named type
    elif way == 6:
        file[name] = h5py.Empty("f8")
    elif way in (7, 8) and np.size(kept) > 1 and np.asarray(kept).dtype.kind == "f":
        spoilt = np.array(kept)
        spoilt.flat[rng.integers(spoilt.size)] = (np.nan, np.inf, 1e300, -1.0, 0.0)[rng.integers(5)]
        file[name] = spoilt if way == 7 else spoilt[..., :-1]
    elif way:
        file[name] = _value(rng)
    return f"{('removed', 'group', 'link', 'cycle', 'giant', 'type', 'empty', 'number', 'shape')[way]} {name}"


VALUES = (
    *(np.nan, -1, 10**18, 1e300, "", "x" * 30_000, "../../x", b"\xff\xfe", "{}", "[]"),
    *(np.zeros((2, 3)), np.array([], dtype=float)),
)


def _value(rng):
    return VALUES[rng.integers(len(VALUES))]
