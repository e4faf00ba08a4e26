"""The condition F of an equilibrium and its slopes by parameters, as NumPy's algebra of what the compiled programs return [host].

Where constraints have multipliers the condition is compiled as it is.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float

from mdsens.common.modules import with_fields
from mdsens.mechanics import programs
from mdsens.mechanics.forces import gradient
from mdsens.mechanics.landscape import Landscape, LandscapeLike
from mdsens.mechanics.programs import Slopes, energy_and_slopes, slopes_along
from mdsens.mechanics.unknown import CellFreedom, Reference, Unknown, as_unknown
from mdsens.structures.system import System


class Evaluation(NamedTuple):
    """The condition at one state.

    Attributes:
        residual: F, like z.
        norm: largest force on an atom or a component of the strain [eV/Å], or violation of a constraint.
    """

    residual: Any
    norm: float


def evaluate(z: Unknown | Array, landscape: LandscapeLike) -> Evaluation:
    """Return F(z) and its norm."""
    reference, potential = landscape.reference, landscape.potential
    if has_multipliers(reference):
        residual: Any = jax.tree.map(np.asarray, _gradient(z, Landscape(reference, potential)))
    else:
        slopes = energy_and_slopes(place(z, reference), potential, deforms=reference.freedom is not None)
        residual = condition_from(slopes, z, reference)
    return Evaluation(residual, norm_of(residual))


def condition_from(slopes: Slopes, z: Unknown | Array, reference: Reference) -> Any:
    """Return F(z), where constraints have no multipliers, from the energy's slopes at z."""
    return _with_load(by_unknown(slopes, z, reference), z, reference)


_gradient = eqx.filter_jit(gradient)


def norm_of(residual: Any) -> float:
    """Return what `equilibrium.descent.force_norm` does."""
    parts = as_unknown(residual)
    norm = np.sqrt(np.max(np.sum(np.asarray(parts.positions) ** 2, axis=-1)))
    for part in (parts.strain, parts.multipliers):
        norm = norm if part is None else np.maximum(norm, np.max(np.abs(np.asarray(part)), initial=0.0))
    return float(norm)


def has_multipliers(reference: Reference) -> bool:
    """Return whether constraints have multipliers, rather than hold components still only."""
    return reference.constraints is not None and reference.constraints.count > 0


def place(z: Unknown | Array, reference: Reference) -> System:
    """Return `reference.place(z)`, by NumPy."""
    positions, system, freedom = as_unknown(z).positions, reference.system, reference.freedom
    if freedom is None:
        return with_fields(system, positions=positions)
    deformation, dtype = deformation_at(z, freedom), positions.dtype
    moved = ((np.asarray(part) @ deformation).astype(dtype) for part in (positions, system.cell))
    positions, cell = jax.device_put(tuple(moved))
    return with_fields(system, positions=positions, cell=cell)


def deformation_at(z: Unknown | Array, freedom: CellFreedom) -> np.ndarray:
    """Return F at z, by NumPy."""
    strain, directions = np.asarray(as_unknown(z).strain), np.asarray(freedom.directions)
    return np.eye(directions.shape[-1]) + np.tensordot(strain, directions, 1) / float(freedom.length)


def by_unknown(slopes: Slopes, z: Unknown | Array, reference: Reference) -> Any:
    """Return the derivatives of the energy in z from those in positions and the deformation, zero where held.

    Slopes may have further axes in front.
    """
    freedom, by_positions = reference.freedom, np.asarray(slopes.positions)
    held = np.asarray(reference.held)
    if freedom is None:
        return np.where(held, 0.0, by_positions)
    deformation = deformation_at(z, freedom)
    # The program's deformation comes after F: ∂U/∂F = F⁻ᵀ ∂U/∂F'.
    by_strain = _along_directions(np.linalg.inv(deformation).T @ slopes.deformation, freedom)
    moved: Any = np.where(held, 0.0, by_positions @ deformation.T)
    return Unknown(moved, by_strain)


def _with_load(slope: Any, z: Unknown | Array, reference: Reference) -> Any:
    """Add what pressure and stress do: p ∂V/∂s - V F⁻¹τ."""
    freedom = reference.freedom
    if freedom is None:
        return slope
    assert isinstance(slope, Unknown) and slope.strain is not None
    deformation = deformation_at(z, freedom)
    inverse, cell = np.linalg.inv(deformation), np.asarray(reference.system.cell)
    volume = abs(np.linalg.det(cell)) * np.linalg.det(deformation)
    load = float(freedom.pressure) * inverse.T
    if freedom.tension is not None:
        load = load - (inverse @ np.asarray(freedom.tension)).T
    return slope._replace(strain=slope.strain + volume * _along_directions(load, freedom))


def _along_directions(tensor: Float[np.ndarray, "*lead dim dim"], freedom: CellFreedom) -> Any:
    return np.einsum("...ab,kab->...k", tensor, np.asarray(freedom.directions)) / float(freedom.length)


def slopes_of_work(
    z: Unknown | Array, landscape: LandscapeLike, rows: Float[np.ndarray, "k n"]
) -> Float[np.ndarray, "k parameters"]:
    """Return ∂⟨F, v⟩/∂θ in all parameters for rows v, raveled as z is."""
    reference, freedom = landscape.reference, landscape.reference.freedom
    held, count = np.asarray(reference.held), len(rows)
    moved = np.where(held, 0.0, rows[:, : held.size].reshape(count, *held.shape))
    deformations = None
    if freedom is not None:
        # The transpose of what `by_unknown` does.
        deformation = deformation_at(z, freedom)
        strains = np.tensordot(rows[:, held.size :], np.asarray(freedom.directions), 1) / float(freedom.length)
        moved, deformations = moved @ deformation, np.linalg.inv(deformation) @ strains
    return programs.slopes_of_work(place(z, reference), landscape.potential, moved, deformations)


def slopes_by_parameters(
    z: Unknown | Array, landscape: LandscapeLike, directions: Float[np.ndarray, "k parameters"]
) -> Float[np.ndarray, "k n"]:
    """Return ∂F/∂θ along directions in the space of all parameters, raveled as z is."""
    reference, potential = landscape.reference, landscape.potential
    count = directions.shape[1]
    # All of a few parameters, whatever is asked for: one program serves every selection of them.
    together = count <= programs.TOGETHER and len(reference.system) <= programs.FILLED_LIMIT
    along = slopes_along(
        place(z, reference), potential, np.eye(count) if together else directions, deforms=reference.freedom is not None
    )
    rows = by_unknown(along, z, reference)
    parts = [rows] if not isinstance(rows, Unknown) else [rows.positions, rows.strain]
    slopes = np.concatenate([part.reshape(len(part), -1) for part in map(np.asarray, parts)], axis=1)
    return directions.astype(slopes.dtype) @ slopes if together else slopes
