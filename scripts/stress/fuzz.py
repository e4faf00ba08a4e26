"""Spoilt files of every kind that mdsens reads: none may give a traceback, hang, eat memory or write elsewhere.

    python scripts/stress/fuzz.py [--files 1500] [--seed 0]

Files are read in a process of their own, which is replaced where it hangs or dies. Prints a table, and exits 1 if a file
did what none may do; such files are kept.
"""

import argparse
import contextlib
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
# The folder of compiled programs is made by importing mdsens, not by reading a file.
os.environ["MDSENS_KEEP_COMPILED"] = "0"

from mutations import spoil
from samples import COLLECTED, POTENTIALS, RESULTS, STRUCTURES, STUDIES, TASKS, readers, write_samples

SECONDS, BYTES = 10.0, 2 * 2**30
SHARES = {STRUCTURES: 0.35, POTENTIALS: 0.2, STUDIES: 0.2, RESULTS: 0.12, TASKS: 0.05, COLLECTED: 0.08}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def spoilt_files(folder: Path, samples: dict[str, list[Path]], count: int, seed: int) -> Iterator[tuple[str, Path, str]]:
    """`(kind, file, what was done to it)`, each file in a folder of its own."""
    number = 0
    for kind, share in SHARES.items():
        for _ in range(max(1, round(share * count))):
            rng = np.random.default_rng([seed, number])
            source = samples[kind][rng.integers(len(samples[kind]))]
            place = folder / f"{number:05d}"
            if kind == TASKS:  # in a study's folder, among good ones
                shutil.copytree(source.parent.parent, place / "out")
                shutil.copy(source.parent.parent.with_suffix(".toml"), place)
                target = place / "out" / "tasks" / source.name
            else:
                place.mkdir(parents=True)
                target = place / source.name
            if source.suffix.startswith(".snap"):
                for partner in source.parent.glob("*.snap*"):
                    shutil.copy(partner, place)
            if source.suffix == ".toml":
                for partner in source.parent.glob("structure.c*"):
                    shutil.copy(partner, place)
            yield kind, target, spoil(rng, source, target)
            number += 1


def attempt(kind: str, path: Path) -> tuple[int, str]:
    """Read a file in every public way: `(how many were refused in a sentence, what went wrong)`."""
    from mdsens.common.errors import MdsensError

    refused = 0
    for reader in readers(kind, path):
        try:
            reader()
        except MdsensError as error:
            refused += 1
            if not str(error).strip():
                return refused, "refused without a word"
        except Exception as error:
            return refused, f"{type(error).__name__}: {str(error)[-400:]}"
    return refused, ""


def work(pipe) -> None:
    """What the process does that reads files: for each of them what went wrong, and its memory."""
    sys.dont_write_bytecode = True
    place, written = [Path("/")], []
    allowed = [Path(os.environ[name]) for name in ("JAX_COMPILATION_CACHE_DIR",) if os.environ.get(name)]

    def watch(event, arguments):
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
            name = arguments[0]
        elif event in ("os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove"):
            name = arguments[1] if event == "os.rename" else arguments[0]
        elif event in ("subprocess.Popen", "os.system", "socket.connect", "os.exec"):
            written.append(f"{event} {arguments[0]!r:.100}")
            return
        else:
            return
        if isinstance(name, str | bytes | os.PathLike):
            name = Path(os.fsdecode(name)).absolute()
            if name != Path("/dev/null") and not any(name.is_relative_to(one) for one in (*place, *allowed)):
                written.append(f"{event} {name}")

    sys.addaudithook(watch)
    while (given := pipe.recv()) is not None:
        kind, path = given
        place[:] = [path.parents[2] if kind == TASKS else path.parent]
        os.chdir(place[0])
        before = _memory()
        written.clear()
        refused, wrong = attempt(kind, path)
        wrong = wrong or (f"touched {written[0]}" if written else "")
        grown = _memory() - before
        if not wrong and grown > BYTES:
            wrong = f"{grown / 2**30:.1f} GB of memory"
        pipe.send((refused, wrong, grown))


def _memory() -> int:
    """The largest memory since this was last asked for."""
    status = Path("/proc/self/status").read_text()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


class Reader:
    """A process that reads files, warm; a new one where it hung or died."""

    def __init__(self):
        self.start()

    def start(self):
        self.pipe, other = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("spawn").Process(target=work, args=(other,), daemon=True)
        self.process.start()
        other.close()

    def warm_up(self, samples: dict[str, list[Path]]) -> None:
        """Good files of each kind, which must be read."""
        for kind, paths in samples.items():
            for path in paths:
                refused, wrong, _ = self.read(kind, path, 120.0)
                if refused or wrong:
                    raise SystemExit(f"the good {path.name} is not read: {wrong or 'refused'}")

    def read(self, kind, path, seconds=SECONDS) -> tuple[int, str, int]:
        self.pipe.send((kind, path))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.pipe.poll(0.2):
                try:
                    return self.pipe.recv()
                except EOFError:
                    self.process.join()
                    return self._again(f"died ({self.process.exitcode})")
            if self._size() > 2 * BYTES:
                return self._again("more than 4 GB of memory")
        return self._again(f"took over {seconds:g} s")

    def _size(self) -> int:
        with contextlib.suppress(OSError, IndexError):
            return 1024 * int(Path(f"/proc/{self.process.pid}/status").read_text().split("VmRSS:")[1].split()[0])
        return 0

    def _again(self, why):
        self.process.kill()
        self.process.join()
        self.start()
        return 0, why, 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1500, help="spoilt files (default: 1500)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-found"), help="folder for the files that did harm")
    options = parser.parse_args()
    begun, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="mdsens-fuzz-"))
    counts, found, largest, slowest = Counter(), [], (0, ""), (0.0, "")
    try:
        samples = write_samples(folder / "good")
        reader = Reader()
        reader.warm_up(_copied(samples, folder / "warm"))
        for kind, path, done in spoilt_files(folder / "spoilt", samples, options.files, options.seed):
            since = time.monotonic()
            refused, wrong, grown = reader.read(kind, path)
            what = f"{kind} {path.parent.name}/{path.name} ({done})"
            largest, slowest = max(largest, (grown, what)), max(slowest, (time.monotonic() - since, what))
            counts[kind, "files"] += 1
            counts[kind, "refused"] += bool(refused)
            if wrong:
                counts[kind, "wrong"] += 1
                found.append(f"{what}: {wrong}")
                shutil.copytree(path.parent, options.keep / f"{options.seed}-{path.parent.name}", dirs_exist_ok=True)
            shutil.rmtree(folder / "spoilt")
        strays = {path.name for path in folder.iterdir()} - {"good", "warm"}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{'spoilt files of':16}{'read':>8}{'refused':>9}{'wrong':>8}")
    for kind in SHARES:
        print(f"{kind:16}{counts[kind, 'files']:8}{counts[kind, 'refused']:9}{counts[kind, 'wrong']:8}")
    print(f"{'all':16}{sum(n for (_, what), n in counts.items() if what == 'files'):8}")
    print(f"slowest      {slowest[0]:5.1f} s   {slowest[1]}")
    print(f"most memory  {largest[0] / 2**20:5.0f} MB  {largest[1]}")
    print(f"altogether   {time.monotonic() - begun:5.0f} s")
    for line in [*found, *(f"a stray {name}" for name in strays)]:
        print(f"  {line}")
    sys.exit(1 if found or strays else 0)


def _copied(samples, folder):
    """Samples each in a folder of their own, as the spoilt ones."""
    copied = {}
    for kind, paths in samples.items():
        copied[kind] = []
        for k, path in enumerate(paths):
            place = folder / f"{kind}{k}"
            if kind == TASKS:
                shutil.copytree(path.parent.parent, place / "out")
                shutil.copy(path.parent.parent.with_suffix(".toml"), place)
                copied[kind].append(place / "out" / "tasks" / path.name)
                continue
            place.mkdir(parents=True)
            for partner in path.parent.glob("*.snap*" if path.suffix.startswith(".snap") else path.name):
                shutil.copy(partner, place)
            if path.suffix == ".toml":
                shutil.copy(path.parent / "structure.cif", place)
            copied[kind].append(place / path.name)
    return copied


if __name__ == "__main__":
    main()
