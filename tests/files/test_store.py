"""HDF5 files: the same equilibrium and sensitivity back bit for bit, whole or absent, and nothing from strangers."""

import dataclasses
import errno
import os
import pathlib
import subprocess
import sys

import equinox as eqx
import h5py
import jax.numpy as jnp
import numpy as np
import pytest

import mdsens as ms
from mdsens.files import state_files
from mdsens.files.atomic_write import write_all
from mdsens.files.hdf5_attributes import attribute, has_attribute, set_attribute


@pytest.fixture(scope="module")
def dimer():
    potential = ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=3.0, onset=2.5)
    system = ms.System([[0.0, 0, 0], [1.2, 0.1, 0]], species=["A", "A"])
    eq = ms.relax(system, potential, fmax=1e-12)
    return eq, ms.sensitivity(eq)


def same(a, b):
    return bool(eqx.tree_equal(a, b))


@pytest.mark.parametrize(
    "state", ["soft_packing", *(pytest.param(name, marks=pytest.mark.slow) for name in ("silicon_vacancy", "glass"))]
)
def test_a_loaded_file_is_equal_bit_for_bit(state, request, tmp_path):
    eq = request.getfixturevalue(state)
    S = ms.sensitivity(eq)
    ms.save(tmp_path / "a.h5", eq, S)
    eq2, S2 = ms.load(tmp_path / "a.h5")
    assert same(eq, eq2) and same(S, S2)
    assert same(ms.sensitivity(eq2), S)
    ms.save(tmp_path / "b.h5", eq)
    assert ms.load(tmp_path / "b.h5")[1] is None


@pytest.mark.slow
def test_what_is_longer_than_an_attribute_survives(dimer, tmp_path, monkeypatch):
    """HDF5 has 64 kB for an attribute: a list of 4,096 texts, 8,192 numbers. Of rattlers a large packing has more."""
    eq, S = dimer
    rattlers, words = tuple(range(20_000)), "x" * 100_000
    eq = dataclasses.replace(eq, spectrum=dataclasses.replace(eq.spectrum, rattlers=rattlers), solver=words)
    modes = tuple(f"rattler {atom}" for atom in rattlers)
    certificate = dataclasses.replace(S.certificate, rattlers=rattlers, zero_modes=modes, reasons=(words, "short"))
    S = ms.Sensitivity(S.positions, S.cell, certificate, S.potential)
    monkeypatch.setattr("sys.argv", ["run", *(f"structure_{k}.cif" for k in range(10_000))])
    ms.save(tmp_path / "a.h5", eq, S)
    eq2, S2 = ms.load(tmp_path / "a.h5")
    assert eq2.spectrum.rattlers == rattlers and eq2.solver == words and S2.certificate == certificate
    assert state_files.read_provenance(tmp_path / "a.h5")["command"].endswith("structure_9999.cif")


def test_labels_that_are_longer_than_an_attribute_survive(tmp_path):
    labels = [f"A{k}" for k in range(6_000)]
    system = ms.System(3.0 * np.arange(18_000.0).reshape(6_000, 3), species=labels)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        state_files._write_particles(file, system)
        assert same(state_files._read_system(file["particles/atoms"]), system)


@pytest.mark.slow
def test_frozen_atoms_partial_sensitivities_and_single_precision_survive(tmp_path):
    potential = ms.LennardJones(epsilon={"A-A": 1.0, "A-B": 1.5, "B-B": 0.5}, sigma=1.0, cutoff=3.0, switch="shifted_force")
    system = ms.System(
        [[0.0, 0], [1.2, 0.1], [0.5, 1.0]], species=["B", "A", "B"], frozen=[True, False, False], masses=[1, 2, 3.5]
    )
    eq = ms.relax(system, potential, fmax=1e-12)
    S = ms.sensitivity(eq, wrt=["epsilon.A-B"])
    ms.save(tmp_path / "a.h5", eq, S)
    eq2, S2 = ms.load(tmp_path / "a.h5")
    assert same(eq, eq2) and same(S, S2) and S2.positions.sigma is None
    short = ms.relax(eq.system.astype("float32"), potential.astype("float32"), fmax=1e-3)
    ms.save(tmp_path / "b.h5", short)
    back, _ = ms.load(tmp_path / "b.h5")
    assert same(short, back) and back.system.positions.dtype == jnp.float32


def test_the_layout_is_h5md(dimer, tmp_path):
    ms.save(tmp_path / "a.h5", *dimer)
    with h5py.File(tmp_path / "a.h5") as file:
        assert list(file["h5md"].attrs["version"]) == [1, 1]
        assert file["h5md/creator"].attrs["name"] == "mdsens"
        position = file["particles/atoms/position"]
        assert position["value"].shape == (1, 2, 3) and position["value"].attrs["unit"] == "Angstrom"
        assert position["step"].shape == position["time"].shape == (1,)
        assert file["particles/atoms/box"].attrs["dimension"] == 3
        assert list(file["particles/atoms/box"].attrs["boundary"]) == ["none"] * 3
        assert file["parameters/potential/sigma"][()] == 1.0
        assert file["parameters/potential/sigma"].attrs["unit"] == "Angstrom"
        assert file["sensitivity/positions/sigma"].shape == (2, 3)
        assert file["sensitivity/positions/epsilon"].attrs["unit"] == "Angstrom (eV)-1"
        assert file["sensitivity"].attrs["trusted"] and file["sensitivity"].attrs["residual"] < 1e-10
        assert "jax" in file["provenance"].attrs["versions"]


@pytest.mark.slow
def test_a_potential_of_one_s_own_is_given_back_by_the_user(tmp_path):
    class Spring(ms.PairPotential):
        stiffness: float
        length: float
        cutoff: float = ms.static(5.0)

        def pair_energy(self, r, i, j):
            return 0.5 * self.stiffness * (r - self.length) ** 2

    eq = ms.relax(ms.System([[0.0, 0], [1.2, 0.1]]), Spring(2.0, 1.0), fmax=1e-12)
    S = ms.sensitivity(eq, wrt=["length"])
    ms.save(tmp_path / "a.h5", eq, S)
    with pytest.raises(ms.StoreError, match=r"potential=Spring"):
        ms.load(tmp_path / "a.h5")
    eq2, S2 = ms.load(tmp_path / "a.h5", potential=Spring(7.0, 7.0))
    assert same(eq, eq2) and same(S, S2)
    with pytest.raises(ms.StoreError, match="settings"):
        ms.load(tmp_path / "a.h5", potential=Spring(2.0, 1.0, cutoff=4.0))


def test_an_existing_file_is_kept_unless_told_otherwise(dimer, tmp_path):
    path = tmp_path / "a.h5"
    ms.save(path, *dimer)
    before = path.read_bytes()
    with pytest.raises(ms.StoreError, match="exists already"):
        ms.save(path, dimer[0])
    assert path.read_bytes() == before
    ms.save(path, dimer[0], overwrite=True)
    assert ms.load(path)[1] is None


def test_places_that_cannot_be_written_are_refused(dimer, tmp_path):
    with pytest.raises(ms.StoreError, match="does not exist"):
        ms.save(tmp_path / "missing" / "a.h5", *dimer)
    with pytest.raises(ms.StoreError, match="is a folder"):
        ms.save(tmp_path, *dimer)
    with pytest.raises(ms.InputError, match=r"ms\.save"):
        ms.save(tmp_path / "a.h5", dimer[1])


@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=["full", "Ctrl-C"]
)
def test_a_full_disk_or_an_interrupt_leaves_nothing_behind(dimer, tmp_path, monkeypatch, failure):
    path = tmp_path / "a.h5"
    ms.save(path, dimer[0])
    before = path.read_bytes()

    def fail(_):
        raise failure

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises((ms.StoreError, KeyboardInterrupt)) as error:
        ms.save(path, *dimer, overwrite=True)
    if isinstance(failure, OSError):
        assert "No space left" in str(error.value)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_of_files_that_are_written_together_none_is_there_before_all_are_on_the_disk(tmp_path, monkeypatch):
    paths, synced, sync = [tmp_path / name for name in "abc"], [], os.fsync

    def full(file):
        assert not any(path.exists() for path in paths)
        synced.append(file)
        if len(synced) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ms.StoreError, match="No space left"):
        write_all(dict.fromkeys(paths, b"content"), overwrite=True)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    write_all({path: path.name.encode() for path in paths}, overwrite=True)
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ["a", "b", "c"]


def test_strange_and_damaged_files_are_refused_in_a_sentence(dimer, tmp_path):
    good = tmp_path / "good.h5"
    ms.save(good, *dimer)
    bytes_ = good.read_bytes()
    cases = {"missing.h5": None, "empty.h5": b"", "text.h5": b"no HDF5 at all", "cut.h5": bytes_[: len(bytes_) // 2]}
    for name, content in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ms.StoreError, match=name):
            ms.load(tmp_path / name)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.arange(3)
    with pytest.raises(ms.StoreError, match="another program"):
        ms.load(tmp_path / "other.h5")


def test_a_file_of_another_program_is_not_read_as_ours(dimer, tmp_path):
    """H5MD of another creator may have the same groups and mean other units."""
    ms.save(tmp_path / "a.h5", *dimer)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["h5md/creator"].attrs["name"] = "espresso"
    for read in (ms.load, state_files.read_provenance):
        with pytest.raises(ms.StoreError, match="another program; its creator is 'espresso'"):
            read(tmp_path / "a.h5")


def leaning(system):
    return system.positions[2, :1] - 0.4


def test_constraints_that_the_structure_does_not_meet_are_refused(tmp_path):
    from mdsens.equilibrium import constraints

    potential = ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=3.0, onset=2.5)
    system = ms.System([[0.0, 0.0], [1.1, 0.0], [0.5, 1.0]])
    eq = ms.relax(system, potential, constraints=[constraints.Equation(leaning)], fmax=1e-12)
    ms.save(tmp_path / "a.h5", eq)
    # A function of the same name that means something else, since no file keeps functions.
    other = lambda system: system.positions[2, :1] - 0.3  # noqa: E731
    other.__name__ = "leaning"
    with pytest.raises(ms.StoreError, match="does not meet them"):
        ms.load(tmp_path / "a.h5", constraints=[constraints.Equation(other)])
    back, _ = ms.load(tmp_path / "a.h5", constraints=[constraints.Equation(leaning)])
    np.testing.assert_array_equal(back.multipliers, eq.multipliers)


@pytest.mark.slow
def test_a_saddle_point_is_one_again_when_it_is_loaded(tmp_path):
    """Two compressed springs in line, which buckle in the plane."""
    potential = ms.Morse(D0=1.0, alpha=1.0, r0=1.4, cutoff=3.0, onset=2.8)
    line = ms.System([[-1.0, 0.0], [0.01, 0.0], [1.0, 0.0]], frozen=[True, False, True])
    eq = ms.find_saddle(line, potential, fmax=1e-12)
    S = ms.sensitivity(eq)
    ms.save(tmp_path / "a.h5", eq, S)
    back, S2 = ms.load(tmp_path / "a.h5")
    assert back.index == eq.index == 1 and same(back, eq) and same(S, S2)
    # As a minimum it would have no derivative.
    assert same(ms.sensitivity(back), S)


def test_data_from_elsewhere_is_not_followed(dimer, tmp_path):
    def hostile(name, change):
        path = tmp_path / name
        ms.save(path, *dimer)
        with h5py.File(path, "a") as file:
            change(file)
        with pytest.raises(ms.StoreError, match=r"elsewhere|damaged"):
            ms.load(path)

    secret = tmp_path / "secret.bin"
    secret.write_bytes(b"\0" * 4096)

    def external_link(file):
        file["observables/x"] = h5py.ExternalLink("good.h5", "/")

    def soft_link(file):
        file["observables/x"] = h5py.SoftLink("/h5md")

    def external_data(file):
        del file["particles/atoms/mass"]
        file.create_dataset("particles/atoms/mass", shape=(2,), dtype="f8", external=[(str(secret), 0, 16)])

    def giant(file):
        file.create_dataset("observables/giant", shape=(10**9,), dtype="f8")

    for change in (external_link, soft_link, external_data, giant):
        hostile(f"{change.__name__}.h5", change)


def test_a_newer_layout_says_so(dimer, tmp_path):
    ms.save(tmp_path / "a.h5", *dimer)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["h5md/creator"].attrs["format"] = 99
    with pytest.raises(ms.StoreError, match="upgrade mdsens"):
        ms.load(pathlib.Path(tmp_path / "a.h5"))


def changed(path, place, change):
    """A file in which something else than mdsens changed a number."""
    with h5py.File(path, "a") as file:
        where, _, name = place.partition("@")
        if name:
            file[where].attrs[name] = change(file[where].attrs[name])
        else:
            file[where][...] = change(file[where][()])
    return path


CHANGES = {
    "a position": ("particles/atoms/position/value", lambda x: x + 0.01),
    "a mass": ("particles/atoms/mass", lambda m: 2.0 * m),
    "who is frozen": ("particles/atoms/frozen", lambda mask: 1 - mask),
    "a parameter": ("parameters/potential/sigma", lambda sigma: sigma + 1e-9),
    "the cutoff": ("parameters/potential@static", lambda text: text.replace("2.5", "2.6")),
    "the energy": ("observables/potential_energy/value", lambda energy: energy + 1e-6),
    "the status": ("equilibrium@steps", lambda steps: steps + 1),
    "a derivative": ("sensitivity/positions/sigma", lambda x: 1.5 * x),
    "the verdict": ("sensitivity@trusted", lambda trusted: not trusted),
}


@pytest.mark.parametrize(("place", "change"), CHANGES.values(), ids=CHANGES)
def test_a_file_that_was_changed_is_refused(place, change, dimer, tmp_path):
    path = ms.save(tmp_path / "a.h5", *dimer)
    with pytest.raises(ms.StoreError, match=r"changed after mdsens wrote it"):
        ms.load(changed(path, place, change))


def test_copies_by_other_programs_and_notes_beside_the_result_are_no_changes(dimer, tmp_path):
    path = ms.save(tmp_path / "a.h5", *dimer)
    with h5py.File(path) as old, h5py.File(tmp_path / "b.h5", "w") as new:
        for name in old:
            old.copy(name, new)
        new["notes"] = "from the second run"
        new.attrs["by"] = "me"
    for one, other in zip(dimer, ms.load(tmp_path / "b.h5"), strict=True):
        assert same(one, other)
    # Files of before have no checksum.
    with h5py.File(path, "a") as file:
        del file["h5md/creator"].attrs["checksum"]
    assert same(ms.load(path)[0], dimer[0])


def test_a_file_that_another_program_writes_is_in_use(dimer, tmp_path):
    path = ms.save(tmp_path / "a.h5", *dimer)
    holds = (
        "import h5py, sys; file = h5py.File(sys.argv[1], 'a'); print('open', flush=True); sys.stdin.read()",
        str(path),
    )
    with subprocess.Popen([sys.executable, "-c", *holds], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"open\n"
        for read in (ms.load, ms.read):
            with pytest.raises(ms.StoreError, match="in use by another program"):
                read(path)
        other.communicate(b"")
    assert same(ms.load(path)[0], dimer[0])


def test_several_states_are_in_one_file_as_they_were_given(dimer, tmp_path):
    eq, S = dimer
    other = eq.again(eq.potential, fmax=1e-10)
    path = ms.save(tmp_path / "dict.h5", {"a/b": eq, "second": other}, {"a/b": S})
    found = ms.load(path)
    assert list(found) == ["a/b", "second"] and found["second"][1] is None
    assert same(found["a/b"][0], eq) and same(found["a/b"][1], S) and same(found["second"][0], other)
    found = ms.load(ms.save(tmp_path / "list.h5", [eq, other], [None, S]))
    assert isinstance(found, list) and len(found) == 2 and found[0][1] is None and same(found[1][1], S)
    with pytest.raises(ms.StoreError, match="changed after"):
        ms.load(changed(path, "states/1/particles/atoms/position/value", lambda x: x + 0.01))
    with pytest.raises(ms.StoreError, match=r"holds 2 states"):
        ms.export.to_dataframe(tmp_path / "list.h5")
    for bad in (([eq, 1],), ({},), ([],), ({"a": eq}, {"b": S}), ([eq], [S, S]), ({1: eq},), ([eq], S)):
        with pytest.raises(ms.InputError, match=r"ms\.save"):
            ms.save(tmp_path / "bad.h5", *bad)


def test_whether_masses_are_known_survives(dimer, tmp_path):
    assert not ms.load(ms.save(tmp_path / "a.h5", dimer[0]))[0].system.masses_known


def test_long_texts_are_attributes_and_older_files_have_theirs_as_data(tmp_path):
    text = "Å" * 100_000
    with h5py.File(tmp_path / "a.h5", "w") as file:
        unit = file.create_group("units/00000")
        set_attribute(unit, "input", text)
        unit["texts/facts"] = text
        assert unit.attrs["input"] == attribute(unit, "input") == attribute(unit, "facts") == text
        assert has_attribute(unit, "facts") and not has_attribute(unit, "reason")
        with pytest.raises(KeyError):
            attribute(unit, "reason")
