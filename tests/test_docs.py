"""What the documentation shows runs as written: README's snippets in order, the notebooks, and their paired text."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_readme_snippets_run_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(snippets) >= 4
    names = {"__name__": "readme"}
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), names)
    assert (tmp_path / "vacancy.h5").exists()
    assert names["S"].certificate.trusted


def test_readme_names_the_commands_that_exist():
    from mdsens.cli import app

    commands = {command.callback.__name__ for command in app.registered_commands}
    assert set(re.findall(r"^\| `mdsens (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE)) == commands


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_its_assertions_hold(path, tmp_path):
    import nbclient
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_and_its_text_are_the_same(path):
    import jupytext

    text = jupytext.read(path.with_suffix(".py"))
    notebook = jupytext.read(path)
    assert [(cell.cell_type, cell.source) for cell in text.cells] == [(cell.cell_type, cell.source) for cell in notebook.cells]
