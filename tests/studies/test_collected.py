"""The collected file as others read it: MDAnalysis, xarray and h5dump. The work is that of `test_run`'s dimers."""

import shutil
import subprocess

import h5py
import MDAnalysis
import MDAnalysis.coordinates.H5MD
import numpy as np
import pytest
import xarray
from study_files import DIMER, dimers

import mdsens as ms
from mdsens.files import hdf5_labels as labelling
from mdsens.studies.input import tasks
from mdsens.studies.results.record import Outcome, Record
from mdsens.studies.running import execution
from mdsens.studies.storage import collected_file, task_files, trajectories

SIGMAS = [1.0, 1.1]


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collected")
    execution.run(tasks.read_study(dimers(folder, "[1.0, 1.1, 1e60]")), folder / "out", progress=False)
    assert collected_file.collect(folder / "out", folder / "all.h5md") == (6, 2)
    return folder / "all.h5md"


def outcome(label, **structures):
    """A task that found structures without relaxing them."""
    arrays, states = {}, {}
    for name, system in structures.items():
        arrays[f"structures/{name}/positions"] = np.asarray(system.positions)
        arrays[f"structures/{name}/species"] = np.asarray(system.species)
        if system.cell is not None:
            arrays[f"structures/{name}/cell"] = np.asarray(system.cell)
        states[name] = {"labels": list(system.labels), "pbc": list(system.pbc)}
    return Outcome(label, label, {}, Record(arrays, {"states": states}), "", {})


def particles(folder, *outcomes):
    path = folder / "particles.h5md"
    with h5py.File(path, "w") as file:
        trajectories.write_particles(file, outcomes)
    return path


@pytest.mark.filterwarnings("ignore:there is no reference attributes")  # masses and types are not guessed
def test_mdanalysis_reads_the_relaxed_structures(collected):
    universe = MDAnalysis.Universe(str(collected))
    assert len(universe.trajectory) == 4  # two of six tasks failed
    for frame, (sigma, _) in zip(universe.trajectory, [(s, e) for s in SIGMAS for e in (0.5, 1.0)], strict=True):
        length = np.linalg.norm(np.diff(universe.atoms.positions, axis=0))
        np.testing.assert_allclose(length, 2 ** (1 / 6) * sigma, rtol=1e-6)  # it keeps 32 bits
        assert frame.dimensions is None
    with h5py.File(collected) as file:
        assert list(file["particles/trajectory/task"]) == [0, 1, 2, 3]
        assert list(file["particles/trajectory/species"].attrs["labels"]) == ["N"]


def test_mdanalysis_reads_the_cell_of_each_frame(tmp_path):
    sheared = np.array([[4.0, 0.0, 0.0], [1.0, 5.0, 0.0], [0.5, 0.5, 6.0]])
    systems = [ms.System([[0.1, 0.2, 0.3]], cell=scale * sheared, pbc=True) for scale in (1.0, 1.1)]
    reader = MDAnalysis.coordinates.H5MD.H5MDReader(
        str(particles(tmp_path, *(outcome(str(k), a=s) for k, s in enumerate(systems))))
    )
    for frame, system in zip(reader, systems, strict=True):
        cell = np.asarray(system.cell)
        np.testing.assert_allclose(frame.positions, [[0.1, 0.2, 0.3]], rtol=1e-6)
        np.testing.assert_allclose(frame.dimensions[:3], np.linalg.norm(cell, axis=1), rtol=1e-6)
        np.testing.assert_allclose(frame.volume, np.linalg.det(cell), rtol=1e-6)


def test_mdanalysis_reads_what_is_flat_as_a_layer(tmp_path):
    flat = ms.System([[0.1, 0.2], [1.0, 1.5]], cell=np.diag([2.0, 3.0]), pbc=True)
    reader = MDAnalysis.coordinates.H5MD.H5MDReader(str(particles(tmp_path, outcome("flat", a=flat))))
    np.testing.assert_allclose(reader.ts.positions, [[0.1, 0.2, 0.0], [1.0, 1.5, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(reader.ts.dimensions, [2.0, 3.0, 1.0, 90.0, 90.0, 90.0])


def test_structures_of_several_sizes_are_several_groups(tmp_path):
    small, large = (ms.System(np.eye(3)[:n] * 2.0, species=["Si"] * n) for n in (1, 2))
    other = ms.System(np.eye(3)[:2] * 3.0, species=["Si", "C"])
    path = particles(tmp_path, outcome("0", b=small, a=large), outcome("1", b=small, a=large), outcome("2", a=other))
    with h5py.File(path) as file:
        found = file["particles"]
        assert sorted(found) == ["a", "a_2", "b"]
        assert found["b/position/value"].shape == (2, 1, 3) and found["a/position/value"].shape == (2, 2, 3)
        assert list(found["a_2/task"]) == [2] and list(found["a_2/species"].attrs["labels"]) == ["C", "Si"]
        # H5MD: elements sampled together share their steps.
        assert found["a/position/step"] == found["a/step"]


def groups_of(path):
    with h5py.File(path) as file:
        names = ["/"]
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Group) else None)
    return names


def test_xarray_opens_each_group_with_named_axes_and_units(collected):
    pytest.importorskip("h5netcdf")
    for group in groups_of(collected):
        with xarray.open_dataset(collected, group=group, engine="h5netcdf") as found:
            assert not any(axis.startswith("phony") for axis in found.dims), group
    with xarray.open_datatree(collected, engine="h5netcdf") as tree:
        values, sigma = tree["table/values"], tree["table/parameters"]["sigma"]
        assert values["distances"].dims == ("task", "distances_0") and sigma.dims == ("task",)
        assert values["distances"].attrs["units"] == sigma.attrs["units"] == "Angstrom"
        done = sigma < 2.0
        np.testing.assert_allclose(values["distances"][done, 0], 2 ** (1 / 6) * sigma[done], rtol=1e-10)
        assert np.isnan(values["energy"][~done]).all()
        position = tree["particles/trajectory/position"]["value"]
        assert position.dims == ("step", "atom", "space") and list(position.space) == ["x", "y", "z"]
        assert position.attrs["units"] == position.attrs["unit"] == "Angstrom"


@pytest.mark.skipif(shutil.which("h5dump") is None, reason="needs h5dump")
def test_h5dump_reads_it(collected):
    done = subprocess.run(["h5dump", str(collected)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr
    assert "dimer sigma=1.1 epsilon=0.5" in done.stdout and 'DATASET "position"' not in done.stdout


def test_what_was_collected_reads_back(collected):
    back = collected_file.read_collected(collected)
    folder = collected.parent / "out"
    for one in back.outcomes:
        task = task_files.read_task(task_files.task_path(folder, one.name))
        assert task.record.arrays.keys() == one.record.arrays.keys() and task.record.facts == one.record.facts
        assert all(one.record.arrays[path].tobytes() == value.tobytes() for path, value in task.record.arrays.items())


def test_the_files_that_a_study_read_are_kept_with_it(tmp_path):
    from ase import Atoms

    Atoms("N2", positions=[[0, 0, 0], [0, 0, 1.1]]).write(tmp_path / "dimer.xyz")
    text = (
        DIMER.format(sigma="[1.0]").replace('builder = "molecule"', 'file = "*.xyz"').replace('arguments = { name = "N2" }', "")
    )
    (tmp_path / "study.toml").write_text(text)
    execution.run(tasks.read_study(tmp_path / "study.toml"), tmp_path / "out", progress=False)
    collected_file.collect(tmp_path / "out", tmp_path / "all.h5")
    with h5py.File(tmp_path / "all.h5") as file:
        ((digest, content),) = file["study/inputs"].items()
        assert list(file["particles/trajectory/task"]) == [0, 1]
        assert content.attrs["name"] == "dimer.xyz" and content[()].tobytes() == (tmp_path / "dimer.xyz").read_bytes()
    pytest.importorskip("h5netcdf")
    with xarray.open_datatree(tmp_path / "all.h5", engine="h5netcdf") as tree:
        assert tree["study/inputs"][digest].attrs["name"] == "dimer.xyz"
    (tmp_path / "dimer.xyz").unlink()  # what is gone is not kept, and stops nothing
    collected_file.collect(tmp_path / "out", tmp_path / "without.h5")
    with h5py.File(tmp_path / "without.h5") as file:
        assert not len(file["study/inputs"]) and digest and len(file["particles/trajectory/position/value"]) == 2


def test_a_stored_result_is_labelled_too(tmp_path):
    pytest.importorskip("h5netcdf")
    potential = ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=3.0, onset=2.5)
    eq = ms.relax(ms.System([[0.0, 0, 0], [1.2, 0.1, 0]]), potential, fmax=1e-12)
    ms.save(tmp_path / "a.h5md", eq, ms.sensitivity(eq))
    for group in groups_of(tmp_path / "a.h5md"):
        with xarray.open_dataset(tmp_path / "a.h5md", group=group, engine="h5netcdf") as found:
            assert not any(axis.startswith("phony") for axis in found.dims), group
    with xarray.open_datatree(tmp_path / "a.h5md", engine="h5netcdf") as tree:
        assert tree["particles/atoms/position"]["value"].dims == ("step", "atom", "space")
        slope = tree["sensitivity/positions"]["sigma"]
        assert slope.dims == ("atom", "space") and slope.attrs["units"] == "Angstrom (Angstrom)-1"
        assert float(abs(slope.sel(space="x")).max()) == pytest.approx(2 ** (1 / 6) / 2 * 1.2 / np.hypot(1.2, 0.1), rel=1e-6)
    reader = MDAnalysis.coordinates.H5MD.H5MDReader(str(tmp_path / "a.h5md"))
    np.testing.assert_allclose(reader.ts.positions, eq.system.positions, atol=1e-6)
    assert float(reader.ts.data["potential_energy"]) == pytest.approx(-1.0)


def test_axes_without_a_name_are_numbered(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["parameters/potential/table"] = np.zeros((3, 2))
        file["parameters/potential/epsilon"] = 1.0
        labelling.name_others(file)
        assert [axis[0].name for axis in file["parameters/potential/table"].dims] == [
            "/parameters/potential_table_0",
            "/parameters/potential_table_1",
        ]
        assert list(file["parameters/potential"]) == ["epsilon", "table"]  # those that are read as parameters
