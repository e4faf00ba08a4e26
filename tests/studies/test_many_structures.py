"""Studies of many structures: nothing is compiled again for a name, a file of several is read whole, results are seen at once."""

import ase
import ase.db
import ase.io
import jax
import numpy as np
import pytest
from study_files import mdsens

import mdsens as ms
from mdsens import studies
from mdsens.common import compilation
from mdsens.studies.input import recipes, tasks
from mdsens.studies.methods.observed import Of, anonymize, evaluate, join_observables

TWO_DEEP = 2.0 ** (1.0 / 6.0)

STUDY = """
[study]
kind = "{kind}"
[structures.pair]
file = "{file}"
[potential]
name = "LennardJones"
parameters = {{ epsilon = 1.0, sigma = 1.0, cutoff = 6.0, onset = 5.0 }}
[observables.energy]
[observables.distances]
arguments = {{ pairs = [[0, 1]] }}
"""


@pytest.fixture
def compiled():
    """How many programs JAX has compiled since."""
    found = []

    def heard(event, *_, **__):
        if "backend_compile" in event:
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(heard)
    yield found
    jax._src.monitoring.unregister_event_duration_listener(heard)


def pair(distance):
    return ms.System([[0.0, 0.0, 0.0], [distance, 0.0, 0.0]], species=["Ar", "Ar"])


def relaxed(distance):
    return ms.relax(pair(distance), ms.LennardJones(epsilon=1.0, sigma=1.0, cutoff=6.0, onset=5.0))


@pytest.mark.slow
def test_another_name_compiles_nothing(compiled):
    one, other = relaxed(1.1), relaxed(1.2)
    observables = {"energy": ms.observables.energy, "distance": ms.observables.distances([(0, 1)])}
    first = studies.sensitivity_table({"first": one}, observables)
    compiled.clear()
    second = studies.sensitivity_table({"second": other}, observables)
    studies.sensitivity_table({"third": one}, {f"{name}2": g for name, g in observables.items()})
    assert compiled == []
    np.testing.assert_allclose(second.derivatives["distance"], first.derivatives["distance"], rtol=1e-8, atol=1e-10)
    k = first.names.index("sigma")
    np.testing.assert_allclose(second.derivatives["distance"][0, k], TWO_DEEP, rtol=1e-8)


def test_observables_and_their_numbers_keep_their_places_without_names():
    """Each observable finds its own structures, whatever the order of the names, and comes in the order asked for."""
    states = {"zinc": relaxed(1.1), "argon": relaxed(1.2), "10": relaxed(1.15)}
    stretched = {name: ms.Equilibrium.again(eq) for name, eq in states.items()}
    observed = join_observables(
        {
            "b": Of(ms.observables.energy, "zinc"),
            "a": Of(lambda two, p: two["x"].positions[0] - two["y"].positions[0], {"x": "argon", "y": "zinc"}),
        },
        stretched,
    )
    values = evaluate(observed, stretched)
    assert list(values) == ["b", "a"]
    x, y = (np.asarray(stretched[name].system.positions)[0] for name in ("argon", "zinc"))
    np.testing.assert_allclose(values["a"], x - y, atol=1e-14)
    plain, numbered = anonymize(observed, stretched)
    assert {*plain.parts, *numbered} == {"000000", "000001", "000002"}


def test_what_is_known_of_a_hessian_is_no_part_of_what_is_compiled():
    one, other = (relaxed(d).hessian for d in (1.1, 1.2))
    assert one.method != "" and one.spectrum != other.spectrum
    assert jax.tree.structure(one) == jax.tree.structure(other)


def test_compiled_programs_are_dropped_before_memory_maps_run_out(monkeypatch):
    dropped = []
    monkeypatch.setattr(jax, "clear_caches", lambda: dropped.append(True))
    compilation.drop_programs()
    assert dropped == []
    monkeypatch.setattr(compilation, "MAX_MAPS", 1)
    compilation.drop_programs()
    assert dropped == [True]


def several(folder, name, distances):
    images = [ase.Atoms("Ar2", [[0.0, 0.0, 0.0], [d, 0.0, 0.0]]) for d in distances]
    if name.endswith(".db"):
        with ase.db.connect(folder / name) as base:
            for atoms in images:
                base.write(atoms)
    else:
        ase.io.write(folder / name, images)


@pytest.mark.parametrize("name", ["set.extxyz", "set.traj", "set.db"])
def test_a_file_of_several_structures_is_a_study_s_input(tmp_path, name):
    several(tmp_path, name, [1.1, 1.2, 1.3])
    (tmp_path / "study.toml").write_text(STUDY.format(kind="sweep", file=name))
    study = tasks.read_study(tmp_path / "study.toml")
    assert [task.label for task in study.tasks] == ["pair.0", "pair.1", "pair.2"]
    starts = [recipes.structure_of(*task.input["structures"].values()) for task in study.tasks]
    np.testing.assert_allclose([float(start.positions[1, 0] - start.positions[0, 0]) for start in starts], [1.1, 1.2, 1.3])
    assert len({task.name for task in study.tasks}) == 3


def test_a_file_of_one_structure_has_the_task_that_it_had(tmp_path):
    several(tmp_path, "one.extxyz", [1.1])
    (tmp_path / "study.toml").write_text(STUDY.format(kind="sweep", file="one.extxyz"))
    (task,) = tasks.read_study(tmp_path / "study.toml").tasks
    assert task.label == "pair" and "index" not in task.input["structures"]["pair"]
    (tmp_path / "one.extxyz").write_text("2\n\nAr 0 0 0\n")
    with pytest.raises(ms.InputError, match=r"structures\.pair: .* could not be read"):
        tasks.read_study(tmp_path / "study.toml")


def test_run_prints_what_it_found(tmp_path):
    several(tmp_path, "set.extxyz", np.linspace(1.1, 1.3, 7))
    (tmp_path / "study.toml").write_text(STUDY.format(kind="sensitivity", file="set.extxyz"))
    status, said = mdsens("run", tmp_path / "study.toml")
    assert status == 0
    rows = [line.split() for line in said.splitlines() if line.strip().startswith("pair.")]
    # The bond's energy and length are known; trusted stands beside them, and each task has one row.
    assert [row[0] for row in rows] == [f"pair.{k}" for k in range(7)]
    for row in rows:
        np.testing.assert_allclose([float(row[1]), float(row[2])], [TWO_DEEP, -1.0], rtol=1e-6)
        assert row[3] == "trusted"
    status, said = mdsens("run", tmp_path / "study.toml")
    assert "pair.6" in said and "θ dg/dθ" not in said


def test_check_tells_a_covariance_that_is_none(tmp_path):
    several(tmp_path, "one.extxyz", [1.1])
    text = STUDY.format(kind="uncertainty", file="one.extxyz")
    for matrix, told in (
        ("[[1.0, 2.0], [2.0, 1.0]]", "larger than their standard deviations"),
        ("[[1.0, 0.0], [0.5, 1.0]]", "symmetric"),
    ):
        text_of = text.replace('kind = "uncertainty"', f'kind = "uncertainty"\nwrt = ["epsilon", "sigma"]\ncovariance = {matrix}')
        (tmp_path / "study.toml").write_text(text_of)
        status, said = mdsens("run", tmp_path / "study.toml", "--check")
        assert status == 1 and "study.covariance" in said and told in said
