"""Pictures show the numbers that they were given: what is drawn is read back from the axes."""

import types

import matplotlib.axes
import matplotlib.pyplot as plt
import numpy as np
import pytest
from ase.build import bulk
from helpers import refused

import mdsens as ms
from mdsens import plot
from mdsens.studies.pictures import influences


@pytest.fixture(autouse=True)
def _figures_are_closed():
    yield
    plt.close("all")


def resting(system):
    """What pictures of structures want of an equilibrium."""
    potential = ms.SoftSphere(diameter=dict.fromkeys(system.labels, 1.0), epsilon=1.0)
    return types.SimpleNamespace(system=system, potential=potential, spectrum=None)


def cubic(c11, c12, c44):
    matrix = np.diag([c11 - c12] * 3 + [c44] * 3)
    matrix[:3, :3] += c12
    return matrix


def ticks(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_elastic_constants_that_symmetry_makes_equal_are_one_column():
    ax = plot.elastic_sensitivity({"sigma": cubic(-454.0, -229.0, -169.0), "lam": cubic(50.0, -25.0, 42.5)})
    assert ticks(ax.xaxis) == ["C11", "C12", "C44"] and ticks(ax.yaxis) == ["sigma", "lam"]
    np.testing.assert_array_equal(ax.images[0].get_array(), [[-454.0, -229.0, -169.0], [50.0, -25.0, 42.5]])
    assert [text.get_text() for text in ax.texts] == ["-454", "-229", "-169", "50", "-25", "42.5"]


def test_a_heat_map_is_white_at_zero():
    ax = plot.heat_map([[1.0, -4.0], [0.0, 2.0]], ["a", "b"], ["c", "d"], label="x")
    assert ax.images[0].get_clim() == (-4.0, 4.0)
    refused(lambda: plot.heat_map(np.zeros((2, 2)), ["a"], ["c", "d"], label="x"), "1 rows and 2 columns")


def test_bars_have_the_errors_that_are_known():
    ax = plot.bars({"a": 1.0, "b": -3.0, "c": 2.0}, {"b": 0.5, "c": np.inf}, label="x")
    assert ticks(ax.yaxis) == ["a", "c", "b"] and [bar.get_width() for bar in ax.patches] == [1.0, 2.0, -3.0]
    (segment,) = ax.collections[0].get_segments()
    np.testing.assert_allclose(segment, [[-3.5, 2.0], [-2.5, 2.0]])


def test_a_prediction_says_by_how_much_it_is_off():
    ax = plot.prediction([[1.0, 2.0]], [[1.0, 1.0]])
    assert f"{1.0 / np.sqrt(2.0):.2%}" in ax.get_title() and "at most by 1" in ax.get_title()
    np.testing.assert_array_equal(ax.lines[1].get_xydata(), [[1.0, 1.0], [1.0, 2.0]])
    refused(lambda: plot.prediction([1.0], [1.0, 2.0]), "(1,) and (2,)")


def test_bands_are_as_wide_as_they_are_sensitive():
    path = types.SimpleNamespace(distances=np.arange(3.0), ticks=[0.0, 2.0], labels=["G", "X"])
    frequencies = np.array([[0.0, 5.0], [1.0, 6.0], [2.0, 7.0]])
    slopes = np.array([[0.0, -4.0], [1.0, -4.0], [2.0, np.nan]])
    ax = plot.phonons(path, frequencies, slopes)
    np.testing.assert_allclose(ax.collections[0].get_linewidths(), np.array([0.5, 4.0, 1.5, 2.0]) * 9.0 / 4.0)
    np.testing.assert_array_equal(ax.collections[0].get_segments()[1], [[0.0, 5.0], [1.0, 6.0]])
    assert [text.get_text().split(",")[0] for text in ax.get_legend().get_texts()] == ["θ positive", "θ negative"]
    refused(lambda: plot.phonons(path, frequencies, slopes[:2]), "(3, 2)")


def test_a_slice_has_the_atoms_near_a_plane():
    positions = [[1.0, 1.0, 0.0], [2.0, 2.0, 1.0], [3.0, 3.0, 4.0], [1.0, 2.0, 9.5]]
    eq = resting(ms.System(positions, species=["A", "A", "B", "A"], cell=np.eye(3) * 10.0, pbc=True))
    moves = np.array([[1.0, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.2], [0.0, 0.0, 0.0]])
    ax = plot.slab(eq, moves, height=0.5, thickness=2.0)
    np.testing.assert_array_equal(ax.collections[0].get_offsets(), [[1.0, 1.0], [2.0, 2.0]])
    np.testing.assert_array_equal(ax.collections[0].get_array(), [1.0, 0.5])
    assert plot.slab(eq, moves, normal="x").get_xlabel() == "y [Å]"
    refused(lambda: plot.slab(eq, moves, height=6.5), "No atom lies within 1.5 Å of z = 6.5 Å")
    refused(lambda: plot.slab(eq, moves, normal="w"), "'w'")


@pytest.mark.slow
def test_rounding_has_no_arrows():
    """By ε nothing moves, exactly; by λ the atoms around the hole do."""
    atoms = bulk("Si", cubic=True)
    del atoms[0]
    eq = ms.relax(ms.System.from_ase(atoms), ms.StillingerWeber.silicon())
    S = ms.sensitivity(eq, wrt=["epsilon", "lam"])
    for draw in (plot.crystal, plot.slab):
        still, moved = draw(eq, S.positions.epsilon), draw(eq, 1e3 * S.positions.lam)
        assert "nothing moves" in still.get_title() and "longest arrow" in moved.get_title()
        assert len(still.collections) < len(moved.collections)


def test_an_arrow_out_of_the_plane_is_none_in_it():
    eq = resting(ms.System([[1.0, 1.0, 0.0], [2.0, 2.0, 1.0]], species=["A", "A"], cell=np.eye(3) * 10.0, pbc=True))
    ax = plot.slab(eq, np.array([[1e-14, 0.0, 1.0], [0.0, 0.0, 0.5]]), height=0.5)
    assert "no arrows in the plane" in ax.get_title() and len(ax.collections) == 1


def test_a_narrow_slice_has_a_picture_of_its_shape():
    positions = [[1.0, 1.0, z] for z in range(0, 40, 2)]
    eq = resting(ms.System(positions, species=["A"] * 20, cell=np.diag([3.0, 3.0, 40.0]), pbc=True))
    tall = plot.slab(eq, np.ones((20, 3)), normal="x").figure.get_size_inches()
    square = plot.slab(eq, np.ones((20, 3)), normal="z").figure.get_size_inches()
    assert tall[1] > 1.5 * tall[0] and square[1] < square[0]


def test_a_legend_tells_the_range_of_diameters():
    system = ms.System([[0.5, 0.5], [1.5, 1.5]], species=["A", "A"], cell=np.eye(2) * 2.0, pbc=True)
    spheres = ms.SoftSphere(diameter=[0.8, 1.2], epsilon=1.0)
    ax = plot.packing(types.SimpleNamespace(system=system, potential=spheres, spectrum=None), np.ones((2, 2)))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["A (diameters 0.8 to 1.2 Å)"]


def test_bars_stretch_over_what_is_there():
    """A zero is named and takes no decade; what is within a factor of 50 is seen on a linear scale from zero."""
    ax = plot.influence({"a": 1.0, "b": -0.1, "c": 0.0, "d": 1e-12}, label="x")
    assert ax.get_xscale() == "linear" and ax.get_xlim()[0] == 0.0
    assert sorted(text.get_text() for text in ax.texts) == ["-0.1", "0", "0", "1"]
    ax = plot.influence({"a": 1.0, "b": 1e-3, "c": 0.0}, label="x")
    assert ax.get_xscale() == "log" and 1e-4 < ax.get_xlim()[0] < 1e-3 and ax.get_xlim()[1] < 10.0
    assert [text.get_text() for text in ax.texts] == ["0", "0.001", "1"]


@pytest.mark.slow
def test_a_picture_is_of_one_parameter():
    eq = ms.relax(ms.System.from_ase(bulk("Si")), ms.StillingerWeber.silicon())
    S = ms.sensitivity(eq)
    for given, told in ((S, "not Sensitivity"), (S.positions, "not StillingerWeber"), (np.zeros((3, 3)), "shape (3, 3)")):
        refused(lambda given=given: ms.plot.crystal(eq, given), told)


def test_discs_may_have_the_colour_of_their_displacement():
    eq = resting(ms.System([[0.5, 0.5], [1.5, 1.5]], species=["A", "B"], cell=np.eye(2) * 2.0, pbc=True))
    ax = plot.packing(eq, np.array([[3.0, 4.0], [0.0, 1.0]]), coloured=True)
    np.testing.assert_array_equal(np.unique(ax.collections[0].get_array()), [1.0, 5.0])
    assert ax.get_legend() is None
    refused(lambda: plot.packing(eq, coloured=True), "leave coloured out")


def test_only_soft_spheres_have_diameters():
    system = ms.System([[0.5, 0.5], [1.5, 1.5]], species=["A", "B"], cell=np.eye(2) * 2.0, pbc=True)
    moves = np.array([[3.0, 4.0], [0.0, 1.0]])
    spheres = ms.SoftSphere(diameter={"A": 1.0, "B": 0.6}, epsilon=1.0)
    legends = {}
    for name, potential in (("spheres", spheres), ("others", ms.Yukawa(strength=1.0, kappa=1.0, cutoff=1.0))):
        eq = types.SimpleNamespace(system=system, potential=potential, spectrum=None)
        ax = plot.packing(eq, moves, parameter="κ", unit="Å²")
        legends[name] = [text.get_text() for text in ax.get_legend().get_texts()]
        assert ax.get_xlabel() == "x [Å]" and ax.get_title() == "∂x*/∂κ, longest arrow 5.00 Å²"
    assert legends == {"spheres": ["A (diameter 1 Å)", "B (diameter 0.6 Å)"], "others": ["A", "B"]}


def test_convergence_leaves_zeros_out():
    ax = plot.convergence([1.0, 0.0, 1e-6], label="cost")
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[0.0, 1.0], [2.0, 1e-6]])
    assert ax.get_yscale() == "log"


def test_cost_has_its_exponent():
    ax = plot.cost({"dense": ([10, 100], [1e-3, 1.0]), "one": ([5], [1.0])})
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["dense, ~N^3.00", "one"]


@pytest.mark.parametrize(
    ("shape", "images"), [((3,), 0), ((2, 3), 1), ((6, 6, 3), 1), ((100, 3), 0)], ids=["number", "vector", "Voigt", "many"]
)
def test_an_observable_s_influences_are_drawn_by_its_shape(shape, images):
    scaled = np.random.default_rng(0).normal(size=shape)
    if len(shape) == 3:
        scaled = scaled + np.swapaxes(scaled, 0, 1)
    ax = influences("g", ["a", "b", "c"], scaled)
    assert isinstance(ax, matplotlib.axes.Axes) and len(ax.images) == images
