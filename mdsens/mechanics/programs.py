"""The compiled programs that a potential is part of: its energy with all slopes, its second derivatives, its parameters' slopes.

Everything else that an equilibrium and its derivatives need is algebra of what these return, and compiles nothing. Structures
are filled up with atoms that have no neighbours, so that one of about the same size finds the programs again.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from mdsens.common.compilation import planned_compilation
from mdsens.common.modules import with_fields
from mdsens.potentials.base import Potential, is_local, sound_stiffness, total_energy
from mdsens.potentials.forms.neighbor_vectors import pair_list
from mdsens.potentials.forms.stored_stiffness import LocalStiffness
from mdsens.structures.neighbors.neighbor_list import Neighbors, filled, rounded_capacity, widen
from mdsens.structures.system import System

LEAST_BUCKET = 8
"""Atoms to a multiple of which the smallest structures are filled up."""

BUCKETS = 8
"""Counts of atoms between one power of two and the next: a structure grows by an eighth at most."""

FILLED_LIMIT = 2000
"""Atoms beyond which a structure stays as it is: there the arithmetic weighs more than the compiler."""

TOGETHER = 16
"""Directions in the space of parameters up to which slopes change along all of them together."""

MAX_WIDENING = 1.5
"""Places of a list, as a multiple of those that it needs, up to which it is widened to find a program again."""

LEAST_CAPACITY, WIDENED_LIMIT = 8, 500
"""Places that a list has at least, in structures of so many atoms at most, where one program more weighs more than it does."""

_capacities: dict[Any, set[int]] = {}
"""The numbers of places of lists for which programs were compiled, by everything else that they depend on."""


class Slopes(NamedTuple):
    """The energy of a structure and its derivatives.

    Attributes:
        energy: U [eV].
        positions: ∂U/∂x `(N, dim)` [eV/Å].
        deformation: ∂U/∂F at F = 1, for x → x F and cell → cell F, `(dim, dim)` [eV]; None where it was not asked for.
    """

    energy: Any
    positions: Any
    deformation: Any


def energy_and_slopes(system: System, potential: Potential, *, deforms: bool) -> Slopes:
    """Return the energy and its slopes from `system.neighbors` as it is [host]; NaN where the list is too short.

    Args:
        deforms: whether the cell does.
    """
    n = len(system)
    whole, potential = _prepared(system, potential)
    energy, positions, deformation = _energy_and_slopes(whole, potential, _deforms(whole, system, deforms))
    return Slopes(float(energy), np.asarray(positions)[:n], np.asarray(deformation) if deforms else None)


def second_derivatives(system: System, potential: Potential) -> tuple[LocalStiffness, Neighbors]:
    """Return `(potentials.base.sound_stiffness of a structure, the list that it belongs to)` [host].

    The list may have more places than that of the structure.
    """
    whole, potential = _prepared(system, potential)
    stored: LocalStiffness = _second_derivatives(whole, potential)
    neighbors = pair_list(system)
    if whole is not system:
        n = len(system)
        stored = jax.tree.map(lambda leaf: np.asarray(leaf)[..., :n], stored)
        neighbors = widen(neighbors, len(pair_list(whole).atom))
    return stored, neighbors


def second_derivatives_along(
    system: System,
    potential: Potential,
    displacement: Float[np.ndarray, "atoms dim"],
    cell_change: Float[np.ndarray, "dim dim"],
    direction: Potential,
) -> LocalStiffness:
    """Return the derivative of what `second_derivatives` gives, on its list, along one direction of everything together [host].

    Args:
        displacement, cell_change: the changes of positions and cell [Å].
        direction: that of the potential.
    """
    whole, potential = _prepared(system, potential)
    n = len(system)
    moved = np.pad(displacement, ((0, len(whole) - n), (0, 0)))
    stored: LocalStiffness = _second_derivatives_along(whole, potential, moved, cell_change, direction)
    return jax.tree.map(lambda leaf: np.asarray(leaf)[..., :n], stored)  # type: ignore[no-any-return]


def slopes_along(system: System, potential: Potential, directions: Float[np.ndarray, "k parameters"], *, deforms: bool) -> Slopes:
    """Return the derivatives of the energy and its slopes along directions in the space of all parameters [host].

    They are in the order of the directions, whose number is part of what is compiled.
    """
    n = len(system)
    directions = np.asarray(directions, system.positions.dtype)
    whole, potential = _prepared(system, potential)
    energy, positions, deformation = _slopes_along(whole, potential, directions, _deforms(whole, system, deforms))
    return Slopes(np.asarray(energy), np.asarray(positions)[:, :n], np.asarray(deformation) if deforms else None)


def slopes_of_work(
    system: System,
    potential: Potential,
    displacements: Float[np.ndarray, "k atoms dim"],
    deformations: Float[np.ndarray, "k dim dim"] | None,
) -> Float[np.ndarray, "k parameters"]:
    """Return the derivatives of the energy's change by several motions in all parameters, ∂/∂θ ⟨slopes, motion⟩ [host].

    For one motion that costs less than the derivatives of all slopes.

    Args:
        deformations: of positions and cell, δF at F = 1; None without.
    """
    whole, potential = _prepared(system, potential)
    moved = np.pad(displacements, ((0, 0), (0, len(whole) - len(system)), (0, 0)))
    motions = jax.tree.map(lambda part: part.astype(system.positions.dtype), (moved, deformations))
    return np.asarray(_slopes_of_work(whole, potential, *motions))


def traced_slopes(system: System, potential: Potential, *, deforms: bool) -> Slopes:
    """Return what `energy_and_slopes` does, inside a traced function."""
    energy, slopes = jax.value_and_grad(_energy, (0, 1))(*_place(system, deforms), system, potential)
    return Slopes(energy, *slopes)


def _deforms(whole: System, system: System, wanted: bool) -> bool:
    """Return whether the cell deforms in a program: where small structures are filled up, one serves free and fixed cells.

    In larger ones that would cost more than it saves.
    """
    return wanted or (whole is not system and system.cell is not None and len(system) <= WIDENED_LIMIT)


@eqx.filter_jit
def _energy_and_slopes(system: System, potential: Potential, deforms: bool) -> Slopes:
    return traced_slopes(system, potential, deforms=deforms)


@eqx.filter_jit
def _second_derivatives(system: System, potential: Potential) -> LocalStiffness:
    return sound_stiffness(potential, system)


@eqx.filter_jit
def _second_derivatives_along(
    system: System, potential: Potential, displacement: np.ndarray, cell_change: np.ndarray, direction: Potential
) -> LocalStiffness:
    def stiffness(positions: Array, cell: Array, potential: Potential) -> LocalStiffness:
        return sound_stiffness(potential, with_fields(system, positions=positions, cell=cell))

    changes = jnp.asarray(displacement), jnp.asarray(cell_change), direction
    return jax.jvp(stiffness, (system.positions, system.cell, potential), changes)[1]  # type: ignore[no-any-return]


@eqx.filter_jit
def _slopes_along(system: System, potential: Potential, directions: np.ndarray, deforms: bool) -> Slopes:
    unravel = ravel_pytree(potential)[1]
    slopes = lambda theta: traced_slopes(system, theta, deforms=deforms)  # noqa: E731
    if len(directions) <= TOGETHER:
        return jax.vmap(lambda direction: jax.jvp(slopes, (potential,), (unravel(direction),))[1])(jnp.asarray(directions))
    # One after the other: together they would not fit into the cache.
    along = jax.linearize(slopes, potential)[1]
    return jax.lax.map(lambda direction: along(unravel(direction)), jnp.asarray(directions))


@eqx.filter_jit
def _slopes_of_work(system: System, potential: Potential, displacements: np.ndarray, deformations: np.ndarray | None) -> Array:
    place = _place(system, deformations is not None)

    def slopes(motion: Any) -> Array:
        def work(theta: Potential) -> Array:
            change = jax.jvp(lambda x, deformation: _energy(x, deformation, system, theta), place, motion)[1]
            assert isinstance(change, Array)
            return change

        return ravel_pytree(jax.grad(work)(potential))[0]

    # Without a cell that deforms, both None stand for nothing.
    return jax.lax.map(slopes, (displacements, deformations))  # type: ignore[no-any-return]


def _place(system: System, deforms: bool) -> tuple[Array, Array | None]:
    return system.positions, jnp.eye(system.dim, dtype=system.positions.dtype) if deforms else None


def _energy(positions: Array, deformation: Array | None, system: System, potential: Potential) -> Array:
    system = system.with_positions(positions)
    return total_energy(potential, system if deformation is None else system.deformed(deformation))


def _prepared(system: System, potential: Potential) -> tuple[System, Potential]:
    return (fill_up(system, potential) if can_fill(system, potential) else system), potential


def fill_up(system: System, potential: Potential, room: float = 1.0) -> System:
    """Return a structure filled up to one of few shapes [host]; only where `can_fill` allows it.

    Args:
        room: places of the list, as a multiple of those that it needs, for lists that will follow it on the way.
    """
    system = fill(system, bucket(len(system)))
    neighbors = system.neighbors
    assert isinstance(neighbors, Neighbors)
    if neighbors.shorter:
        return system
    needed, kind = neighbors.atom.shape[0], (len(system), system.labels, system.pbc, jax.tree.structure(potential))
    needed = max(needed, LEAST_CAPACITY if len(system) <= WIDENED_LIMIT else 0)
    known = _capacities.setdefault(kind, set()) if planned_compilation() is None else set()
    fitting = (other for other in known if needed <= other <= MAX_WIDENING * needed)
    capacity = min(fitting, default=needed if room == 1.0 else rounded_capacity(round(room * needed)))
    known.add(capacity)
    return with_fields(system, neighbors=widen(neighbors, capacity))


def can_fill(system: System, potential: Potential) -> bool:
    """Return whether a structure may be filled up with atoms that have no neighbours."""
    n, neighbors = len(system), system.neighbors
    if n > FILLED_LIMIT or not isinstance(neighbors, Neighbors) or not np.isfinite(neighbors.radius):
        return False
    return ignores_strangers(potential, n)


def ignores_strangers(potential: Potential, n: int) -> bool:
    """Return whether further atoms without neighbours change nothing for n atoms: they may in an energy that is no sum over
    neighbours, in one of the user's own, and where each atom has a parameter.
    """
    if not is_local(potential):
        return False
    parts = potential.parts()
    methods = (getattr(type(part), name) for part in parts for name in ("total", "atom_energies"))
    if not all(method.__module__.startswith("mdsens.") for method in methods):
        return False
    return not any(np.shape(leaf)[:1] == (n,) for leaf in jax.tree.leaves(parts))


def bucket(n: int) -> int:
    """Return the count of atoms to which a structure of n is filled up."""
    step = max(LEAST_BUCKET, 2 ** (n.bit_length() - 1) // BUCKETS)
    return -(-n // step) * step


def fill(system: System, count: int) -> System:
    """Return a structure with more atoms, which are frozen and see nobody [host]; its list, if it has one, with them."""
    more = count - len(system)
    assert system.neighbors is None or isinstance(system.neighbors, Neighbors)
    return with_fields(
        system,
        held=False,
        positions=np.pad(np.asarray(system.positions), ((0, more), (0, 0))),
        species=np.pad(np.asarray(system.species), (0, more)),
        masses=np.pad(np.asarray(system.masses), (0, more), constant_values=1.0),
        frozen=np.pad(np.asarray(system.frozen), (0, more), constant_values=True),
        neighbors=system.neighbors and filled(system.neighbors, count),
    )
