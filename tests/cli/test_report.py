"""Reports: one file that loads nothing, says what failed and why, and takes nothing in a file for HTML."""

import base64
import html.parser
import re

import h5py
import jax
import numpy as np
import pytest
from study_files import DIMER, dimers, mdsens, study

import mdsens as ms
from mdsens.cli.report import html_report
from mdsens.studies.input import tasks
from mdsens.studies.running import execution
from mdsens.studies.storage import collected_file


class Page(html.parser.HTMLParser):
    """Tags that are open, those that there are, pictures, and all text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.images, self.text = [], set(), [], ""
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        for name, value in attrs:
            assert name in ("class", "charset", "content", "http-equiv", "lang", "name", "alt", "src"), name
            if name == "src":
                kind, data = value.split(",")
                assert kind == "data:image/svg+xml;base64"
                self.images.append(base64.b64decode(data).decode())

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A sweep of which two tasks failed, and two were not done."""
    place = tmp_path_factory.mktemp("report")
    whole = tasks.read_study(dimers(place, "[1.0, 1.1, 1e60, 1.2]"))
    for shard in (1, 2, 3, 5, 6, 7):
        execution.run(whole, place / "out", shard=(shard, 8), progress=False)
    return place / "out"


def test_a_study_s_folder_is_told_as_far_as_it_is_done(folder):
    text = html_report(folder)
    page = Page(text)
    assert "8 tasks: 4 done, 2 failed, 2 still to be done" in page.text
    assert "dimer sigma=1e+60 epsilon=0.5" in page.text and "NaN or infinite" in page.text  # with its reason
    assert f"{2 ** (1 / 6) * 1.1:.8g}" in page.text and 'builder = "molecule"' in page.text
    assert len(page.images) == 2 and all(image.lstrip().startswith("<?xml") for image in page.images)
    assert "versions" in page.text and f"jax {jax.__version__}" in page.text
    assert not re.search(r"https?://|url\(|@import|<script|<link", text)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("sensitivity", ["Trusted.", "parameter", "distances [Å]", "energy [eV]"]),
        ("uncertainty", ["Trusted.", "one standard deviation out", "std of 10 samples"]),
        ("calibration", ["Converged", "What the targets determine", "singular value"]),
        ("continuation", ["were reached", "lowest curvature [eV/Å²]", "largest force [eV/Å]"]),
    ],
)
def test_each_kind_says_whether_it_can_be_trusted(kind, words, tmp_path):
    page = Page(html_report(study(tmp_path, kind)))
    assert all(word in page.text for word in words), page.text
    assert page.images and kind.capitalize() in page.text


def test_what_stands_in_a_file_is_no_html(tmp_path):
    text = DIMER.format(sigma="[1.0]").replace("[observables.energy]", "# <script>alert(1)</script>\n[observables.energy]")
    (tmp_path / "study.toml").write_text(text)
    execution.run(tasks.read_study(tmp_path / "study.toml"), tmp_path / "out", progress=False)
    collected_file.collect(tmp_path / "out", tmp_path / "all.h5")
    evil = '"><img src=x onerror=alert(1)><script>$x_{$</script>'
    with h5py.File(tmp_path / "all.h5", "a") as file:
        file["study/tasks/00000"].attrs["label"] = evil
        file["study/tasks/00001"].attrs["reason"] = evil
    page = Page(html_report(tmp_path / "all.h5"))  # which allows no such attributes
    assert "script" not in page.tags and evil in page.text and "# <script>alert(1)</script>" in page.text


def test_a_stored_result_is_told_with_its_certificate(tmp_path):
    potential = ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=3.0, onset=2.5)
    eq = ms.relax(ms.System([[0.0, 0, 0], [1.2, 0.1, 0]]), potential, fmax=1e-12)
    ms.save(tmp_path / "a.h5", eq, ms.sensitivity(eq))
    page = Page(html_report(tmp_path / "a.h5"))
    assert "trusted: θ dX/dθ in float64" in page.text and "LennardJones" in page.text and "numpy" in page.text
    assert len(page.images) == 3
    ms.save(tmp_path / "b.h5", eq)
    assert np.isfinite(eq.energy) and not Page(html_report(tmp_path / "b.h5")).images


def test_the_command_writes_it_whole_or_refuses(folder, tmp_path):
    for _ in range(2):  # an older report gives way
        assert mdsens("report", folder, "-o", tmp_path / "report.html") == (0, f"{tmp_path / 'report.html'}\n")
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    assert "exists already" in mdsens("report", folder, "-o", tmp_path / "mine.html")[1]
    (tmp_path / "mine.html").unlink()
    assert "no folder of a study" in mdsens("report", tmp_path, "-o", tmp_path / "b.html")[1]
    assert "There is no file" in mdsens("report", tmp_path / "no.h5", "-o", tmp_path / "b.html")[1]
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert mdsens("report", folder) == (0, f"{folder.with_name('out.html')}\n")  # beside it, unless said otherwise
