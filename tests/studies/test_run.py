"""Studies as files: what is refused before any work, what survives being killed, and that nothing is done twice.

The work is a dimer of Lennard-Jones atoms, whose length is 2^(1/6) σ and whose energy is -ε.
"""

import json
import os
import signal
import subprocess
import sys
import time

import h5py
import matplotlib.axes
import matplotlib.pyplot
import numpy as np
import pytest
from study_files import DIMER, OTHERS, dimers, mdsens, numbers, same

import mdsens as ms
from mdsens.studies.input import recipes, tasks
from mdsens.studies.input.toml_schema import KINDS
from mdsens.studies.pictures import study_pictures
from mdsens.studies.results.text_tables import describe_study
from mdsens.studies.running import execution
from mdsens.studies.storage import collected_file, task_files
from mdsens.studies.templates import template


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("swept")
    study = tasks.read_study(dimers(folder))
    return study, folder / "out", execution.run(study, folder / "out", progress=False)


def test_a_study_is_done_once(swept):
    study, folder, first = swept
    assert first.total == first.done == len(study.tasks) == 6 and not first.failed
    again = execution.run(study, folder, progress=False)
    assert again.done == 0 and again.total == 6
    for task in study.tasks:
        found = task_files.read_task(task_files.task_path(folder, task.name))
        sigma, epsilon = found.input["parameters"]["sigma"], found.input["parameters"]["epsilon"]
        np.testing.assert_allclose(found.record.arrays["values/distances"], [2 ** (1 / 6) * sigma], rtol=1e-10)
        np.testing.assert_allclose(found.record.arrays["values/energy"], -epsilon, rtol=1e-12)


def test_more_points_are_added_to_what_is_there(swept, tmp_path):
    _, folder, _ = swept
    wider = tasks.read_study(dimers(tmp_path, "[0.9, 1.0, 1.1, 1.2]"))
    assert execution.run(wider, folder, progress=False).done == 2


def test_shards_together_are_the_whole(swept, tmp_path):
    study, folder, _ = swept
    parts = [execution.run(study, tmp_path / "out", shard=(i, 4), progress=False) for i in range(1, 5)]
    assert [part.total for part in parts] == [2, 2, 1, 1]
    whole = {key: value for key, value in numbers(folder).items() if key[0] in {task.name for task in study.tasks}}
    assert same(numbers(tmp_path / "out"), whole)


def test_a_collected_study_is_a_table(swept, tmp_path):
    study, _, _ = swept
    folder = tmp_path / "out"
    execution.run(study, folder, shard=(1, 2), progress=False)
    with pytest.raises(ms.StoreError, match=r"3 of 6 tasks are not there yet.*mdsens run"):
        collected_file.collect(folder, tmp_path / "all.h5")
    execution.run(study, folder, progress=False)
    assert collected_file.collect(folder, tmp_path / "all.h5") == (6, 0)
    with h5py.File(tmp_path / "all.h5") as file:
        assert file["h5md/creator"].attrs["name"] == "mdsens"
        sigma, lengths = file["table/parameters/sigma"][()], file["table/values/distances"][()]
        np.testing.assert_allclose(lengths[:, 0], 2 ** (1 / 6) * sigma, rtol=1e-10)
        assert file["study"].attrs["toml"] == study.text
    lines = "\n".join(describe_study(collected_file.read_collected(tmp_path / "all.h5")))
    assert "6 tasks, 0 of them failed" in lines and "dimer sigma=1.1 epsilon=0.5" in lines and "1.3471" not in study.text
    assert f"{2 ** (1 / 6) * 1.2:.8g}" in lines
    with pytest.raises(ms.StoreError, match="exists already"):
        collected_file.collect(folder, tmp_path / "all.h5")
    with pytest.raises(ms.StoreError, match="no folder of a study"):
        collected_file.collect(tmp_path, tmp_path / "more.h5")


def test_a_task_that_fails_is_recorded_and_the_rest_goes_on(tmp_path):
    study = tasks.read_study(dimers(tmp_path, "[1.0, 1e60, 1.1]"))
    found = execution.run(study, tmp_path / "out", progress=False)
    assert found.done == 6 and {label for label, _ in found.failed} == {
        "dimer sigma=1e+60 epsilon=0.5",
        "dimer sigma=1e+60 epsilon=1",
    }
    assert all(reason for _, reason in found.failed)
    # They stay failed, and are told again; nothing is done until it is asked for.
    again = execution.run(study, tmp_path / "out", progress=False)
    assert again.done == 0 and again.failed == found.failed
    assert execution.run(study, tmp_path / "out", progress=False, retry=True).done == 2
    assert collected_file.collect(tmp_path / "out", tmp_path / "all.h5") == (6, 2)
    with h5py.File(tmp_path / "all.h5") as file:
        assert np.isnan(file["table/values/energy"][2:4]).all() and np.isfinite(file["table/values/energy"][:2]).all()
    assert "Failed (2):" in "\n".join(describe_study(collected_file.read_collected(tmp_path / "all.h5")))


def test_what_is_unexpected_stops_no_study_either(tmp_path, monkeypatch):
    def fail(_):
        raise ZeroDivisionError("somewhere inside")

    monkeypatch.setattr(execution, "do_task", fail)
    study = tasks.read_study(dimers(tmp_path, "[1.0]"))
    found = execution.run(study, tmp_path / "out", progress=False)
    assert [reason for _, reason in found.failed] == ["an unexpected ZeroDivisionError: somewhere inside"] * 2


def test_a_share_of_work_ends_in_time_and_says_what_is_written(swept, tmp_path, monkeypatch):
    study, folder, _ = swept
    execution.make_folder(tmp_path)
    monkeypatch.setattr(execution, "SHARE_SECONDS", 0.0)
    first, _ = execution.do_share(study.tasks, tmp_path, often=False)
    assert first == [(study.tasks[0].name, "")] == [*task_files.task_failures(tmp_path).items()]
    monkeypatch.setattr(execution, "SHARE_SECONDS", 60.0)
    done, seconds = execution.do_share(study.tasks, tmp_path, often=False)
    assert [name for name, _ in done] == [task.name for task in study.tasks] and seconds > 0.0
    # Others of this file add tasks to the folder.
    expected = {key: value for key, value in numbers(folder).items() if key[0] in {task.name for task in study.tasks}}
    assert same(numbers(tmp_path), expected) and not list(tmp_path.rglob("*.part"))


def test_a_second_process_is_refused(swept):
    study, folder, _ = swept
    with execution.lock_folder(folder), pytest.raises(ms.StoreError, match=r"Another process.*choose another folder"):
        execution.run(study, folder, progress=False)
    with execution.lock_folder(folder, (1, 2)):
        execution.run(study, folder, shard=(2, 2), progress=False)
        with pytest.raises(ms.StoreError, match="Another process"):
            execution.run(study, folder, progress=False)
    execution.run(study, folder, progress=False)


def test_a_task_s_name_is_that_of_its_input(swept, tmp_path):
    study, _, _ = swept
    elsewhere = tasks.read_study(dimers(tmp_path, name="other.toml"))
    assert [task.name for task in elsewhere.tasks] == [task.name for task in study.tasks]
    text = dimers(tmp_path).read_text().replace("1e-10", "1e-11")
    (tmp_path / "tighter.toml").write_text(text)
    tighter = tasks.read_study(tmp_path / "tighter.toml")
    assert not {task.name for task in tighter.tasks} & {task.name for task in study.tasks}
    assert json.loads(json.dumps(study.tasks[0].input)) == study.tasks[0].input


def test_structures_of_files_are_known_by_their_content(tmp_path):
    from ase import Atoms

    for k, length in enumerate((1.1, 1.2)):
        Atoms("N2", positions=[[0, 0, 0], [0, 0, length]]).write(tmp_path / f"dimer{k}.xyz")
    text = (
        DIMER.format(sigma="[1.0]").replace('builder = "molecule"', 'file = "*.xyz"').replace('arguments = { name = "N2" }', "")
    )
    (tmp_path / "study.toml").write_text(text)
    study = tasks.read_study(tmp_path / "study.toml")
    assert [task.label.split()[0] for task in study.tasks] == ["dimer.dimer0"] * 2 + ["dimer.dimer1"] * 2
    (tmp_path / "dimer1.xyz").write_text((tmp_path / "dimer0.xyz").read_text())
    after = tasks.read_study(tmp_path / "study.toml")
    assert after.tasks[0].name == study.tasks[0].name and after.tasks[2].name != study.tasks[2].name
    recipes._structure.cache_clear()
    found = execution.run(study, tmp_path / "out", shard=(3, 4), progress=False)
    assert "has changed" in found.failed[0][1]


def wrong(tmp_path, text) -> list[str]:
    (tmp_path / "wrong.toml").write_text(text)
    with pytest.raises(ms.InputError) as error:
        tasks.read_study(tmp_path / "wrong.toml")
    first, *problems = str(error.value).splitlines()
    assert f"{len(problems)} problem" in first
    return [problem.strip() for problem in problems]


def test_all_mistakes_are_told_at_once(tmp_path):
    problems = wrong(
        tmp_path,
        """
        [study]
        kind = "sweep"
        mode = "gird"
        [study.parameters]
        sigma = "a"
        [structures.a]
        bilder = "bulk"
        repeat = [1, 2, 3, 4]
        [structures.b]
        file = "missing.cif"
        [structures.c]
        builder = "blk"
        [structures.d]
        builder = "bulk"
        arguments = { nam = "Si" }
        [structures."../e"]
        builder = "bulk"
        [potential]
        name = "StillingerWebr"
        [relx]
        [observables.presure]
        """,
    )
    for key, remedy in (
        ("study.mode", "'grid' or 'list'"),
        ("study.parameters.sigma", "valid list"),
        ("structures.a.bilder", "Did you mean 'builder'?"),
        ("structures.a.repeat", "[1, 2, 3, 4]"),
        ("structures.'../e'", "is no name"),
        ("potential: name", "Did you mean 'StillingerWeber'?"),
        ("[relx]", "Did you mean 'relax'?"),
    ):
        assert sum(problem.startswith(key) and remedy in problem for problem in problems) == 1, (key, problems)
    assert all(problem[-1] in ".?" for problem in problems)


def test_names_are_looked_up_before_any_work(tmp_path):
    good = DIMER.format(sigma="[1.0]")
    for old, new, key, remedy in (
        ('builder = "molecule"', 'file = "missing.cif"', "structures.dimer: give exactly one|structures.dimer: ", ""),
        ('name = "N2"', 'nme = "N2"', "structures.dimer: molecule has no argument 'nme'", "Did you mean 'name'?"),
        ("sigma = [1.0]", "sgma = [1.0]", "study.parameters: LennardJones has no parameter 'sgma'", "Did you mean 'sigma'?"),
        ("sigma = [1.0]", "sigma = [-2.05, 1.0]", "study.parameters: LennardJones's sigma must be positive", "-2.05"),
        ("sigma = [1.0]", "sigma = [1.0, inf]", "study.parameters: LennardJones.sigma is not finite", "inf"),
        ("epsilon = 1.0, ", "epsilon = { Si-Si = 1.0 }, ", "structures.dimer: LennardJones.epsilon has no entry 'N-N'", "add"),
        ("[[0, 1]]", "[[0, 2]]", "observables.distances: ", "2"),
        ("[observables.energy]", "[observables.a]\nname = 'stress'\ncomponents = [9]", "observables.a: ", ""),
        ("[observables.energy]", "[observables.energy]\ncomponents = [0]", "observables.energy: ", "shape ()"),
        ("pairs =", "pars =", "observables.distances: distances has no argument 'pars'", "Did you mean 'pairs'?"),
        ("[observables.energy]", "[observables.enrgy]", "observables.enrgy: there is no observable 'enrgy'", "'energy'"),
        ("[[0, 1]]", "[[0, 0]]", "observables.distances", ""),
        ("onset = 5.0", "onset = 7.0", "potential: ", "onset"),
        ("cutoff = 6.0, ", "", "potential: LennardJones", "'cutoff'"),
        ('kind = "sweep"', 'kind = ["sweep"]', "study.kind cannot be ['sweep']", "Did you mean 'sweep'?"),
        ('kind = "sweep"', 'kind = "swep"', "study.kind cannot be 'swep'", "Did you mean 'sweep'?"),
        ("fmax = 1e-10", "fmax = -1.0", "relax.fmax is -1.0", "greater than 0"),
        ("[relax]", "[targets.energy]\nvalue = 1.0\n[relax]", "[targets] is for calibration", "leave it out"),
        (
            'kind = "sweep"\n[study.parameters]\nsigma = [1.0]\nepsilon = [0.5, 1.0]',
            'kind = "inverse"\nlearning_rate = 0.1\n[targets.energy]\nvalue = 1.0',
            "study.learning_rate is for gradient descent",
            "method",
        ),
    ):
        assert good.count(old) == 1 or old == "[relax]"
        problems = wrong(tmp_path, good.replace(old, new))
        starts = tuple(key.split("|"))
        assert any(problem.startswith(starts) and remedy in problem for problem in problems), (new, problems)


def test_observables_that_compare_structures_want_them_together(tmp_path):
    text = DIMER.format(sigma="[1.0]").replace(
        "[potential]", '[structures.other]\nbuilder = "molecule"\narguments = { name = "N2" }\n[potential]'
    )
    text = text.replace("[observables.energy]", "[observables.barrier]\nstates = { saddle = 'dimer', minimum = 'other' }")
    (problem,) = (one for one in wrong(tmp_path, text) if "barrier" in one)
    assert "the structures dimer, other are relaxed one by one: write joint = true in [study] to relax all" in problem


def test_a_published_metal_by_its_constructor(tmp_path):
    text = DIMER.format(sigma="[1.0]")
    start = text.index("[potential]")
    rest = text[start + 1 :]
    metal = '[potential]\nname = "Gupta"\nconstructor = "published"\n'
    for arguments, told in (("", "wants the argument 'element'"), ('arguments = { elemnt = "Cu" }\n', "no argument 'elemnt'")):
        problems = wrong(tmp_path, text[:start] + metal + arguments + rest[rest.index("\n[") :])
        assert any("Gupta.published" in problem and told in problem for problem in problems), problems
    recipe = {"name": "Gupta", "constructor": "published", "arguments": {"element": "Cu"}}
    assert recipes.potential_of(recipe) == ms.Gupta.published("Cu")


@pytest.mark.parametrize("kind", KINDS)
def test_each_template_is_in_order(kind, tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(template(kind))
    study = tasks.read_study(path)
    assert study.kind == kind and len(study.tasks) == (15 if kind == "sweep" else 1)
    (recipe,) = study.tasks[0].input["structures"].values()
    system = recipes.structure_of(recipe)
    assert len(system) == 8 and np.allclose(system.cell, 5.43 * np.eye(3))  # whose edges are the lattice constant


@pytest.mark.slow
def test_the_template_of_a_sensitivity_gives_the_known_c44_of_silicon(tmp_path):
    """56.4 GPa with relaxed ions: H. Balamane, T. Halicioglu, W. A. Tiller, Phys. Rev. B 46, 2250 (1992)."""
    (tmp_path / "study.toml").write_text(template("sensitivity"))
    execution.run(tasks.read_study(tmp_path / "study.toml"), tmp_path / "out", progress=False)
    (outcome,) = collected_file.read_folder(tmp_path / "out")[0].outcomes
    assert outcome.record.arrays["values/C44"] == pytest.approx(56.45, abs=0.01)


def test_a_file_of_another_kind_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "no.toml").write_text("a = = 1")
    with pytest.raises(ms.InputError, match="is no TOML"):
        tasks.read_study(tmp_path / "no.toml")
    with pytest.raises(ms.InputError, match="There is no study"):
        tasks.read_study(tmp_path / "missing.toml")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "x.h5").write_bytes(b"no HDF5")
    with pytest.raises(ms.StoreError, match="no task of a study"):
        task_files.read_task(tmp_path / "tasks" / "x.h5")
    assert not collected_file.is_collected(tmp_path / "tasks" / "x.h5")


@pytest.mark.parametrize("kind", OTHERS)
def test_each_kind_is_done_told_and_drawn(kind, tmp_path):
    (settings, word), kind = OTHERS[kind], kind.split()[0]
    text = DIMER.format(sigma="[1.0]").replace('kind = "sweep"\n', f'kind = "{kind}"\n{settings}\n')
    text = text.replace("[study.parameters]\nsigma = [1.0]\nepsilon = [0.5, 1.0]\n", "")
    (tmp_path / "study.toml").write_text(text)
    study = tasks.read_study(tmp_path / "study.toml")
    done = execution.run(study, tmp_path / "out", progress=False)
    assert done.done == 1 and not done.failed, done.failed
    collected_file.collect(tmp_path / "out", tmp_path / "all.h5")
    collected = collected_file.read_collected(tmp_path / "all.h5")
    lines = "\n".join(describe_study(collected))
    assert word in lines and kind in lines, lines
    # What is wanted of a design has no error.
    assert ("  std  " in lines) == (kind in ("uncertainty", "calibration")) and ("relative error" in lines) == (kind == "inverse")
    drawn = study_pictures(collected)
    assert drawn and all(isinstance(ax, matplotlib.axes.Axes) for ax in drawn.values())
    matplotlib.pyplot.close("all")


MANY = "{ start = 0.9, stop = 1.3, points = 60 }"


def killed(folder, instant, *options):
    """A run that is killed when so many tasks are there."""
    program = [sys.executable, "-m", "mdsens.cli.app", "run", "dimers.toml", "-o", "killed", *options]
    with (folder / "said.txt").open("w") as said:
        process = subprocess.Popen(program, cwd=folder, stdout=said, stderr=said, start_new_session=True)
        while process.poll() is None and len(list(folder.glob("killed/tasks/*.h5"))) < instant:
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=60)
    return sorted(folder.glob("killed/tasks/*.h5"))


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_killed_study_keeps_what_is_finished_and_resumes_bit_for_bit(tmp_path):
    study = tasks.read_study(dimers(tmp_path, MANY))
    before = {}
    for instant in (1, 40):
        for path in killed(tmp_path, instant):
            task_files.read_task(path)
            stamp = path.stat().st_mtime_ns
            assert before.setdefault(path, stamp) == stamp
    assert 0 < len(before) < len(study.tasks)
    assert execution.run(study, tmp_path / "killed", progress=False).done == len(study.tasks) - len(before)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    execution.run(study, tmp_path / "whole", progress=False)
    assert same(numbers(tmp_path / "killed"), numbers(tmp_path / "whole"))
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_workers_do_the_same_and_end_with_the_one_that_was_killed(tmp_path):
    study = tasks.read_study(dimers(tmp_path, MANY))
    for path in killed(tmp_path, 3, "--workers", "2"):
        task_files.read_task(path)
    time.sleep(2.0)
    there = len(list(tmp_path.glob("killed/tasks/*.h5")))
    time.sleep(1.0)
    assert len(list(tmp_path.glob("killed/tasks/*.h5"))) == there < len(study.tasks)
    execution.run(study, tmp_path / "killed", workers=2, progress=False)
    execution.run(study, tmp_path / "whole", progress=False)
    assert same(numbers(tmp_path / "killed"), numbers(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("begun", [False, True])
def test_an_interrupt_of_workers_ends_in_a_sentence(tmp_path, begun):
    """As a terminal's Ctrl-C, it reaches the workers too: while they start, or at work."""
    dimers(tmp_path, MANY)
    program = [sys.executable, "-m", "mdsens.cli.app", "run", "dimers.toml", "-o", "out", "--workers", "2"]
    with (tmp_path / "said.txt").open("w") as said:
        process = subprocess.Popen(program, cwd=tmp_path, stdout=said, stderr=said, start_new_session=True)
        awaited = "out/tasks/*.h5" if begun else "out/study.json"
        while process.poll() is None and not list(tmp_path.glob(awaited)):
            time.sleep(0.002)
        time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=120) == 130
    assert (tmp_path / "said.txt").read_text().strip() == "mdsens: interrupted; every file that was written is complete."


def test_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert mdsens("new", "swep")[1].endswith("Did you mean 'sweep'?")
    assert mdsens("new", "sweep", "-o", "sweep.toml") == (0, "sweep.toml: now 'mdsens run sweep.toml'.\n")
    assert mdsens("new", "sweep", "-o", "sweep.toml")[0] == 0  # it is what it would be
    assert "15 tasks" in mdsens("run", "sweep.toml", "--check")[1]
    assert "exists already" in mdsens("new", "inverse", "-o", "sweep.toml")[1]
    dimers(tmp_path, "[1.0, 1e60]")
    status, said = mdsens("run", "dimers.toml", "--shard", "1/2")
    assert status == 1 and "2 tasks, 2 of them done now, 1 failed" in said
    assert "I/N" in mdsens("run", "dimers.toml", "--shard", "3/2")[1]
    status, said = mdsens("run", "dimers.toml")
    assert status == 1 and "Failed (2)" in said and "--retry" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dimers", "dimers.toml", "sweep.toml"]
    (tmp_path / "other.toml").write_text(template("inverse"))
    assert "has results of a study of the kind sweep, not inverse" in mdsens("run", "other.toml", "-o", "dimers")[1]
    assert mdsens("collect", "dimers", "-o", "all.h5")[0] == 0
    assert "4 tasks, 2 of them failed" in mdsens("show", "all.h5")[1]
