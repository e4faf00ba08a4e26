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
from mdsens.common.modules import with_fields
from mdsens.common.units import stress_unit
from mdsens.common.voigt import to_voigt
from mdsens.equilibrium.descent import with_tight_list
from mdsens.mechanics.assembly import Listed
from mdsens.mechanics.hessian_operator import is_stored
from mdsens.mechanics.programs import Slopes, energy_and_slopes, second_derivatives, slopes_along
from mdsens.mechanics.strain_algebra import StoredState, slopes_along_motion
from mdsens.mechanics.unknown import Reference
from mdsens.potentials.base import Potential
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
    """A structure with its energy's derivatives, each of which is computed when it is first asked for [host].

    Args:
        system: with the list that is used, as it is.
        listed: the stored second derivatives, where they are known already.
    """

    def __init__(self, system: System, potential: Potential, listed: Listed | None = None) -> None:
        self.system, self.potential, self._listed = system, potential, listed

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
    def listed(self) -> Listed:
        """The stored second derivatives, with their list."""
        return self._listed or Listed(*second_derivatives(self.system, self.potential))

    @property
    def stored(self) -> StoredState:
        """All that is stored of the structure."""
        cell = None if self.system.cell is None else np.asarray(self.system.cell)
        return StoredState(np.asarray(self.system.positions), cell, self.slopes.positions, self.listed.stiffness)

    def energy_along(self, motion: Motion) -> np.ndarray:
        """Return the energy's change [eV]."""
        strain, u = self._strain(motion)
        change = np.vdot(self.slopes.positions, u) + motion.theta @ self.by_parameters.energy
        return change if strain is None else change + np.vdot(self.slopes.deformation, strain)  # type: ignore[no-any-return]

    def slopes_along(self, motion: Motion) -> tuple[np.ndarray, Any]:
        """Return the changes of `(∂U/∂x, ∂U/∂F)`; the latter is None without a cell."""
        by_atoms, by_deformation = slopes_along_motion(
            self.stored, self.listed.neighbors, self.slopes.deformation, motion.displacement, motion.cell_change
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


def differentiated_from_values(usual: Any, state_of: Any, value: Any, along: Any) -> Any:
    """Return a function of a system and a potential that is differentiated from values, where these are given.

    Args:
        usual: the function; options have names and can be hashed.
        state_of: with the same arguments, what value and derivative are made of; None where they are not made of it.
        value, along: functions of that, and of that and a motion.
    """
    differentiable = eqx.filter_custom_jvp(usual)

    @differentiable.def_jvp
    def _(primals: Any, tangents: Any, **options: Any) -> tuple[Array, Array]:
        (system, potential), known, at = primals, by_values.known_values(), None
        if known is not None and is_concrete(system.positions, system.cell, potential):
            # Lists follow from the rest.
            arguments = with_fields(system, neighbors=None), potential
            at = known.at((usual, *options.items()), arguments, lambda: state_of(system, potential, **options))
        if at is None:
            return eqx.filter_jvp(lambda *both: usual(*both, **options), primals, tangents)  # type: ignore[no-any-return]
        return jnp.asarray(value(at)), jnp.asarray(along(at, motion_along(primals, tangents)))

    return differentiable


def _of_potential(method: str) -> Any:
    """Return a method of potentials as a function, which is differentiated as ever."""

    def usual(system: System, potential: Potential) -> Array:
        with by_values.giving_values(None):
            return getattr(potential, method)(system)  # type: ignore[no-any-return]

    return usual


def _state(system: System, potential: Potential) -> State | None:
    """Return a state; None where no second derivatives are stored."""
    listed = with_tight_list(system, potential)
    stored = is_stored(Reference(listed, None), potential)  # type: ignore[arg-type]  # no rigid motions are asked for
    return State(listed, potential) if stored else None


_energy = differentiated_from_values(_of_potential("energy"), _state, lambda at: at.slopes.energy, State.energy_along)
_forces = differentiated_from_values(
    _of_potential("forces"), _state, lambda at: -at.slopes.positions, lambda at, motion: -at.slopes_along(motion)[0]
)
_stress = differentiated_from_values(_of_potential("stress"), _state, State.stress, State.stress_along)
