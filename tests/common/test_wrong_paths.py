"""Whoever gives a command a wrong path is told about that path first, whatever else is missing."""

import pytest
from study_files import mdsens


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "result.h5").write_text("hello")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", ["show", "plot", "export", "rerun", "verify"])
def test_commands_that_read_a_file_name_it(command, folder):
    assert "There is no file 'no.h5'." in mdsens(command, "no.h5")[1]
    assert "There is no file 'resul.h5'. Did you mean 'result.h5'?" in mdsens(command, "resul.h5")[1]
    assert "'empty' is a folder: give a file" in mdsens(command, "empty")[1]
    assert "'study' is the folder of a study: 'mdsens collect study'" in mdsens(command, "study")[1]


@pytest.mark.parametrize("command", ["collect", "report"])
def test_commands_that_read_a_folder_name_it(command, folder):
    assert "There is no file or folder 'no'." in mdsens(command, "no")[1]
    assert "There is no file or folder 'studdy'. Did you mean 'study'?" in mdsens(command, "studdy")[1]
    assert "'empty' is no folder of a study" in mdsens(command, "empty")[1]
    assert "There is no file" in mdsens(command, "a" * 5000)[1]
    assert sorted(path.name for path in folder.iterdir()) == ["empty", "result.h5", "study"]


def test_a_study_that_is_a_folder_is_named(folder):
    assert "'empty' is a folder: give the TOML file" in mdsens("run", "empty")[1]


@pytest.mark.parametrize("command", ["show", "plot", "export", "rerun", "verify", "report", "collect"])
def test_a_study_in_the_place_of_its_result_is_named(command, folder):
    (folder / "sweep.toml").write_text("")
    assert (
        "'sweep.toml' is the description of a study, and no result: 'mdsens run sweep.toml' does it"
        in mdsens(command, "sweep.toml")[1]
    )


def test_a_kind_of_study_that_is_not_said(folder):
    assert "There are: sweep, sensitivity," in mdsens("new", "-o", "x.toml")[1]
    assert not (folder / "x.toml").exists()
