"""Files of mdsens 0.1, in which a task was called a unit: they open, hold the numbers of the dimer, and are gone on with.

`golden/KIND` are folders of `mdsens run`, `golden/sweep.h5` is a file of `mdsens collect`, of the studies in `study_files`.
"""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from study_files import mdsens

from mdsens.studies.input.tasks import read_study
from mdsens.studies.running import execution
from mdsens.studies.storage.collected_file import collect, read_collected, read_folder
from mdsens.studies.storage.task_files import read_task, task_failures

GOLDEN = Path(__file__).parent / "golden"
LENGTH = 2 ** (1 / 6)

EXPECTED = {
    "sensitivity": {"values/energy": -1.0, "derivatives/energy": [-1.0, 0.0], "values/distances": [LENGTH]},
    "uncertainty": {"std/energy": 0.1, "std/distances": [0.01 * LENGTH]},
    "calibration": {"parameters": [1.2 / LENGTH], "found": [1.2]},
    "inverse": {"found": [-2.0, 1.2]},
    "continuation": {"t": [0.0, 0.5, 1.0], "values/distances": [[LENGTH], [1.05 * LENGTH], [1.1 * LENGTH]]},
}


def numbers(outcome):
    return {path: value.tobytes() for path, value in outcome.record.arrays.items()}


@pytest.mark.parametrize("kind", ["sweep", *EXPECTED])
def test_a_folder_opens_with_its_numbers_and_nothing_is_done_again(kind, tmp_path):
    shutil.copytree(GOLDEN / kind, tmp_path / "old")
    study = read_study(tmp_path / "old" / "study.toml")
    collected, missing = read_folder(tmp_path / "old")
    assert collected.kind == kind and not missing
    assert [(o.name, o.label) for o in collected.outcomes] == [(task.name, task.label) for task in study.tasks]
    for outcome in collected.outcomes:
        point = outcome.input["parameters"]
        expected = EXPECTED.get(kind) or {"values/energy": -point["epsilon"], "values/distances": [LENGTH * point["sigma"]]}
        for path, value in expected.items():
            np.testing.assert_allclose(outcome.record.arrays[path], value, rtol=1e-8, atol=1e-12)
    assert execution.run(study, tmp_path / "old", progress=False).done == 0
    collect(tmp_path / "old", tmp_path / "new.h5")
    again = read_collected(tmp_path / "new.h5").outcomes
    assert [*map(numbers, again)] == [*map(numbers, collected.outcomes)]
    status, said = mdsens("show", tmp_path / "new.h5")
    assert status == 0 and f"{len(study.tasks)} task" in said


def test_what_is_added_to_a_folder_is_written_by_the_new_names(tmp_path):
    shutil.copytree(GOLDEN / "sweep", tmp_path / "old")
    toml = tmp_path / "old" / "study.toml"
    toml.write_text(toml.read_text().replace("sigma = [1.0, 1.1]", "sigma = [1.0, 1.1, 1.2]"))
    study = read_study(toml)
    assert execution.run(study, tmp_path / "old", progress=False).done == 1
    (new,) = (tmp_path / "old" / "tasks").glob("*.h5")
    with h5py.File(new) as file:
        assert file.attrs["task"] == new.stem == study.tasks[2].name and "unit" not in file.attrs
    assert '"tasks": [[' in (tmp_path / "old" / "study.json").read_text()
    assert len(read_folder(tmp_path / "old")[0].outcomes) == 3
    # Where both are there, the newer one counts.
    shutil.copy(new, tmp_path / "old" / "units" / new.name)
    new.write_bytes(b"")
    assert task_failures(tmp_path / "old").keys() == {task.name for task in study.tasks[:2]}


def test_a_collected_file_opens_with_its_numbers():
    study = read_collected(GOLDEN / "sweep.h5")
    assert study.kind == "sweep" and study.toml == (GOLDEN / "sweep" / "study.toml").read_text()
    tasks = {path.stem: read_task(path) for path in (GOLDEN / "sweep" / "units").glob("*.h5")}
    assert {outcome.name: numbers(outcome) for outcome in study.outcomes} == {name: numbers(o) for name, o in tasks.items()}
    status, said = mdsens("show", GOLDEN / "sweep.h5")
    assert status == 0 and "2 tasks, 0 of them failed" in said and f"{1.1 * LENGTH:.8g}" in said
