"""What a file says about itself suffices to do it again; and other numbers, versions and files are noticed."""

import json

import h5py
import jax
import numpy as np
import pytest
from ase import Atoms
from study_files import DIMER, dimers, mdsens, study

import mdsens as ms
from mdsens.cli.report import html_report
from mdsens.studies import export
from mdsens.studies.input import tasks
from mdsens.studies.running import execution
from mdsens.studies.storage import collected_file


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rerun")
    execution.run(tasks.read_study(dimers(folder, "[1.0, 1e60]")), folder / "out", progress=False)
    collected_file.collect(folder / "out", folder / "all.h5")
    return folder / "all.h5"


@pytest.fixture
def copied(swept, tmp_path):
    """A copy, to be changed."""
    (tmp_path / "all.h5").write_bytes(swept.read_bytes())
    return tmp_path / "all.h5"


@pytest.fixture
def of_files(tmp_path):
    Atoms("N2", positions=[[0, 0, 0], [0, 0, 1.1]]).write(tmp_path / "dimer.xyz")
    text = DIMER.format(sigma="[1.0]").replace('builder = "molecule"', 'file = "*.xyz"')
    (tmp_path / "study.toml").write_text(text.replace('arguments = { name = "N2" }', ""))
    execution.run(tasks.read_study(tmp_path / "study.toml"), tmp_path / "out", progress=False)
    collected_file.collect(tmp_path / "out", tmp_path / "all.h5")
    (tmp_path / "dimer.xyz").unlink()
    return tmp_path / "all.h5"


def test_a_study_done_again_is_the_same_bit_for_bit(swept, tmp_path):
    status, said = mdsens("rerun", swept, "-o", tmp_path / "again")
    assert status == 0 and "4 tasks done again" in said and "differences is 0.0e+00." in said, said
    assert (tmp_path / "again" / "study.toml").read_text() == (swept.parent / "dimers.toml").read_text()
    collected_file.collect(tmp_path / "again", tmp_path / "again.h5")
    assert not len(list((tmp_path / "again").glob("inputs/*")))
    assert mdsens("rerun", swept)[0] == 0 and (swept.parent / "all-rerun").is_dir()


@pytest.mark.parametrize("kind", ["uncertainty", "calibration", "continuation"])
def test_other_kinds_are_the_same_too_with_their_seeds(kind, tmp_path):
    status, said = mdsens("rerun", study(tmp_path, kind))
    assert status == 0 and "differences is 0.0e+00." in said, said


def test_another_number_is_noticed(copied, tmp_path):
    with h5py.File(copied, "a") as file:
        file["study/tasks/00001/values/energy"][...] *= 1.001
    status, said = mdsens("rerun", copied)
    assert status == 1 and "dimer sigma=1 epsilon=1 values/energy: differs by 1.0e-03" in said and "1 of" in said, said
    assert mdsens("rerun", copied, "-o", tmp_path / "b", "--tolerance", "0.01")[0] == 0


def test_verify_names_it_for_a_study(copied):
    status, said = mdsens("verify", copied)
    assert status == 1 and "mdsens rerun" in said


def test_other_versions_are_told(copied):
    with h5py.File(copied, "a") as file:
        task = file["study/tasks/00000"]
        told = json.loads(task.attrs["provenance"])
        told["versions"]["jax"] = "0.0.1"
        task.attrs["provenance"] = json.dumps(told)
    status, said = mdsens("rerun", copied)
    assert status == 0 and f"Other versions: jax was 0.0.1, is {jax.__version__}." in said


def test_a_changed_input_or_the_same_folder_is_refused(copied, swept):
    status, said = mdsens("rerun", swept, "-o", swept.parent / "out")
    assert status == 1 and "the very tasks" in said
    with h5py.File(copied, "a") as file:
        task = file["study/tasks/00000"]
        task.attrs["input"] = task.attrs["input"].replace('"epsilon": 0.5', '"epsilon": 0.6')
    assert "not what its name says" in mdsens("rerun", copied)[1]


@pytest.mark.parametrize(
    ("where", "key", "value", "words"),
    [
        ("study", "kind", "swep", "of a kind 'swep'"),
        ("study/tasks/00000", "input", "[]", "does not say what it was made from"),
        ("study/tasks/00000", "facts", "{", "no collected study, or damaged"),
    ],
)
def test_damage_is_told_in_a_sentence(where, key, value, words, copied, tmp_path):
    with h5py.File(copied, "a") as file:
        file[where].attrs[key] = value
    for command in (["show"], ["rerun"], ["report", "-o", tmp_path / "a.html"], ["export", "-o", tmp_path / "a.csv"]):
        status, said = mdsens(command[0], copied, *command[1:])
        assert status == 1 and words in said, said
    assert [path.name for path in tmp_path.iterdir()] == ["all.h5"]


def test_files_that_are_gone_are_those_that_were_kept(of_files, tmp_path):
    status, said = mdsens("rerun", of_files)
    assert status == 0 and "0.0e+00" in said
    (kept,) = (tmp_path / "all-rerun" / "inputs").glob("*/*")
    assert kept.name == "dimer.xyz"


def test_an_input_file_that_is_another_now_is_not_taken_for_the_old_one(of_files, tmp_path):
    with h5py.File(of_files, "a") as file:
        del file["study/inputs"]
    Atoms("N2", positions=[[0, 0, 0], [0, 0, 1.2]]).write(tmp_path / "dimer.xyz")
    status, said = mdsens("rerun", of_files)
    assert status == 1 and "not there any more as it was" in said, said
    Atoms("N2", positions=[[0, 0, 0], [0, 0, 1.1]]).write(tmp_path / "dimer.xyz")
    assert mdsens("rerun", of_files)[0] == 0


def test_names_in_a_file_lead_nowhere_else(of_files, tmp_path):
    with h5py.File(of_files, "a") as file:
        for item in file["study/inputs"].values():
            item.attrs["name"] = "../../../escaped.xyz"
        file["study/inputs"]["..\\escaped"] = np.void(b"something")
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    mdsens("rerun", of_files)
    new = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert new and all(path.is_relative_to(tmp_path / "all-rerun") and "escaped" not in path.name for path in new)
    with h5py.File(of_files, "a") as file:
        del file["study/inputs"]
    assert "does not keep" in mdsens("rerun", of_files, "-o", tmp_path / "c")[1]


def test_a_collected_file_of_before_opens(copied):
    """Without trajectories, inputs, names of axes, and species in the tasks."""
    with h5py.File(copied, "a") as file:
        del file["particles"], file["study/inputs"]
        for task in file["study/tasks"].values():
            facts = json.loads(task.attrs["facts"])
            for name, state in facts.get("states", {}).items():
                del state["labels"], state["pbc"], task[f"structures/{name}/species"]
            task.attrs["facts"] = json.dumps(facts)
    assert "4 tasks" in mdsens("show", copied)[1]
    assert len(export.to_atoms(copied)) == 2 and len(export.to_dataframe(copied)) == 4
    assert "2 failed" in html_report(copied)
    # What is new has nothing to be compared with.
    assert mdsens("rerun", copied)[0] == 0
    with h5py.File(copied, "a") as file:
        file["study/tasks/00000"].attrs["creator"] = json.dumps({"format": 99})
    assert "upgrade mdsens" in mdsens("show", copied)[1]


def test_a_stored_result_relaxes_and_differentiates_to_itself(tmp_path):
    potential = ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=3.0, onset=2.5)
    eq = ms.relax(ms.System([[0.0, 0, 0], [1.2, 0.1, 0]]), potential, fmax=1e-12)
    ms.save(tmp_path / "a.h5", eq, ms.sensitivity(eq))
    status, said = mdsens("rerun", tmp_path / "a.h5")
    assert status == 0 and "relaxed and differentiated again" in said, said
    assert float(said.split("differences is ")[1].split(" ")[0]) < 1e-8
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["sensitivity/positions/sigma"][...] *= 1.001
        del file["h5md/creator"].attrs["checksum"]  # by which it would be refused at once
        told = json.loads(file["provenance"].attrs["versions"])
        file["provenance"].attrs["versions"] = json.dumps({**told, "scipy": "0.1"})
    status, said = mdsens("rerun", tmp_path / "a.h5")
    assert status == 1 and "dX/dsigma: differs by 1.0e-03" in said and "scipy was 0.1" in said, said
    assert "leave -o out" in mdsens("rerun", tmp_path / "a.h5", "-o", tmp_path / "b")[1]
