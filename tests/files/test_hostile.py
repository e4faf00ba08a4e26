"""Files of strangers: whatever they hold, they are read or refused in a sentence, soon, and nothing is written elsewhere."""

import gzip
import importlib
import pathlib
import shutil
import sys

import h5py
import numpy as np
import pytest
from ase.build import bulk
from helpers import refused

import mdsens as ms
from mdsens.studies.input import tasks
from mdsens.studies.running import execution
from mdsens.studies.storage import collected_file, task_files

STRESS = pathlib.Path(__file__).parents[2] / "scripts" / "stress"


@pytest.fixture(scope="module")
def stress():
    sys.path.insert(0, str(STRESS))
    yield importlib.import_module("fuzz"), importlib.import_module("samples")
    sys.path.remove(str(STRESS))


@pytest.fixture(scope="module")
def samples(stress, tmp_path_factory):
    return stress[1].write_samples(tmp_path_factory.mktemp("samples") / "good")


@pytest.mark.slow
def test_spoilt_files_are_read_or_refused(stress, samples, tmp_path):
    """`scripts/stress/fuzz.py` does the same a thousand times, in a process whose time and memory are measured."""
    wrong, count = [], 0
    for kind, path, done in stress[0].spoilt_files(tmp_path / "spoilt", samples, 60, seed=5):
        if said := stress[0].attempt(kind, path)[1]:
            wrong.append(f"{kind} {path.name} ({done}): {said}")
        count += 1
    assert not wrong and count >= 60, "\n".join(wrong)
    assert [path.name for path in tmp_path.iterdir()] == ["spoilt"]


def many(atoms, path):
    """The same structure under a header that announces a thousand million atoms."""
    text = path.read_text()
    first = {".xyz": "8\n", ".poscar": "   8\n", ".dump": "ATOMS\n8\n", ".lmp": "8 atoms"}[path.suffix]
    assert text.count(first) == 1, text
    path.write_text(text.replace(first, first.replace("8", "1000000000")))


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["extxyz", "poscar", "dump", "lmp"])
def test_headers_that_announce_too_many_atoms(ending, samples, tmp_path):
    (good,) = (path for path in samples["structures"] if path.name == f"structure.{ending}")
    bad = tmp_path / f"bad.{'xyz' if ending == 'extxyz' else ending}"
    shutil.copy(good, bad)
    more = {"species": ["Si"]} if ending == "lmp" else {"format": "vasp"} if ending == "poscar" else {}
    assert len(ms.read(bad, **more)) == 8
    many(8, bad)
    refused(lambda: ms.read(bad, **more), "announces 1000000000", "can hold")


def test_a_packed_file_that_unpacks_without_end(tmp_path):
    bulk("Si", cubic=True).write(tmp_path / "good.xyz.gz")
    assert len(ms.read(tmp_path / "good.xyz.gz")) == 8
    with gzip.open(tmp_path / "bomb.xyz.gz", "wb", compresslevel=1) as file:
        for _ in range(120):
            file.write(bytes(2**20))
    refused(lambda: ms.read(tmp_path / "bomb.xyz.gz"), "unpacks to more than 100 MB")


@pytest.mark.slow
def test_a_line_that_would_be_searched_without_end(samples, tmp_path):
    (good,) = (path for path in samples["structures"] if path.suffix == ".res")
    assert len(ms.read(good)) == 8
    (tmp_path / "bad.res").write_text(good.read_text() + "x" * 100_000)
    refused(lambda: ms.read(tmp_path / "bad.res"), "more than 1000 letters")


def test_names_are_names_of_files(tmp_path, monkeypatch):
    """ASE takes `postgres...` for a database's address."""
    monkeypatch.chdir(tmp_path)
    for name in ("postgresql.xyz", "mysql.xyz", "a b\n.xyz"):
        bulk("Si").write(tmp_path / name, format="extxyz")
        assert len(ms.read(name)) == 2
    refused(lambda: ms.read("x" * 5000), "There is no file")
    refused(lambda: ms.read("a\0b"), "There is no file")
    atoms = bulk("Si")
    atoms.numbers = [14, 999]
    refused(lambda: ms.System.from_ase(atoms), "atomic numbers from 14 to 999")


ENDLESS = {
    "n = 8": ("n = 1000000000", "less than or equal to 5000000"),
    "points = 3": ("points = 1000000", "less than or equal to 100000"),
    "epsilon = [1.0, 2.0]": ("epsilon = { start = 1.0, stop = 2.0, points = 90000 }", "divide the study"),
    "size = [2, 2, 3]": ("size = [20000, 20000, 3]", "build a smaller one, and repeat it"),
    "repeat = 2": ("repeat = 1000", "repeat it less"),
    "seed = [1, 2]": ("seed = [-1]", "greater than or equal to 0"),
    "A = 1.0": ("A = 1e308", "finite box"),
    "n = 3, m": (f"n = {'9' * 5000}, m", "no TOML"),
    'builder = "nanotube"\narguments = { n = 3, m = 3, length = 2 }': ('file = "/**/*.cif"', "below that of the study"),
}


@pytest.mark.parametrize("old", ENDLESS)
def test_studies_without_end(old, stress, tmp_path):
    new, word = ENDLESS[old]
    text = stress[1].MADE
    assert text.count(old) == 1
    (tmp_path / "study.toml").write_text(text.replace(old, new))
    with pytest.raises(ms.InputError, match=word):
        tasks.read_study(tmp_path / "study.toml")


HOSTILE = {
    "a type": lambda group: group.__setitem__("x", np.dtype("f8")),
    "nothing": lambda group: group.__setitem__("x", h5py.Empty("f8")),
    "a cycle": lambda group: group.__setitem__("x", group),
    "twice": lambda group: group.__setitem__("x", group.file.create_group("y")),
    "references": lambda group: group.create_dataset("x", data=group.ref, dtype=h5py.ref_dtype),
    "texts": lambda group: group.__setitem__("x", ["a", "b"]),
    "virtual": lambda group: group.create_virtual_dataset("x", h5py.VirtualLayout((3,), "f8")),
    "outside": lambda group: group.__setitem__("x", h5py.ExternalLink("/etc/passwd", "/")),
    "large": lambda group: group.create_dataset("x", (10**9,), "f8", chunks=(10**6,)),
    "often": lambda group: [group.__setitem__(f"x{k}", group.require_dataset("x", (2000,), "f8")) for k in range(100)],
}


@pytest.fixture(scope="module")
def task(samples):
    return next(path for path in samples["tasks"] if not task_files.read_task(path).failed)


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_tasks_are_refused_and_done_again(what, task, tmp_path):
    shutil.copytree(task.parent.parent, tmp_path / "out")
    spoilt = task_files.task_path(tmp_path / "out", task.stem)
    with h5py.File(spoilt, "a") as file:
        HOSTILE[what](file["values"])
    with pytest.raises(ms.StoreError, match=str(spoilt)):
        task_files.read_task(spoilt)
    with pytest.raises(ms.StoreError):
        collected_file.collect(tmp_path / "out", tmp_path / "all.h5")


STRUCTURES = {
    "no positions": ("positions", lambda there: None),
    "one atom's positions": ("positions", lambda there: there[0]),
    "no species": ("species", lambda there: None),
    "one number": ("species", lambda there: 0),
    "unknown species": ("species", lambda there: there + 5),
}


@pytest.mark.parametrize(("lost", "put"), STRUCTURES.values(), ids=STRUCTURES)
def test_a_task_that_lost_its_structure_is_named(lost, put, task, tmp_path):
    shutil.copytree(task.parent.parent, tmp_path / "out")
    spoilt = task_files.task_path(tmp_path / "out", task.stem)
    with h5py.File(spoilt, "a") as file:
        (group,) = file["structures"].values()
        instead = put(group.pop(lost)[()])
        if instead is not None:
            group[lost] = instead
    with pytest.raises(ms.StoreError, match=rf"structures/\w+/{lost}.*: delete it, and run again"):
        collected_file.collect(tmp_path / "out", tmp_path / "all.h5")


def test_texts_without_end(task, tmp_path):
    """HDF5's library looks for the end of the heap for ever where the room that is left has no size."""
    from mdsens.common.untrusted_hdf5 import HEAP

    content = bytearray(task.read_bytes())
    at = place = content.find(HEAP) + 16
    while (index := int.from_bytes(content[place : place + 2], "little")) > 0:
        place += 16 + -(-int.from_bytes(content[place + 8 : place + 16], "little") // 8) * 8
    assert place > at and index == 0
    for name, size in (("empty", 0), ("around", 2**64 - 16)):
        first = at if size else place
        content[first + 8 : first + 16] = size.to_bytes(8, "little")
        path = tmp_path / f"{name}.h5"
        path.write_bytes(content)
        for read in (task_files.read_task, ms.load):
            with pytest.raises(ms.StoreError, match="have no end"):
                read(path)


def test_heaps_inside_of_each_other_are_not_walked_again_and_again(tmp_path):
    from mdsens.common.untrusted_hdf5 import HEAP

    with h5py.File(tmp_path / "many.h5", "w") as file:
        an_object = (1).to_bytes(8, "little") + (16).to_bytes(8, "little")
        file["x"] = np.frombuffer((an_object + HEAP + (2**40).to_bytes(8, "little")) * 100_000, dtype="u1")
    with pytest.raises(ms.StoreError, match="have no end"):
        ms.load(tmp_path / "many.h5")


def test_a_file_that_begins_with_something_else(tmp_path):
    with h5py.File(tmp_path / "block.h5", "w", userblock_size=512) as file:
        file["x"] = 1.0
    with pytest.raises(ms.StoreError, match="begins with something else"):
        ms.load(tmp_path / "block.h5")


def test_a_damaged_task_is_done_again(task, samples, tmp_path):
    shutil.copytree(task.parent.parent, tmp_path / "out")
    damaged = task_files.task_path(tmp_path / "out", task.stem)
    damaged.write_bytes(task.read_bytes()[:2000])
    study = tasks.read_study(task.parent.parent.with_suffix(".toml"))
    assert execution.run(study, tmp_path / "out", progress=False).done == 1
    before, after = task_files.read_task(task).record.arrays, task_files.read_task(damaged).record.arrays
    assert all(after[key].tobytes() == before[key].tobytes() for key in before)
