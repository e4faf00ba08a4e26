"""Energies, forces and stresses that are differentiated from values [host].

Along displacements δx, a change δh of the cell and a direction δθ of the parameters the energy changes by

    δU = Σ_i ∂U/∂x_i · u_i + ∂U/∂F : E + ∂U/∂θ · δθ,        E = h⁻¹ δh,  u = δx - x E,

and the slopes by stored second derivatives, as `mechanics.strain_algebra` says.
"""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mdsens.common import by_values
from mdsens.common.units import stress_unit
from mdsens.common.voigt import to_voigt
from mdsens.equilibrium.descent import with_tight_list
from mdsens.mechanics.hessian_operator import is_stored
from mdsens.mechanics.programs import Slopes, energy_and_slopes, second_derivatives, slopes_along
from mdsens.mechanics.strain_algebra import StoredState, slopes_along_motion
from mdsens.mechanics.unknown import Reference
from mdsens.potentials.base import Potential
from mdsens.structures.neighbors.neighbor_list import Neighbors
from mdsens.structures.system import System, is_concrete


class Motion(NamedTuple):
    """A direction in which a state changes: displacements, the cell's change (None without a cell), that of θ raveled."""

    displacement: np.ndarray
    cell_change: np.ndarray | None
    theta: np.ndarray


def motion_along(primals: tuple[System, Potential], tangents: Any) -> Motion:
    """Return the direction that tangents of a system and a potential say, whose leaves are None where nothing changes."""
    (system, potential), (moved, turned) = primals, tangents
    steps = jax.tree.structure(potential).flatten_up_to(turned)  # type: ignore[attr-defined]  # of jax's stubs
    leaves = zip(steps, jax.tree.leaves(potential), strict=True)
    return Motion(
        _step(moved.positions, system.positions),
        None if system.cell is None else _step(moved.cell, system.cell),
        np.concatenate([_step(step, leaf).ravel() for step, leaf in leaves]),
    )


def _step(step: Any, value: Any) -> np.ndarray:
    return np.zeros(np.shape(value)) if step is None else np.asarray(step)


class State:
    """A structure with its energy's derivatives, each of which is computed when it is first asked for [host]."""

    def __init__(self, system: System, potential: Potential) -> None:
        self.system, self.potential = with_tight_list(system, potential), potential

    @functools.cached_property
    def slopes(self) -> Slopes:
        """The energy and its slopes."""
        return energy_and_slopes(self.system, self.potential, deforms=self.system.cell is not None)

    @functools.cached_property
    def by_parameters(self) -> Slopes:
        """Their derivatives in each parameter."""
        count = sum(leaf.size for leaf in jax.tree.leaves(self.potential))
        return slopes_along(self.system, self.potential, np.eye(count), deforms=self.system.cell is not None)

    @functools.cached_property
    def stored(self) -> tuple[StoredState, Neighbors]:
        """The stored second derivatives, and the list that they belong to."""
        stiffness, neighbors = second_derivatives(self.system, self.potential)
        cell = None if self.system.cell is None else np.asarray(self.system.cell)
        return StoredState(np.asarray(self.system.positions), cell, self.slopes.positions, stiffness), neighbors

    def energy_along(self, motion: Motion) -> np.ndarray:
        """Return the energy's change [eV]."""
        strain, u = self._strain(motion)
        change = np.vdot(self.slopes.positions, u) + motion.theta @ self.by_parameters.energy
        return change if strain is None else change + np.vdot(self.slopes.deformation, strain)  # type: ignore[no-any-return]

    def slopes_along(self, motion: Motion) -> tuple[np.ndarray, Any]:
        """Return the changes of `(∂U/∂x, ∂U/∂F)`; the latter is None without a cell."""
        by_atoms, by_deformation = slopes_along_motion(
            *self.stored, self.slopes.deformation, motion.displacement, motion.cell_change
        )
        by_atoms = by_atoms + np.tensordot(motion.theta, self.by_parameters.positions, 1)
        if by_deformation is None:
            return by_atoms, None
        return by_atoms, by_deformation + np.tensordot(motion.theta, self.by_parameters.deformation, 1)

    def stress(self) -> np.ndarray:
        """Return the stress in Voigt's order."""
        return np.asarray(to_voigt(_symmetric(self.slopes.deformation))) * self._per_volume()

    def stress_along(self, motion: Motion) -> np.ndarray:
        """Return the stress's change."""
        strain, _ = self._strain(motion)
        change = _symmetric(self.slopes_along(motion)[1]) - np.trace(strain) * _symmetric(self.slopes.deformation)
        return np.asarray(to_voigt(change)) * self._per_volume()

    def _per_volume(self) -> float:
        return stress_unit(self.system.dim) / abs(float(np.linalg.det(np.asarray(self.system.cell))))

    def _strain(self, motion: Motion) -> tuple[Any, np.ndarray]:
        if motion.cell_change is None:
            return None, motion.displacement
        strain = np.linalg.solve(np.asarray(self.system.cell), motion.cell_change)
        return strain, motion.displacement - np.asarray(self.system.positions) @ strain


def _symmetric(tensor: Any) -> Any:
    return 0.5 * (tensor + tensor.T)


class KnownEnergies:
    """`by_values.Energies` of potentials that store their second derivatives; others are differentiated as ever."""

    def energy(self, potential: Potential, system: System) -> Array:
        return _energy(system, potential)  # type: ignore[no-any-return]

    def forces(self, potential: Potential, system: System) -> Array:
        return _forces(system, potential)  # type: ignore[no-any-return]

    def stress(self, potential: Potential, system: System) -> Array:
        return _stress(system, potential)  # type: ignore[no-any-return]


def _by_state(method: str, value: Any, along: Any) -> Any:
    """Return a function of a system and a potential that is differentiated by a `State`.

    Args:
        method: of the potential, which does it as ever.
        value, along: functions of a state, and of a state and a motion.
    """

    def usual(system: System, potential: Potential) -> Array:
        with by_values.giving_values(None):
            return getattr(potential, method)(system)  # type: ignore[no-any-return]

    differentiable = eqx.filter_custom_jvp(usual)

    @differentiable.def_jvp
    def _(primals: Any, tangents: Any) -> tuple[Array, Array]:
        (system, potential), known = primals, by_values.known_values()
        if known is None or not is_concrete(system.positions, system.cell, potential):
            return eqx.filter_jvp(usual, primals, tangents)  # type: ignore[no-any-return]
        at = known.at("energies", (system.positions, system.cell, potential), lambda: _state(system, potential))
        if at is None:
            return eqx.filter_jvp(usual, primals, tangents)  # type: ignore[no-any-return]
        motion = motion_along(primals, tangents)
        return jnp.asarray(value(at)), jnp.asarray(along(at, motion))

    return differentiable


def _state(system: System, potential: Potential) -> State | None:
    """Return a state; None where no second derivatives are stored."""
    state = State(system, potential)
    return state if is_stored(Reference(state.system, None), potential) else None  # type: ignore[arg-type]  # no motions asked for


_energy = _by_state("energy", lambda at: at.slopes.energy, State.energy_along)
_forces = _by_state("forces", lambda at: -at.slopes.positions, lambda at, motion: -at.slopes_along(motion)[0])
_stress = _by_state("stress", State.stress, State.stress_along)
