"""What the documentation shows runs as written: snippets in their order, the notebooks and their paired text; and it builds."""

import html.parser
import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def snippets(path):
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


def told_lines(path):
    return [told for snippet in snippets(path) for told in re.findall(r"→ (.*)$", snippet, re.MULTILINE)]


LONG = {"tutorial", "tour", "coming_from", "jax", "cells_and_pressure", "constraints", "observables", "speed", "studies"}
"""Pages that compile for more than ten seconds."""

LONG_NOTEBOOKS = {"03", "05", "06", "07", "08", "09"}
"""Those that compile for half a minute and more; CI runs them with the long pages."""

PAGES = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in LONG else [])
    for path in sorted((ROOT / "docs").rglob("*.md"))
    if snippets(path)
]


def run_in_order(path, capsys):
    """Run a page's snippets and look for what they say is printed: `→ a whole line`, in this order, `# ... a part of one`."""
    names = {"__name__": path.stem}
    for snippet in snippets(path):
        exec(compile(snippet, str(path), "exec"), names)
    printed, written = capsys.readouterr().out, "\n".join(snippets(path))
    lines = iter(printed.splitlines())
    for told in told_lines(path):
        assert told in lines, told
    for told in re.findall(r"^\s*print\(.*# \.\.\. (.*?)(?: \.\.\.)?$", written, re.MULTILINE):
        assert told in printed, told


def test_readme_snippets_run_and_print_what_they_say(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert len([*told_lines(ROOT / "README.md"), *told_lines(ROOT / "docs" / "tour.md")]) >= 8
    run_in_order(ROOT / "README.md", capsys)
    assert (tmp_path / "vacancy.h5").exists()


def test_the_list_of_commands_is_of_those_that_exist():
    from mdsens.cli.app import app

    commands = {command.callback.__name__ for command in app.registered_commands}
    assert set(re.findall(r"^\| `mdsens (\w+)", (ROOT / "docs" / "features.md").read_text(), re.MULTILINE)) == commands


def test_the_page_of_errors_has_every_way_to_end_in_its_words():
    from mdsens.solvers import Status

    rows = re.findall(r"^\| `([A-Z_]+)` \| (.*) \|$", (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE)
    assert rows == [(status.name, status.value) for status in Status]


@pytest.mark.parametrize("path", PAGES)
def test_snippets_of_the_site_run_as_written(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_in_order(path, capsys)


class Fetches(html.parser.HTMLParser):
    """What a browser loads by itself."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        wanted = {"script": "src", "img": "src", "iframe": "src", "link": "href"}.get(tag)
        self.found += [value for name, value in attrs if name == wanted and value]


@pytest.mark.slow
def test_the_site_builds_and_fetches_nothing(tmp_path):
    for needed in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed: pip install .[docs]")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(build, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*.html")}
    for name, page in pages.items():
        fetches = Fetches()
        fetches.feed(page)
        assert not [address for address in fetches.found if re.match(r"(https?:)?//", address)], name
        assert "arithmatex" not in page, f"{name} has a formula that is not MathML"
    assert "<math" in pages["explanation/implicit.html"]
    assert "doi:10.1103/PhysRevB.48.22" in pages["potentials/Gupta.html"]
    assert "value_and_gradient" in pages["reference/derivatives.html"]


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem[:2] in LONG_NOTEBOOKS else []) for path in NOTEBOOKS],
)
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
