"""Derivatives by central differences: of re-relaxed structures, the independent proof of every sensitivity, and of energies."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import mdsens as ms
from mdsens.mechanics import null_space
from mdsens.potentials.base import parameter_paths
from mdsens.potentials.forms.neighbor_vectors import handles, map_pairs, neighbor_vectors

FMAX = 1e-12
STEP = 1e-4
GLASS_STEP = 3e-6
"""In the glass a pair is so near the cutoff that a step of 1e-4 takes it across, where a third derivative jumps."""


def at(potential, name, change):
    """The potential with one scalar parameter changed."""
    leaves, structure = jax.tree.flatten(potential)
    k = parameter_paths(potential).index(name)
    return jax.tree.unflatten(structure, [leaf + change if n == k else leaf for n, leaf in enumerate(leaves)])


def contacts(eq):
    """Pairs that touch (soft spheres) or lie within the potential's reach, as a set that two states can be compared by."""
    system = eq.system.with_neighbors(eq.potential, skin=0.0)
    d, inside = neighbor_vectors(system, eq.potential.range)
    if isinstance(eq.potential, ms.SoftSphere):
        energies = map_pairs(eq.potential.pair_energy, jnp.linalg.norm(d, axis=-1).T, *handles(system))
        inside = inside & (energies.T > 0.0)
    rows, columns = np.nonzero(np.asarray(inside))
    other = np.asarray(system.neighbors.index)[rows, columns]
    shift = np.asarray(system.neighbors.shift)[rows, columns]
    return set(map(tuple, np.column_stack([rows, other, shift]).tolist()))


def relaxed(eq, name, change):
    """Relaxed again from `eq` with a changed parameter, with rigid motions taken out of the displacement."""
    again = ms.relax(eq.system, at(eq.potential, name, change), fmax=FMAX, check_minimum=False)
    null = null_space.known_null_space(eq.system.positions, eq.reference, eq.spectrum.rattlers)
    shift = np.asarray(null.project((again.system.positions - eq.system.positions).ravel()))
    return again, shift.reshape(eq.system.positions.shape)


def richardson(eq, name, *, same_contacts=True, observable=None, step=STEP):
    """d/dθ of the relaxed positions, or of `observable(equilibrium)`, by central differences over h and 2h.

    With h = 1e-4 θ the truncation error is about h⁴ and the rounding error about 1e-12 / h.
    """
    theta = float(jax.tree.leaves(eq.potential)[parameter_paths(eq.potential).index(name)])
    h = step * (abs(theta) or 1.0)
    values = {}
    for k in (-2, -1, 1, 2):
        again, displacement = relaxed(eq, name, k * h)
        if same_contacts:
            assert contacts(again) == contacts(eq), f"{name}: a contact changed, the difference proves nothing"
        values[k] = displacement if observable is None else np.asarray(observable(again))
    return (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * h)


def scaled_errors(eq, sensitivity, *, same_contacts=True, step=STEP):
    """|θ Δ| of each parameter, relative to the largest |θ dX/dθ|."""
    scaled = jax.tree.leaves(sensitivity.scaled().positions)
    scale = max(float(np.abs(np.asarray(leaf)).max()) for leaf in scaled)
    errors = {}
    for name, theta, leaf in zip(parameter_paths(eq.potential), jax.tree.leaves(eq.potential), scaled, strict=True):
        difference = float(theta) * richardson(eq, name, same_contacts=same_contacts, step=step)
        errors[name] = float(np.abs(difference - np.asarray(leaf)).max()) / scale
    return errors


def strained_energy(potential, system):
    """The energy as a function of potential, positions and a strain, with a list that has pairs beyond the cutoff too."""
    listed = system.with_neighbors(potential)

    def energy(potential, positions, strain):
        deformation = jnp.eye(system.dim) + 0.5 * (strain + strain.T)
        moved = eqx.tree_at(lambda s: (s.positions, s.cell), listed, (positions @ deformation, system.cell @ deformation))
        return potential.energy(moved)

    return energy


def energy_forces_virial(potential, system):
    """`(energy, forces, -V stress)`, from one program."""
    derivatives = jax.jit(jax.value_and_grad(strained_energy(potential, system), argnums=(1, 2)))
    energy, (slopes, virial) = derivatives(potential, system.positions, jnp.zeros((system.dim, system.dim)))
    return energy, -slopes, -virial


def checked_energy_forces_virial(potential, system, step=STEP):
    """The same, after a look at first and second derivatives in all parameters, positions and strains together.

    Reverse over reverse; along a random direction they must be the differences of energies and of first derivatives.
    """
    start, unravel = jax.flatten_util.ravel_pytree((potential, system.positions, jnp.zeros((system.dim, system.dim))))
    direction = jnp.asarray(np.random.default_rng(5).normal(size=start.shape))
    energy = strained_energy(potential, system)

    def slope(v):
        value, gradient = jax.value_and_grad(lambda v: energy(*unravel(start + v)))(v)
        return jnp.vdot(gradient, direction), (value, gradient)

    @jax.jit
    def derivatives(h):
        (_, (value, first)), second = jax.value_and_grad(slope, has_aux=True)(h * direction)
        return value, first, second

    value, first, second = derivatives(0.0)
    assert np.isfinite(second).all()
    values, firsts, _ = zip(*(derivatives(h) for h in (-2 * step, -step, step, 2 * step)), strict=True)
    for found, expected in ((jnp.vdot(first, direction), values), (second, firsts)):
        by_differences = (8 * (expected[2] - expected[1]) - (expected[3] - expected[0])) / (12 * step)
        # Rounding, 1e-16 / step of a value, and truncation, step⁴ times a fifth derivative.
        assert jnp.abs(found - by_differences).max() < 1e-8 * jnp.abs(by_differences).max()
    _, slopes, virial = unravel(first)
    return value, -slopes, -virial
