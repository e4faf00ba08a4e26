"""Results in other programs: the same numbers come out of xarray, pandas, CSV, netCDF and extended XYZ that went in.

The work is that of `test_run`'s dimers: length 2^(1/6) σ, energy -ε.
"""

import builtins
import csv
import dataclasses
import json
import shutil

import ase.io
import h5py
import numpy as np
import pandas
import pytest
import xarray
from helpers import refused
from study_files import dimers, mdsens, study

import mdsens as ms
from mdsens import studies
from mdsens.studies import export
from mdsens.studies.input.tasks import read_study
from mdsens.studies.running import execution
from mdsens.studies.storage import collected_file

RATIO = 2.0 ** (1.0 / 6.0)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    execution.run(read_study(dimers(folder, "[1.0, 1.1, 1e60]")), folder / "out", progress=False)
    collected_file.collect(folder / "out", folder / "all.h5")
    return folder / "all.h5"


@pytest.fixture(scope="module")
def dimer():
    potential = ms.LennardJones(epsilon={"A-A": 1.0, "A-B": 1.2, "B-B": 1.0}, sigma=1.0, cutoff=3.0, onset=2.5)
    eq = ms.relax(ms.System([[0.0, 0.0], [1.2, 0.1]], species=["A", "B"], cell=np.eye(2) * 8.0, pbc=True), potential, fmax=1e-12)
    return eq, ms.sensitivity(eq, wrt=["sigma", "epsilon.A-B"])


def test_a_sweep_in_xarray_has_its_parameters_beside_its_observables(swept):
    found = export.to_xarray(swept)
    assert found["distances"].dims == ("task", "distances_0") and found["distances"].attrs["units"] == "Angstrom"
    done = (found["failed"] == "").values
    assert list(done) == [True] * 4 + [False] * 2
    np.testing.assert_allclose(found["distances"][done, 0], RATIO * found["sigma"][done], rtol=1e-10)
    np.testing.assert_allclose(found["energy"][done], -found["epsilon"][done], rtol=1e-12)
    assert found["sigma"].attrs["units"] == "Angstrom" and found["epsilon"].attrs["units"] == "eV"
    assert np.isnan(found["energy"][~done]).all()
    assert "mdsens" in found.attrs["made with"] and '"LennardJones"' in found.attrs["study"]


def test_a_data_frame_has_a_row_for_each_task(swept):
    found = export.to_dataframe(swept)
    assert list(found.columns) == ["task", "sigma", "epsilon", "distances", "energy", "failed"]
    assert found.attrs["units"] == {"sigma": "Å", "epsilon": "eV", "distances": "Å", "energy": "eV"}
    done = found[found.failed == ""]
    assert len(found) == 6 and len(done) == 4 and found.failed.iloc[-1]
    np.testing.assert_allclose(done["distances"], RATIO * done["sigma"], rtol=1e-10)
    assert "Did you mean 'points'" in refused(lambda: export.to_dataframe(swept, table="point"))


def test_older_files_name_the_units_that_their_recipes_tell(swept, tmp_path):
    """Those of parameters came later."""
    shutil.copy(swept, tmp_path / "old.h5")
    with h5py.File(tmp_path / "old.h5", "a") as file:
        for task in file["study/tasks"].values():
            facts = json.loads(task.attrs["facts"])
            facts.pop("units", None)
            task.attrs["facts"] = json.dumps(facts)
    frame = export.to_dataframe(tmp_path / "old.h5")
    assert frame.attrs["units"] == {"distances": "Å", "energy": "eV"}
    pandas.testing.assert_frame_equal(frame, export.to_dataframe(swept))
    assert "distances [Å]" in mdsens("show", tmp_path / "old.h5")[1]


@pytest.mark.slow
def test_functions_of_a_notebook_give_the_same_as_files(swept):
    potential = ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=6.0, onset=5.0)
    system = ms.System.from_ase(ase.build.molecule("N2"))
    observables = {"energy": ms.observables.energy, "distances": ms.observables.distances([(0, 1)])}
    points = {"sigma": [1.0, 1.1], "epsilon": [0.5, 1.0]}
    found = studies.sweep({"dimer": system}, potential, points, observables, relax={"fmax": 1e-10})
    frames = export.to_dataframe(found), export.to_dataframe(swept)
    # In the order asked for, and as files keep it.
    assert list(frames[0]) == ["task", "sigma", "epsilon", "energy", "distances", "failed"]
    pandas.testing.assert_frame_equal(frames[0][list(frames[1])], frames[1][:4], rtol=1e-12)
    assert frames[0].attrs == frames[1].attrs
    assert "energy [eV]  distances [Å]" in repr(found) and "sigma=1.1 epsilon=1" in repr(found)
    eq = ms.relax(system, potential, fmax=1e-10)
    table = studies.sensitivity_table(eq, observables)
    slopes = export.to_xarray(table)["derivatives_distances"]
    assert float(slopes.sel(parameter="sigma").squeeze()) == pytest.approx(RATIO, rel=1e-9)
    assert dict(zip(slopes.parameter.values, slopes.attrs["units_by_parameter"], strict=True)) == {
        "epsilon": "Angstrom (eV)-1",
        "sigma": "Angstrom (Angstrom)-1",
    }
    bars = export.to_dataframe(studies.uncertainty(eq, observables, {"sigma": 0.01})).set_index("observable")
    assert bars["std"]["distances"] == pytest.approx(0.01 * RATIO, rel=1e-9) and bars["mostly from"]["distances"] == "sigma"


@pytest.mark.parametrize(
    ("kind", "table", "columns"),
    [
        ("sensitivity", "derivatives", ["task", "parameter", "value", "units", "θ d(distances)/dθ", "θ d(energy)/dθ"]),
        ("uncertainty", "observables", ["task", "observable", "value", "std", "std of 10 samples", "units", "mostly from"]),
        ("calibration", "targets", ["task", "target", "wanted", "found", "sigma", "units", "off [σ]"]),
        ("continuation", "path", ["task", "t", "lowest curvature", "speed", "distances", "energy"]),
    ],
)
def test_each_kind_has_its_table_and_its_dataset(kind, table, columns, tmp_path):
    path = study(tmp_path, kind)
    frame = export.to_dataframe(path, table=table)
    assert list(frame.columns)[: len(columns)] == columns and len(frame)
    export.write(path, tmp_path / "table.csv", table=table)
    units = frame.attrs["units"]
    named = frame.rename(columns={name: f"{name} [{unit}]" for name, unit in units.items()})
    back = pandas.read_csv(tmp_path / "table.csv", keep_default_na=kind == "continuation")
    pandas.testing.assert_frame_equal(back, named, check_dtype=False, rtol=0.0, atol=0.0)
    found = export.to_xarray(path)
    assert found.attrs["kind"] == kind
    if kind == "sensitivity":
        length = found["derivatives_distances"].sel(parameter="sigma")
        assert float(length.squeeze()) == pytest.approx(RATIO, rel=1e-9)
    if kind == "calibration":
        assert float(found["parameters"].sel(parameter="sigma").squeeze()) == pytest.approx(1.2 / RATIO, rel=1e-8)
    (atoms,) = export.to_atoms(path)
    assert atoms.info["structure"] == "dimer" and atoms.get_chemical_symbols() == ["N", "N"]


@pytest.mark.slow
def test_an_equilibrium_carries_its_derivatives_with_units(dimer, tmp_path):
    eq, S = dimer
    found = export.to_xarray(eq, S)
    assert found["dX_dsigma"].dims == ("atom", "space") and found["dX_dsigma"].attrs["units"] == "Angstrom (Angstrom)-1"
    np.testing.assert_array_equal(found["dX_depsilon.A-B"], S.positions.epsilon["A-B"])
    assert "dX_depsilon.A-A" not in found and "θ dX/dθ in float64" in found.attrs["certificate"]
    ms.save(tmp_path / "a.h5", eq, S)
    frame = export.to_dataframe(tmp_path / "a.h5")
    np.testing.assert_array_equal(frame[["dx/dsigma", "dy/dsigma"]], S.positions.sigma)
    assert list(frame["species"]) == ["A", "B"]
    largest = export.to_dataframe(tmp_path / "a.h5", table="parameters").set_index("parameter")
    assert largest["max |dX/dθ|"]["sigma"] == pytest.approx(RATIO / 2, rel=1e-8)  # each atom takes half of it
    assert largest["max |θ dX/dθ|"]["sigma"] > 0.0 and frame.attrs["units"]["dx/dsigma"] == "Å/Å"
    assert np.isnan(largest["max |dX/dθ|"]["epsilon.A-A"]) and largest["unit"]["epsilon.A-A"] == "eV"


def test_extended_xyz_has_vectors_on_atoms(dimer, tmp_path):
    eq, S = dimer
    export.write(eq, tmp_path / "a.extxyz", S)
    head = (tmp_path / "a.extxyz").read_text().splitlines()[1]
    # OVITO splits names of properties at dots.
    assert "dX_dsigma:R:3" in head and "dX_depsilon_A_B:R:3" in head and 'Lattice="8.0 0.0 0.0 0.0 8.0 0.0 0.0 0.0 1.0"' in head
    back = ase.io.read(tmp_path / "a.extxyz")
    np.testing.assert_allclose(back.arrays["dX_dsigma"][:, :2], S.positions.sigma, atol=1e-8)
    np.testing.assert_allclose(back.positions[:, :2], eq.system.positions, atol=1e-8)
    assert list(back.arrays["mdsens_label"]) == ["A", "B"]


def test_the_command_goes_by_the_extension(swept, tmp_path):
    for name in ("table.csv", "atoms.extxyz", "atoms.xyz"):
        assert mdsens("export", swept, "-o", tmp_path / name) == (0, f"{tmp_path / name}\n")
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and float(rows[2]["distances [Å]"]) == pytest.approx(1.1 * RATIO, rel=1e-10)
    images = ase.io.read(tmp_path / "atoms.extxyz", index=":")
    assert len(images) == 4 and images[3].info["sigma"] == 1.1 and images[3].get_potential_energy() == pytest.approx(-1.0)
    assert "exists already" in mdsens("export", swept, "-o", tmp_path / "table.csv")[1]
    assert ".csv, .extxyz" in mdsens("export", swept, "-o", tmp_path / "table.dat")[1]
    assert "leave it out" in mdsens("export", swept, "-o", tmp_path / "b.xyz", "-t", "points")[1]


def test_netcdf_comes_back(swept, tmp_path):
    pytest.importorskip("h5netcdf")
    export.write(swept, tmp_path / "data.nc")
    with xarray.open_dataset(tmp_path / "data.nc", engine="h5netcdf") as back:
        xarray.testing.assert_identical(back, export.to_xarray(swept))


def test_a_missing_module_is_named_with_its_command(swept, monkeypatch, tmp_path):
    real = builtins.__import__

    def missing(name, *rest, **options):
        if name.split(".")[0] in ("pandas", "xarray"):
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(export.importlib, "import_module", missing)
    for call in (lambda: export.to_dataframe(swept), lambda: export.to_xarray(swept)):
        refused(call, "pip install 'mdsens[export]'")
    export.write(swept, tmp_path / "a.csv")  # needs neither


def test_what_is_no_result_is_refused():
    refused(lambda: export.to_dataframe({"a": 1}), "dict")


def test_an_untrusted_sensitivity_says_so_wherever_it_goes(dimer, tmp_path):
    """A trusted one too, so that nobody has to know what silence means."""
    eq, S = dimer
    # In a periodic box the dimer turns freely, so that its own certificate has a reason.
    S = ms.Sensitivity(S.positions, S.cell, dataclasses.replace(S.certificate, trusted=True, reasons=()), S.potential)
    why = "the adjoint solution disagrees"
    doubted = dataclasses.replace(S.certificate, trusted=False, reasons=(why, "and more"))
    doubted = ms.Sensitivity(S.positions, S.cell, doubted, S.potential)
    for table in ("atoms", "parameters"):
        frame = export.to_dataframe(eq, doubted, table=table)
        assert not frame["trusted"].any() and (frame["reasons"] == f"{why}; and more").all() and frame.attrs["trusted"] is False
        good = export.to_dataframe(eq, S, table=table)
        assert good["trusted"].all() and "reasons" not in good and good.attrs["trusted"] is True
        export.write(eq, tmp_path / f"{table}.csv", doubted, table=table)
        rows = list(csv.DictReader((tmp_path / f"{table}.csv").open()))
        assert rows and all(row["trusted"] == "False" and why in row["reasons"] for row in rows)
    export.write(eq, tmp_path / "a.extxyz", doubted)
    info = ase.io.read(tmp_path / "a.extxyz").info
    assert not info["trusted"] and why in info["reasons"]
    found = export.to_xarray(eq, doubted)
    assert found.attrs["trusted"] == 0 and why in found.attrs["reasons"]
    assert found["dX_dsigma"].attrs["trusted"] == 0 and why in found["dX_dsigma"].attrs["reasons"]
    export.write(eq, tmp_path / "a.nc", doubted)
    with xarray.open_dataset(tmp_path / "a.nc", engine="h5netcdf") as back:
        assert back["dX_dsigma"].attrs["trusted"] == 0
    assert "trusted" not in export.to_dataframe(eq)


def test_an_equilibrium_that_did_not_converge_says_so(tmp_path):
    potential = ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=3.0, onset=2.5)
    eq = ms.relax(ms.System([[0.0, 0.0], [1.3, 0.1]]), potential, max_steps=1, throw=False, check_minimum=False)
    assert not eq.converged
    assert (export.to_dataframe(eq)["status"] == eq.status.name).all()
    assert export.to_atoms(eq)[0].info["status"] == eq.status.name == export.to_xarray(eq).attrs["status"]


def test_studies_of_untrusted_sensitivities_say_so(tmp_path):
    """A certificate for each task, as it is stored."""
    path = study(tmp_path, "sensitivity")
    assert export.to_dataframe(path)["trusted"].all() and "reasons" not in export.to_dataframe(path)
    assert export.to_xarray(path)["trusted"].values.tolist() == [1.0]
    with h5py.File(path, "a") as file:
        (task,) = file["study/tasks"].values()
        facts = json.loads(task.attrs["facts"])
        task.attrs["facts"] = json.dumps({**facts, "trusted": False, "reasons": ["a kink is near"]})
    frame = export.to_dataframe(path)
    assert not frame["trusted"].any() and (frame["reasons"] == "a kink is near").all()
    found = export.to_xarray(path)
    assert found["trusted"].values.tolist() == [0.0] and found["reasons"].values.tolist() == ["a kink is near"]
    assert not export.to_atoms(path)[0].info["trusted"]
    export.write(path, tmp_path / "a.csv")
    assert all(row["trusted"] == "False" for row in csv.DictReader((tmp_path / "a.csv").open()))
