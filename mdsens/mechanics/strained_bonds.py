"""The energy's second derivatives in strains and displacements, by those that are stored; pure JAX.

Energies see the vectors d between atoms, d = (x_k - x_i + u_k - u_i)(1 + ε). So in two directions (u, ε) and (v, η)

    D²U = Σ δd · ∂²U/∂d∂d · δd' + Σ_i ∂U/∂x_i · (u_i η + v_i ε),        δd = u_k - u_i + d ε.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mdsens.mechanics.programs import Slopes, traced_slopes
from mdsens.potentials.base import Potential, sound_stiffness
from mdsens.potentials.forms.neighbor_vectors import pair_list
from mdsens.potentials.forms.stored_stiffness import LocalStiffness, SingleStiffness, terms_of
from mdsens.structures.neighbors.neighbor_list import Neighbors
from mdsens.structures.neighbors.sums_over_neighbors import at_neighbors, from_neighbors
from mdsens.structures.neighbors.vectors import bonds
from mdsens.structures.system import System

Displacements = Float[Array, "k atoms dim"]
Strains = Float[Array, "k dim dim"]


class StoredDerivatives(NamedTuple):
    """First and second derivatives of a structure's energy, with the list that the second are stored for."""

    slopes: Slopes
    stiffness: LocalStiffness
    neighbors: Neighbors


def stored_derivatives(system: System, potential: Potential) -> StoredDerivatives:
    """Return the derivatives of a structure, from `system.neighbors` as it is."""
    slopes = traced_slopes(system, potential, deforms=True)
    return StoredDerivatives(slopes, sound_stiffness(potential, system), pair_list(system))


def strain_form(system: System, derivatives: StoredDerivatives, displacements: Displacements, strains: Strains) -> Array:
    """Return the second derivatives of the energy between k directions, each a displacement with a strain, `(k, k)` [eV]."""
    form = jnp.zeros((len(strains), len(strains)), system.positions.dtype)
    for stiffness, neighbors in terms_of(derivatives.stiffness, derivatives.neighbors):
        moved = jax.vmap(lambda u, strain, listed=neighbors: _moved(system, listed, u, strain))(displacements, strains)
        form = form + jnp.einsum("kcpi,lcpi->kl", moved, jax.vmap(stiffness.response)(moved))
    turned = jnp.einsum("ia,kib,lab->kl", derivatives.slopes.positions, displacements, strains)
    return form + turned + turned.T


def strain_slopes(system: System, derivatives: StoredDerivatives, strains: Strains) -> Displacements:
    """Return ∂²U/∂u∂ε, the change of the energy's slopes in positions by each strain [eV/Å]."""
    slopes = jnp.einsum("ia,kab->kib", derivatives.slopes.positions, strains)
    for stiffness, neighbors in terms_of(derivatives.stiffness, derivatives.neighbors):

        def of_strain(strain: Array, stiffness: SingleStiffness = stiffness, listed: Neighbors = neighbors) -> Array:
            answer = stiffness.response(_moved(system, listed, jnp.zeros_like(system.positions), strain))
            return (from_neighbors(answer, listed) - jnp.sum(answer, axis=1)).T

        slopes = slopes + jax.vmap(of_strain)(strains)
    return slopes


def _moved(system: System, neighbors: Neighbors, u: Float[Array, "atoms dim"], strain: Float[Array, "dim dim"]) -> Array:
    """Return the changes of the vectors to neighbours; zero in unused places."""
    d = jnp.where(neighbors.used, bonds(system.positions, system.cell, neighbors), 0.0)
    among = at_neighbors(u.T, neighbors) - jnp.where(neighbors.used, u.T[:, None], 0.0)
    return among + jnp.einsum("cpi,cd->dpi", d, strain)
