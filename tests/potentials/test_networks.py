"""Networks as potentials: symmetry functions against loops and jax-md, what every potential must be, derivatives, files."""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from ase.neighborlist import neighbor_list
from differences import FMAX, relaxed
from helpers import refused

import mdsens as ms
from mdsens.mechanics.hessian_operator import hessian_operator
from mdsens.mechanics.landscape import Landscape
from mdsens.mechanics.unknown import reference_at
from mdsens.potentials.base import parameter_paths
from mdsens.potentials.learned.symmetry_functions import CUTOFFS
from mdsens.structures.neighbors.neighbor_list import widen

CUTOFF = 4.2
SHEAR = np.eye(3) + np.array([[0.02, 0.05, 0.0], [0.0, -0.03, 0.04], [0.0, 0.0, 0.03]])
RADIAL = {"eta": [0.1, 1.0, 4.0], "Rs": [0.0, 2.3, 2.9]}
ANGULAR = {"angular_eta": [0.01, 0.05, 0.02], "zeta": [1, 2, 4], "lam": [1, -1, 1]}


@functools.cache
def carbide():
    """Eight atoms of two species, sheared and rattled, in a cell smaller than the cutoff."""
    atoms = bulk("Si", cubic=True, a=5.0)
    atoms.symbols = ["Si", "C", "Si", "Si", "C", "C", "Si", "Si"]
    atoms.set_cell(atoms.cell.array @ SHEAR, scale_atoms=True)
    atoms.rattle(0.12, seed=3)
    return ms.System.from_ase(atoms)


# Symmetry functions against the formulas of the paper, written as loops


def f_c(name, r):
    x = r / CUTOFF
    if x >= 1.0:
        return 0.0
    return {
        "cosine": 0.5 * (np.cos(np.pi * x) + 1),
        "tanh3": np.tanh(1 - x) ** 3,
        "quintic": 1 - 10 * x**3 + 15 * x**4 - 6 * x**5,
        "exponential": np.exp(1 - 1 / (1 - x**2)),
    }[name]


def looped(system, function, kind):
    """Inputs of all atoms, in the order that `BehlerParrinello` states."""
    i, j, d = neighbor_list("ijD", system.to_ase(), CUTOFF)
    symbols, labels = system.symbols, sorted(set(system.symbols))
    rows = []
    for atom in range(len(system)):
        near = [(symbols[b], v) for a, b, v in zip(i, j, d, strict=True) if a == atom]
        row = []
        for label in labels:
            for eta, Rs in zip(*RADIAL.values(), strict=True):
                lengths = [np.linalg.norm(v) for symbol, v in near if symbol == label]
                row.append(sum(np.exp(-eta * (r - Rs) ** 2) * f_c(function, r) for r in lengths))
        for pair in itertools.combinations_with_replacement(labels, 2):
            for eta, zeta, lam in zip(*ANGULAR.values(), strict=True):
                total = 0.0
                for (first, u), (second, v) in itertools.combinations(near, 2):
                    if tuple(sorted((first, second))) != pair:
                        continue
                    r, s, t = np.linalg.norm(u), np.linalg.norm(v), np.linalg.norm(u - v)
                    lobe = 2.0 ** (1 - zeta) * (1 + lam * (u @ v) / (r * s)) ** zeta
                    both = f_c(function, r) * f_c(function, s)
                    if kind == "G4":
                        total += lobe * np.exp(-eta * (r**2 + s**2 + t**2)) * both * f_c(function, t)
                    else:
                        total += lobe * np.exp(-eta * (r**2 + s**2)) * both
                row.append(total)
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize(("function", "kind"), [("cosine", "G4"), ("tanh3", "G5"), ("exponential", "G4"), ("quintic", "G5")])
def test_symmetry_functions_are_those_of_the_paper(function, kind):
    potential = ms.BehlerParrinello.untrained(
        ["Si", "C"], cutoff=CUTOFF, **RADIAL, **ANGULAR, cutoff_function=function, angular=kind
    )
    expected = looped(carbide(), function, kind)
    assert expected.shape == (8, 2 * 3 + 3 * 3) and np.abs(expected).min(axis=0).max() > 0.0
    np.testing.assert_allclose(potential.inputs(carbide()), expected, rtol=1e-11, atol=1e-13)


@pytest.mark.slow
def test_symmetry_functions_of_a_cluster_are_those_of_jax_md():
    from jax_md import space
    from jax_md._nn import behler_parrinello as theirs

    positions = carbide().positions
    potential = ms.BehlerParrinello.untrained(
        "Si", cutoff=CUTOFF, eta=RADIAL["eta"], Rs=[0.0] * 3, **ANGULAR, cutoff_function="cosine"
    )
    found = np.asarray(potential.inputs(ms.System(positions, species="Si")))
    displacement, _ = space.free()
    radial = theirs.radial_symmetry_functions(displacement, None, jnp.asarray(RADIAL["eta"]), CUTOFF)(positions)
    shape = (jnp.asarray(ANGULAR[name], float) for name in ("angular_eta", "lam", "zeta"))
    angular = theirs.angular_symmetry_functions(displacement, None, *shape, CUTOFF)(positions)
    np.testing.assert_allclose(found[:, :3], radial, rtol=1e-10)
    # jax-md counts each pair of neighbours from both sides, and divides by lengths that are 1e-7 too large for its cosines.
    np.testing.assert_allclose(2 * found[:, 3:], angular, rtol=2e-6)


@pytest.mark.parametrize("name", CUTOFFS)
def test_cutoff_functions_are_as_smooth_as_they_say(name):
    function, order = CUTOFFS[name]
    derivatives = [function]
    for _ in range(4):
        derivatives.append(jax.grad(derivatives[-1]))
    # Not at the cutoff itself, where the exponential has its pole.
    at = [abs(float(derivative(1.0 - 1e-3))) for derivative in derivatives]
    continuous = int(min(order, 4))
    assert max(at[: continuous + 1]) < 0.1 and (np.isinf(order) or at[int(order) + 1] > 1.0)


# What every potential must be


def baseline(r, mask):
    """A repulsion and an attraction that hold atoms together [eV], and the cutoff function."""
    fc = jnp.where(mask, jnp.tanh(1.0 - r / CUTOFF) ** 3, 0.0)
    return 10.0 * (jnp.exp(-4.0 * (r - 2.4)) - 2.0 * jnp.exp(-2.0 * (r - 2.4))) * fc, fc


def lengths(d):
    return jnp.sqrt(jnp.sum(d * d, axis=-1))


CENTRES = jnp.linspace(1.5, 4.0, 5)


def of_module(module, d, i, j, mask):
    r = lengths(d)
    pair, fc = baseline(r, mask)
    density = jnp.sum(jnp.exp(-((r[:, None] - CENTRES) ** 2)) * fc[:, None], axis=0)
    return jnp.sum(pair) + module(jnp.append(density, i.astype(r.dtype)))


def of_dict(tree, d, i, j, mask):
    r = lengths(d)
    pair, fc = baseline(r, mask)
    hidden = jnp.exp(-((r[:, None] - CENTRES) ** 2)) @ tree["params"]["Dense_0"]["kernel"] + tree["params"]["Dense_0"]["bias"]
    hidden = hidden * (1.0 + j[:, None])
    return jnp.sum(pair) + jnp.tanh(jnp.sum(jnp.tanh(hidden) * fc[:, None], axis=0)) @ tree["params"]["Dense_1"]["kernel"]


def of_graph(tree, graph):
    r = lengths(graph.vectors)
    pair, fc = baseline(r, graph.mask)
    basis = jnp.exp(-((r[:, None] - CENTRES) ** 2)) * fc[:, None]
    state = tree["embedding"][graph.species]
    for layer in tree["layers"]:
        state = jnp.tanh(state @ layer["own"] + graph.sum((basis @ layer["filter"]) * state[graph.senders]))
    return graph.sum(pair) + state @ tree["readout"]


@functools.cache
def networks():
    rng = np.random.default_rng(0)

    def random(*shape):
        return 0.3 * rng.normal(size=shape)

    module = eqx.nn.MLP(6, "scalar", 8, 2, activation=jnp.tanh, use_final_bias=False, key=jax.random.key(1))
    flax = {"params": {"Dense_0": {"kernel": random(5, 6), "bias": random(6)}, "Dense_1": {"kernel": random(6)}}}
    layers = [{"own": random(4, 4), "filter": random(5, 4)} for _ in range(2)]
    graph = {"embedding": random(2, 4), "layers": layers, "readout": 20.0 * random(4)}
    options = {"cutoff": CUTOFF, "species": ("Si", "C"), "continuous": 2}
    return {
        "Behler-Parrinello": ms.BehlerParrinello.untrained(["Si", "C"], cutoff=CUTOFF, **RADIAL, **ANGULAR, hidden=(8, 8)),
        "deep sets": ms.DeepSets.untrained(["Si", "C"], cutoff=CUTOFF, n_radial=4, hidden=(6,)),
        "Equinox module": ms.NetworkPotential(of_module, module, **options),
        "dict": ms.NetworkPotential(of_dict, jax.tree.map(np.float32, flax), **options),
        "message passing": ms.GraphPotential(of_graph, graph, **options),
    }


PLACES = 32
NAMES = ("Behler-Parrinello", "deep sets", "Equinox module", "dict", "message passing")


@eqx.filter_jit
def everything(potential, reference, v):
    """Energy, its slope, a product with the Hessian as the slope's derivative and as it is kept, dF/dθ from both sides."""
    system, x = reference.system, reference.system.positions

    def slope(x, p):
        return jax.grad(lambda x: p.total(system.with_positions(x)))(x)

    product = jax.jvp(lambda x: slope(x, potential), (x,), (v,))[1]
    kept = hessian_operator(x, Landscape(reference, potential))(v.ravel()).reshape(v.shape)
    direction = jax.tree.map(jnp.cos, potential)
    forward = jnp.sum(v * jax.jvp(lambda p: slope(x, p), (potential,), (direction,))[1])
    leaves = jax.grad(lambda p: jnp.sum(v * slope(x, p)))(potential)
    adjoint = sum(jnp.sum(a * b) for a, b in zip(jax.tree.leaves(leaves), jax.tree.leaves(direction), strict=True))
    return potential.total(system), slope(x, potential), product, kept, forward, adjoint, leaves


def reference_of(system, potential):
    listed = system.with_neighbors(potential, skin=0.5)
    # All structures have eight atoms and one number of places, so that one compiled function serves them.
    return reference_at(eqx.tree_at(lambda s: s.neighbors, listed, widen(listed.neighbors, PLACES)))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_a_potential(name):
    potential, system = networks()[name], carbide()
    rng = np.random.default_rng(5)
    v = jnp.asarray(rng.normal(size=system.positions.shape))
    energy, slope, product, kept, forward, adjoint, leaves = everything(potential, reference_of(system, potential), v)

    # Rotated, shifted, with atoms in another order.
    turn, order = np.linalg.qr(rng.normal(size=(3, 3)))[0], rng.permutation(8)
    moved = ms.System(
        (system.positions @ turn + jnp.array([7.0, -3.0, 1.0]))[order],
        cell=system.cell @ turn,
        pbc=True,
        species=[system.symbols[k] for k in order],
    )
    again = everything(potential, reference_of(moved, potential), (v @ turn)[order])
    np.testing.assert_allclose(again[0], energy, rtol=1e-11)
    np.testing.assert_allclose(again[1], (slope @ turn)[order], atol=1e-11 * jnp.abs(slope).max())
    np.testing.assert_allclose(again[2], (product @ turn)[order], atol=1e-11 * jnp.abs(product).max())

    # Forces are the energy's slope, and the Hessian is that of the sites.
    h = 1e-4
    ends = {k: float(everything(potential, reference_of(displaced(system, k * h * v), potential), v)[0]) for k in (-2, -1, 1, 2)}
    np.testing.assert_allclose((8 * (ends[1] - ends[-1]) - (ends[2] - ends[-2])) / (12 * h), jnp.sum(slope * v), rtol=1e-8)
    np.testing.assert_allclose(kept, product, atol=1e-11 * jnp.abs(product).max())
    np.testing.assert_allclose(forward, adjoint, rtol=1e-10)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(leaves))


def displaced(system, v):
    return system.with_positions(system.positions + v)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Behler-Parrinello", "deep sets"])
def test_an_atom_alone_and_one_at_the_cutoff_have_finite_derivatives(name):
    potential = networks()[name]
    positions = [
        [0.0, 0, 0],
        [CUTOFF, 0, 0],
        [0, 2.0, 0],
        [0, -2.0, 0],
        [15.0, 0, 0],
        [0, 15.0, 0],
        [0, 0, 15.0],
        [0, 2.0, CUTOFF],
    ]
    system = ms.System(positions, cell=30.0 * np.eye(3), pbc=True, species=carbide().symbols)
    for value in jax.tree.leaves(everything(potential, reference_of(system, potential), jnp.ones((8, 3)))):
        assert np.isfinite(value).all()


# Derivatives of relaxed structures


def potential_like(potential, path, index):
    """A direction in parameter space: one entry of one leaf."""
    leaves, structure = jax.tree.flatten(potential)
    k = parameter_paths(potential).index(path)
    zeros = [np.zeros(leaf.shape) for leaf in leaves]
    zeros[k][index] = 1.0
    return jax.tree.unflatten(structure, zeros)


def differenced(eq, path, index, step=1e-4):
    """dX/dθ of one entry by Richardson differences of structures relaxed again."""
    theta = jax.tree.leaves(eq.potential)[parameter_paths(eq.potential).index(path)]
    change = np.zeros(theta.shape)
    change[index] = h = step * abs(float(theta[index]))
    ends = {k: relaxed(eq, path, k * change)[1] for k in (-2, -1, 1, 2)}
    return (8 * (ends[1] - ends[-1]) - (ends[2] - ends[-2])) / (12 * h)


@functools.cache
def silicon_without_an_atom():
    atoms = bulk("Si", cubic=True)
    del atoms[3]
    atoms.rattle(0.02, seed=0)
    return ms.relax(ms.System.from_ase(atoms), ms.BehlerParrinello.silicon(), fmax=FMAX)


@pytest.mark.slow
def test_weights_that_move_atoms_do_so_as_differences_say():
    eq, entries = silicon_without_an_atom(), {"network.Si.W1": (3, 5), "network.Si.b2": (1,), "eta": (2,)}
    S = ms.sensitivity(eq, wrt=list(entries))
    assert S.certificate.trusted, S.certificate.reasons
    found = dict(zip(parameter_paths(S.scaled().positions), jax.tree.leaves(S.scaled().positions), strict=True))
    scale = max(np.abs(leaf).max() for leaf in found.values())
    values = dict(zip(parameter_paths(eq.potential), jax.tree.leaves(eq.potential), strict=True))
    for path, index in entries.items():
        one = np.asarray(found[path])[(slice(None), slice(None), *index)]
        assert np.abs(one).max() > 1e-4
        assert np.abs(float(values[path][index]) * differenced(eq, path, index) - one).max() < 1e-6 * scale, path


RELAXED = (
    ("Equinox module", "params.layers.0.weight", (2, 1)),
    pytest.param("dict", "params.params.Dense_0.kernel", (1, 3), marks=pytest.mark.slow),
    ("message passing", "params.layers.0.filter", (2, 1)),
)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "path", "index"), RELAXED)
def test_a_user_s_network_relaxes_and_differentiates(name, path, index, tmp_path):
    potential = networks()[name]
    system = ms.System([[0.0, 0, 0], [2.2, 0.1, 0], [1.0, 2.0, 0.2], [0.9, 0.8, 1.9]], species=["Si", "C", "Si", "C"])
    eq = ms.relax(system, potential, fmax=FMAX)
    moved = ms.jvp(eq, potential_like(potential, path, index))
    theta = float(dict(zip(parameter_paths(potential), jax.tree.leaves(potential), strict=True))[path][index])
    assert abs(theta) * np.abs(moved).max() > 1e-4
    assert np.abs(theta * (differenced(eq, path, index) - moved)).max() < 1e-6 * abs(theta) * np.abs(moved).max()

    gradient = ms.gradient(lambda system, potential: jnp.sum(jnp.linalg.norm(system.positions, axis=1) ** 3), eq)
    slope = jnp.sum(3 * jnp.linalg.norm(eq.system.positions, axis=1)[:, None] * eq.system.positions * moved)
    of_path = dict(zip(parameter_paths(gradient), jax.tree.leaves(gradient), strict=True))
    np.testing.assert_allclose(of_path[path][index], slope, rtol=1e-8)

    ms.save(tmp_path / "network.h5", eq)
    again, _ = ms.load(tmp_path / "network.h5", potential=jax.tree.map(jnp.zeros_like, potential))
    jax.tree.map(np.testing.assert_array_equal, again.potential, potential)
    assert again.energy == eq.energy
    with pytest.raises(ms.StoreError, match="not mdsens's own"):
        ms.load(tmp_path / "network.h5")


def test_all_weights_cost_one_adjoint_and_too_many_columns_are_refused(tmp_path):
    eq = silicon_without_an_atom()
    gradient = ms.gradient(lambda system, potential: jnp.linalg.norm(system.positions[0] - system.positions[1]), eq)
    # A factor on all energies moves nothing: the last layer's weights and bias balance.
    last = gradient.network["Si"]["W3"] * eq.potential.network["Si"]["W3"]
    assert float(gradient.network["Si"]["b3"][0]) == pytest.approx(0.0, abs=1e-10)
    assert abs(float(jnp.sum(last))) < 1e-8 * float(jnp.abs(last).max())
    refused(lambda: ms.sensitivity(eq, max_bytes=1e5), "GB", "wrt=", "gradient(g, eq)")
    ms.save(tmp_path / "silicon.h5", eq)
    again, _ = ms.load(tmp_path / "silicon.h5")
    assert again.energy == eq.energy and again.potential.energy(again.system) == eq.energy


def test_the_shipped_network_is_silicon():
    potential, truth = ms.BehlerParrinello.silicon(), ms.StillingerWeber.silicon()
    atoms = bulk("Si", cubic=True) * 2
    del atoms[0]
    atoms.rattle(0.05, seed=11)
    system = ms.System.from_ase(atoms)
    # As the script that trained it says of structures that it did not see.
    assert abs(float(potential.energy(system) - truth.energy(system))) < 0.005 * len(system)
    assert np.sqrt(np.mean((potential.forces(system) - truth.forces(system)) ** 2)) < 0.06


# Files and refusals


def test_a_file_gives_the_network_that_was_written(tmp_path):
    potential = networks()["Behler-Parrinello"]
    potential.to_file(tmp_path / "SiC.npz")
    again = ms.BehlerParrinello.from_file(tmp_path / "SiC.npz")
    jax.tree.map(np.testing.assert_array_equal, again, potential)
    assert jax.tree.structure(again) == jax.tree.structure(potential)


def test_spoilt_files_are_refused(tmp_path):
    path = tmp_path / "SiC.npz"
    networks()["Behler-Parrinello"].to_file(path)
    whole = path.read_bytes()
    refused(lambda: ms.BehlerParrinello.from_file(tmp_path / "none.npz"), "There is no file")
    for content in (whole[: len(whole) // 2], b"", b"network", whole.replace(b"settings", b"sittings")):
        path.write_bytes(content)
        refused(lambda: ms.BehlerParrinello.from_file(path), "SiC.npz")
    np.savez(path, settings=np.array([print], dtype=object))
    refused(lambda: ms.BehlerParrinello.from_file(path), "damaged")


def spoilt(**changed):
    potential = networks()["Behler-Parrinello"]
    settings = {name: getattr(potential, name) for name in ("zeta", "lam", "cutoff", "cutoff_function", "angular", "activation")}
    return ms.BehlerParrinello(**potential.parameters() | settings | changed)


OXIDE = [[0.0, 0, 0], [1.6, 0, 0]]

BAD_INPUT = {
    "a species without a network": (lambda: spoilt().energy(ms.System(OXIDE, species=["Si", "O"])), ["network", "'O'"]),
    "the same of a set": (lambda: networks()["deep sets"].energy(ms.System(OXIDE, species=["Si", "O"])), ["'O'"]),
    "the same of a user's": (lambda: networks()["dict"].energy(ms.System(OXIDE, species=["Si", "O"])), ["'O'", "Si, C"]),
    "species without numbers": (
        lambda: ms.NetworkPotential(of_module, {}, 4.0).energy(ms.System(OXIDE, species=["Si", "O"])),
        ["species=", "O, Si"],
    ),
    "a layer too wide": (
        lambda: spoilt(network={"Si": {"W1": np.ones((4, 6)), "b1": np.ones(4), "W2": np.ones((1, 5)), "b2": np.ones(1)}}),
        ["layer 2", "(outputs, inputs)"],
    ),
    "half a layer": (lambda: spoilt(network={"Si": {"W1": np.ones((1, 15))}}), ["network['Si']", "biases"]),
    "two outputs": (lambda: spoilt(network={"Si": {"W1": np.ones((2, 6)), "b1": np.ones(2)}}), ["2 outputs, not 1"]),
    "inputs without a scale": (lambda: spoilt(mean={"Si": np.ones(15)}), ["mean['C']", "15"]),
    "an angle that is none": (lambda: spoilt(lam=(1, -1, 2)), ["1 or -1"]),
    "a power that is none": (lambda: spoilt(zeta=(1, 2, 0.5)), ["positive integers"]),
    "a list too short": (lambda: spoilt(zeta=(1, 2)), ["as many"]),
    "a cutoff nobody knows": (lambda: spoilt(cutoff_function="tanh"), ["'tanh'", "Did you mean 'tanh3'?"]),
    "no function": (lambda: ms.NetworkPotential({}, of_module, cutoff=4.0), ["function", "apply"]),
    "a range without an end": (lambda: ms.GraphPotential(of_graph, {}, cutoff=np.inf), ["cutoff", "inf"]),
    "a counter among the weights": (lambda: ms.NetworkPotential(of_dict, {"n": np.arange(3)}, 4.0), ["params['n']", "floating"]),
    "a weight that is not finite": (lambda: ms.NetworkPotential(of_dict, {"w": [np.nan]}, 4.0), ["params['w'][0]", "finite"]),
    "energies of all where one is due": (
        lambda: ms.NetworkPotential(lambda p, d, i, j, mask: jnp.sum(d, axis=1), {}, 4.0).energy(ms.System(OXIDE)),
        ["one site", "scalar"],
    ),
    "one energy where all are due": (
        lambda: ms.GraphPotential(lambda p, graph: jnp.sum(graph.vectors), {}, 4.0).energy(ms.System(OXIDE)),
        ["2 atoms", "shape ()"],
    ),
    "a matrix of what is no sum of sites": (
        lambda: ms.hessian(carbide(), networks()["message passing"]),
        ["GraphPotential", 'format="operator"'],
    ),
}


@pytest.mark.parametrize(("call", "words"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_refused_with_a_sentence_that_names_it(call, words):
    refused(call, *words)
