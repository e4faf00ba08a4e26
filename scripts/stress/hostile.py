"""Hostile places: a full disk, a read-only folder, two processes on one output, links that lead elsewhere,
HDF5 files of strangers, names full of tricks.

    python scripts/stress/hostile.py

Mounts a small tmpfs and a read-only bind mount where it may (as root), and says what it had to leave out. Each line says what
was tried and what mdsens said; exits 1 where it said nothing, said a traceback, or left or wrote something it should not.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

STUDY = """
[study]
kind = "sweep"
[study.parameters]
sigma = { start = 0.9, stop = 1.3, points = 100 }
[structures.dimer]
builder = "molecule"
arguments = { name = "N2" }
[potential]
name = "LennardJones"
parameters = { epsilon = 1.0, sigma = 1.0, cutoff = 6.0, onset = 5.0 }
[observables.energy]
"""

FINDINGS: list[tuple[str, bool, str]] = []


def mdsens(*arguments, cwd) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "mdsens.cli.app", *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=300
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("mdsens:") or "Traceback" in line]
    return done.returncode, " / ".join(lines) or done.stdout.strip().splitlines()[-1]


def tell(what: str, fine: bool, said: str) -> None:
    FINDINGS.append((what, fine and "Traceback" not in said and "unexpected" not in said, said))


@contextlib.contextmanager
def mounted(*arguments, at: Path):
    """Whether something could be mounted."""
    at.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *arguments, str(at)], capture_output=True)
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", str(at)], check=True)


def full_disk(folder: Path) -> None:
    with mounted("-t", "tmpfs", "-o", "size=300k", "tmpfs", at=folder / "small") as there:
        if not there:
            return tell("full disk", True, "left out: nothing can be mounted")
        status, said = mdsens("run", folder / "study.toml", "-o", folder / "small" / "out", cwd=folder)
        tasks = list((folder / "small" / "out" / "tasks").iterdir())
        whole = all(path.suffix == ".h5" for path in tasks)
        tell(f"full disk: a run, {len(tasks)} tasks kept", status == 1 and whole and "No space left" in said, said)
        status, said = mdsens("collect", folder / "small" / "out", "-o", folder / "small" / "all.h5", cwd=folder)
        tell("full disk: collecting", status == 1 and not (folder / "small" / "all.h5").exists(), said)
        # With room again the run goes on.
        subprocess.run(["mount", "-o", "remount,size=30m", str(folder / "small")], check=True)
        status, said = mdsens("run", folder / "study.toml", "-o", folder / "small" / "out", cwd=folder)
        tell(
            "full disk: room again, the run goes on",
            status == 0 and len(list((folder / "small/out/tasks").iterdir())) == 100,
            said,
        )
    return None


def read_only(folder: Path) -> None:
    (folder / "kept").mkdir()
    with mounted("--bind", str(folder / "kept"), at=folder / "kept") as there:
        if not there or subprocess.run(["mount", "-o", "remount,ro,bind", str(folder / "kept")]).returncode:
            return tell("read-only folder", True, "left out: nothing can be mounted")
        for command in (["run", folder / "study.toml", "-o", "out"], ["new", "sweep"], ["demo"]):
            status, said = mdsens(*command, cwd=folder / "kept")
            tell(f"read-only folder: {command[0]}", status == 1 and not list((folder / "kept").iterdir()), said)
    return None


def two_processes(folder: Path) -> None:
    command = [sys.executable, "-m", "mdsens.cli.app", "run", "study.toml", "-o", "both"]
    first = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (folder / "both" / ".lock").exists() and first.poll() is None:
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGSTOP)  # so that it is at work until the second is done
    status, said = mdsens("run", "study.toml", "-o", "both", cwd=folder)
    os.kill(first.pid, signal.SIGCONT)
    tell("two processes on one output: the second", status == 1 and "Another process" in said, said)
    tell("two processes on one output: the first", first.wait() == 0, "goes on to its end")
    status, said = mdsens("run", "study.toml", "-o", "both", cwd=folder)
    tell("two processes on one output: afterwards", status == 0, said)


def links(folder: Path) -> None:
    """A link in the place of a file is replaced; what it leads to stays."""
    secret = folder / "secret.txt"
    secret.write_text("secret")
    tasks = folder / "linked" / "tasks"
    tasks.mkdir(parents=True)
    names = [path.name for path in sorted((folder / "both" / "tasks").glob("*.h5"))[:3]]
    for name in names:
        (tasks / name).symlink_to(secret)
    status, said = mdsens("run", "study.toml", "-o", "linked", cwd=folder)
    tell("links in the places of tasks", status == 0 and secret.read_text() == "secret", said)
    (folder / "all.h5").symlink_to(secret)
    status, said = mdsens("collect", "linked", "-o", "all.h5", cwd=folder)
    tell("a link in the place of the output", status == 1 and secret.read_text() == "secret", said)
    status, said = mdsens("collect", "linked", "-o", "all.h5", "--overwrite", cwd=folder)
    tell("the same, with --overwrite", status == 0 and secret.read_text() == "secret", said)


HOSTILE = {
    "an external link": lambda file: file.__setitem__("x", h5py.ExternalLink("/etc/passwd", "/")),
    "a soft link": lambda file: file.__setitem__("x", h5py.SoftLink("/h5md")),
    "a cycle of hard links": lambda file: file.create_group("x").__setitem__("y", file["x"]),
    "a virtual dataset": lambda file: file.create_virtual_dataset("x", h5py.VirtualLayout((3,), "f8")),
    "external data": lambda file: file.create_dataset("x", (2,), "f8", external=[("/etc/passwd", 0, 16)]),
    "a giant shape": lambda file: file.create_dataset("x", (10**12,), "f8", chunks=(1000,)),
    "a packed bomb": lambda file: file.create_dataset("x", data=np.zeros(10**7), compression="gzip"),
    "an unknown filter": lambda file: file.create_dataset(
        "x", (100,), "f8", chunks=(100,), compression=32015, allow_unknown_filter=True
    ),
    "object references": lambda file: file.create_dataset("x", data=file.ref, dtype=h5py.ref_dtype),
    "a text said a million times": lambda file: file.create_dataset("x", data=["y" * 1000] * 10**4, dtype=h5py.string_dtype()),
}


def hdf5(folder: Path) -> None:
    import mdsens as ms

    pair = ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=6.0, onset=5.0)
    ms.save(folder / "good.h5", ms.relax(ms.System([[0.0, 0.0, 0.0], [1.1, 0.0, 0.0]]), pair))
    for what, change in HOSTILE.items():
        shutil.copy(folder / "good.h5", folder / "bad.h5")
        with h5py.File(folder / "bad.h5", "a") as file:
            change(file["observables"])
        try:
            ms.load(folder / "bad.h5")
            tell(f"HDF5: {what}", what.startswith(("an unknown", "a text")), "is read, for nothing of it is used")
        except ms.StoreError as error:
            tell(f"HDF5: {what}", True, str(error).replace(str(folder), ""))


def names(folder: Path) -> None:
    text = STUDY.replace("[structures.dimer]", '[structures."../../dimer"]')
    (folder / "tricks.toml").write_text(text)
    status, said = mdsens("run", "tricks.toml", cwd=folder)
    tell("../ in a structure's name", status == 1 and "is no name" in _all(folder, "tricks.toml"), said)
    (folder / "tricks.toml").write_text(STUDY.replace("[observables.energy]", '[observables."/tmp/x"]'))
    status, said = mdsens("run", "tricks.toml", cwd=folder)
    tell("an absolute path as an observable's name", status == 1, said)
    (folder / "tricks.toml").write_text(STUDY.replace('builder = "molecule"\narguments = { name = "N2" }', 'file = "a\\u0000b"'))
    status, said = mdsens("run", "tricks.toml", cwd=folder)
    tell("NUL in a file's name", status == 1, said)
    for what, path in (
        ("a name of 5,000 letters", "x" * 5000),
        ("a folder as the file", "."),
        ("a device as the file", "/dev/zero"),
    ):
        for command in ("show", "run", "plot", "verify"):
            status, said = mdsens(command, path, cwd=folder)
            tell(f"{what}: {command}", status == 1, said[:150])


def _all(folder, name) -> str:
    return subprocess.run(
        [sys.executable, "-m", "mdsens.cli.app", "run", name], cwd=folder, capture_output=True, text=True
    ).stderr


def main():
    with tempfile.TemporaryDirectory(prefix="mdsens-hostile-") as name:
        folder = Path(name)
        (folder / "study.toml").write_text(STUDY)
        for trial in (two_processes, full_disk, read_only, links, hdf5, names):
            trial(folder)
    for what, fine, said in FINDINGS:
        print(f"{'  ' if fine else '! '}{what:48}{said[:180]}")
    sys.exit(0 if all(fine for _, fine, _ in FINDINGS) else 1)


if __name__ == "__main__":
    main()
