"""What `strained_bonds` does in a traced function, by NumPy, and its derivative [host].

Second derivatives of the energy in strains and displacements are a polynomial of what is stored, so that one evaluation with a
tiny imaginary step along a direction gives the derivative to all digits.

W. Squire, G. Trapp, SIAM Rev. 40, 110 (1998), doi:10.1137/S003614459631241X.
"""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Inexact

from mdsens.mechanics.assembly import Bonds, bond_vectors, onto_atoms
from mdsens.potentials.forms.stored_stiffness import LocalStiffness, SingleStiffness, terms_of
from mdsens.structures.neighbors.neighbor_list import Neighbors

IMAGINARY_STEP = 1e-100

Displacements = Inexact[np.ndarray, "k atoms dim"]
Strains = Float[np.ndarray, "k dim dim"]


class StoredState(NamedTuple):
    """A structure, the slopes of its energy and its stored second derivatives; or changes of these.

    Attributes:
        positions: `(N, dim)` [Å].
        cell: `(dim, dim)` [Å]; None without.
        slopes: ∂U/∂x, `(N, dim)` [eV/Å].
        stiffness: the second derivatives of the atoms' energies.
    """

    positions: Inexact[np.ndarray, "atoms dim"]
    cell: Inexact[np.ndarray, "dim dim"] | None
    slopes: Inexact[np.ndarray, "atoms dim"]
    stiffness: LocalStiffness


def strain_form(state: StoredState, neighbors: Neighbors, displacements: Displacements, strains: Strains) -> np.ndarray:
    """Return the second derivatives of the energy between k directions, each a displacement with a strain, `(k, k)` [eV]."""
    turned = np.einsum("ia,kib,lab->kl", state.slopes, displacements, strains)
    form = turned + turned.T
    for stiffness, listed in terms_of(state.stiffness, neighbors):
        d = bond_vectors(state.positions, state.cell, listed)
        moved = [
            bond_vectors(u, None, listed) + np.einsum("cpi,cd->dpi", d, strain)
            for u, strain in zip(displacements, strains, strict=True)
        ]
        answers = [_response(stiffness, bonds) for bonds in moved]
        form = form + [[np.sum(bonds * answer) for answer in answers] for bonds in moved]
    return 0.5 * (form + form.T)


def _response(stiffness: SingleStiffness, bonds: Bonds) -> np.ndarray:
    return np.asarray(stiffness.response(bonds))  # type: ignore[arg-type]  # of NumPy as well


def strain_form_along(
    state: StoredState, change: StoredState, neighbors: Neighbors, displacements: Displacements, strains: Strains
) -> np.ndarray:
    """Return the derivative of `strain_form` along a change of the state, the directions as they are."""
    beside = jax.tree.map(lambda value, step: np.asarray(value) + 1j * IMAGINARY_STEP * np.asarray(step), state, change)
    return strain_form(beside, neighbors, displacements, strains).imag / IMAGINARY_STEP


def slopes_along_motion(
    state: StoredState,
    neighbors: Neighbors,
    deformation: Float[np.ndarray, "dim dim"] | None,
    displacement: Float[np.ndarray, "atoms dim"],
    cell_change: Float[np.ndarray, "dim dim"] | None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the changes of `(∂U/∂x, ∂U/∂F at F = 1)` by a motion of atoms and cell.

    With ∂U/∂F = Σ d ⊗ g, g = ∂U/∂d, and a motion δd = d E + u_k - u_i, where u are displacements after the strain E of the cell,
    the change is Σ d ⊗ δg + Eᵀ ∂U/∂F + Σ_i u_i ⊗ ∂U/∂x_i.

    Args:
        deformation: ∂U/∂F; None without a cell, which has no change either.
    """
    by_atoms, by_deformation = np.zeros_like(displacement), None
    if state.cell is not None and cell_change is not None and deformation is not None:
        strain = np.linalg.solve(state.cell, cell_change)
        by_deformation = strain.T @ deformation + (displacement - state.positions @ strain).T @ state.slopes
    for stiffness, listed in terms_of(state.stiffness, neighbors):
        d = bond_vectors(state.positions, state.cell, listed)
        answer = _response(stiffness, bond_vectors(displacement, cell_change, listed))
        by_atoms = by_atoms + onto_atoms(answer, listed)
        if by_deformation is not None:
            by_deformation = by_deformation + np.einsum("cpi,dpi->cd", d, answer)
    return by_atoms, by_deformation
