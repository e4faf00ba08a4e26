"""The response of an energy to strains, and its derivative, by NumPy's algebra of stored second derivatives [host].

See `strain_response` for the formulas.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
import scipy.linalg
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from mdsens.common.modules import with_fields
from mdsens.common.voigt import unit_strains
from mdsens.derivatives.known_energies import Motion, State
from mdsens.mechanics.assembly import Listed, assemble
from mdsens.mechanics.landscape import Landscape
from mdsens.mechanics.programs import Slopes, second_derivatives_along
from mdsens.mechanics.softest_modes import is_assembled
from mdsens.mechanics.strain_algebra import StoredState, strain_form, strain_form_along
from mdsens.mechanics.strained_bonds import StoredDerivatives
from mdsens.mechanics.unknown import CellFreedom, Reference, reference_at
from mdsens.observables.strain_response import StrainResponse, by_definition, per_volume, stored_displacements
from mdsens.potentials.base import Potential
from mdsens.structures.system import System


class KnownStrains(NamedTuple):
    """A structure with its energy's derivatives, and its atoms' displacements by strains.

    Attributes:
        state: the structure.
        displacements: λ, `(voigt, N, dim)`; NaN where the solve failed.
        curvature: ∂²U/∂ε_k∂ε_l, `(voigt, voigt)` [eV].
    """

    state: State
    displacements: np.ndarray
    curvature: np.ndarray


def known_strains(system: System, potential: Potential, relaxed: bool) -> KnownStrains:
    """Return what programs of a relaxation and a solve say of a structure, from `system.neighbors` as it is."""
    strains = np.asarray(unit_strains(system.dim))
    unit = CellFreedom(strains, np.ones(()), np.zeros(()), None)  # type: ignore[arg-type]  # of NumPy
    reference = reference_at(system, unit)
    if relaxed and is_assembled(reference, potential):
        listed, displacements = _assembled_displacements(reference, potential)
        state = State(system, potential, listed)
    else:
        state = State(system, potential)
        derivatives = StoredDerivatives(state.slopes, *state.listed)
        displacements = np.asarray(_displacements(system, derivatives, relaxed))
    curvature = strain_form(state.stored, state.listed.neighbors, displacements, strains)
    return KnownStrains(state, displacements, curvature)


_displacements: Any = eqx.filter_jit(stored_displacements)


def _assembled_displacements(reference: Reference, potential: Potential) -> tuple[Listed, np.ndarray]:
    """Return λ by the matrix of all second derivatives; NaN where it is not positive between atoms."""
    (matrix, stored), size = assemble(reference.start, Landscape(reference, potential)), reference.system.positions.size
    acting = np.flatnonzero(np.diff(matrix.indptr)[:size])
    active = np.zeros(reference.held.shape, bool)
    active.ravel()[acting] = True
    basis = reference.motions.basis(reference.system.positions, active, np)[acting]
    among, mixed = matrix[acting][:, acting].toarray(), matrix[size:, acting].toarray()
    stiff = np.abs(np.diag(among)).max(initial=0.0)
    mixed = mixed - (mixed @ basis) @ basis.T
    moved = np.zeros((len(mixed), size))
    # Atoms that can only move together cost nothing.
    if len(acting) > basis.shape[1]:
        try:
            factor = scipy.linalg.cho_factor(among + stiff * (basis @ basis.T))
        except np.linalg.LinAlgError:
            moved[:] = np.nan
        else:
            moved[:, acting] = -scipy.linalg.cho_solve(factor, mixed.T).T
    return stored, moved.reshape(-1, *reference.held.shape)


def constants_of(known: KnownStrains, definition: str, relaxed: bool, flat: bool) -> tuple[Array, StrainResponse]:
    """Return elastic constants and the response that they are of."""
    system, potential = known.state.system, known.state.potential
    ranges = np.asarray(potential.ranges)
    return _constants_of(system, ranges, known.state.slopes, known.curvature, definition, relaxed, flat)  # type: ignore[no-any-return]


def constants_along(known: KnownStrains, motion: Motion, definition: str, relaxed: bool, flat: bool) -> Array:
    """Return the derivative of elastic constants along one direction of positions, cell and parameters together."""
    state, (displacement, cell_change, theta) = known.state, motion
    assert cell_change is not None
    direction = ravel_pytree(state.potential)[1](jax.device_put(theta))
    by_atoms, by_deformation = state.slopes_along(motion)
    stiffness = second_derivatives_along(state.system, state.potential, displacement, cell_change, direction)
    change = StoredState(displacement, cell_change, by_atoms, stiffness)
    strains = np.asarray(unit_strains(state.system.dim))
    curvature = strain_form_along(state.stored, change, state.listed.neighbors, known.displacements, strains)
    at = state.system.cell, state.slopes._replace(energy=None), known.curvature
    steps = cell_change, Slopes(None, by_atoms, by_deformation), curvature
    ranges = np.asarray(state.potential.ranges)
    return _constants_along(state.system, ranges, at, steps, definition, relaxed, flat)  # type: ignore[no-any-return]


@eqx.filter_jit
def _constants_of(
    system: System, ranges: Any, slopes: Slopes, curvature: Any, definition: str, relaxed: bool, flat: bool
) -> tuple[Array, StrainResponse]:
    response = per_volume(system, ranges, slopes, curvature, relaxed, flat)
    return by_definition(definition, response.curvature, response.stress, 2 if flat else system.dim), response


@eqx.filter_jit
def _constants_along(system: System, ranges: Any, at: Any, steps: Any, definition: str, relaxed: bool, flat: bool) -> Array:
    def constants(cell: Array, slopes: Slopes, curvature: Array) -> Array:
        return _constants_of(with_fields(system, cell=cell), ranges, slopes, curvature, definition, relaxed, flat)[0]

    return jax.jvp(constants, at, steps)[1]  # type: ignore[no-any-return]
