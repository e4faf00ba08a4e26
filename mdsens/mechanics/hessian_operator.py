"""Products with the derivative A = ∂F/∂z of the condition of an equilibrium, and a preconditioner for it."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from mdsens.mechanics import assembly
from mdsens.mechanics.evaluation import place
from mdsens.mechanics.forces import gradient
from mdsens.mechanics.landscape import Landscape, LandscapeLike
from mdsens.mechanics.preconditioner import TwoLevelPreconditioner, two_level
from mdsens.mechanics.programs import energy_and_slopes, second_derivatives
from mdsens.mechanics.unknown import Reference, Unknown, as_unknown
from mdsens.potentials.base import Potential, gives_stiffness, sound_stiffness
from mdsens.potentials.forms.neighbor_vectors import pair_list
from mdsens.potentials.forms.stored_stiffness import LocalStiffness
from mdsens.potentials.reparameterised import Reparameterised
from mdsens.potentials.sums import Sum
from mdsens.structures.neighbors.neighbor_list import Neighbors
from mdsens.structures.system import System

Operator = Callable[[Array], Array]
"""v ↦ A v on flat vectors."""

STORED_LIMIT = 4 * 10**8
"""Numbers, at most, in stored second derivatives (3.2 GB); beyond, the gradient is linearised."""


def hessian_operator(z: Unknown | Array, landscape: Landscape) -> Operator:
    """Return v ↦ ∂F/∂z v on flat vectors, to be applied many times; pure JAX, differentiable in z and the landscape.

    Second derivatives of the atoms' energies are stored, where the potential gives them and they fit, and a preconditioner
    comes with them if the reference has a grid for it; otherwise F is linearised.
    """
    reference, potential = landscape
    flat, unravel = ravel_pytree(z)
    if not is_stored(reference, potential):
        return jax.linearize(lambda x: ravel_pytree(gradient(unravel(x), landscape))[0], flat)[1]
    system = reference.place(z)
    stiffness = sound_stiffness(potential, system)
    by_strain = None
    if isinstance(z, Unknown) and z.strain is not None:
        directions = jnp.eye(z.strain.size, dtype=z.strain.dtype)
        rest = jax.tree.map(jnp.zeros_like, z)
        along = lambda e: jax.jvp(lambda x: gradient(x, landscape), (z,), (rest._replace(strain=e),))[1]  # noqa: E731
        by_strain = jax.lax.map(along, directions)
    return StoredOperator(z, reference, pair_list(system), stiffness, by_strain)


def stored_operator(z: Unknown | Array, landscape: LandscapeLike) -> "tuple[StoredOperator, Operator | None]":
    """Return `(what hessian_operator does where second derivatives are stored, its preconditioner or None)` [host]."""
    reference, potential = landscape.reference, landscape.potential
    system = place(z, reference)
    stored = assembly.Listed(*second_derivatives(system, potential))
    by_strain = None
    if isinstance(z, Unknown) and z.strain is not None:
        slope = energy_and_slopes(system, potential, deforms=True).positions
        columns, strains = assembly.strain_columns(z, reference, system, stored, slope)
        held = np.asarray(reference.held)
        positions = np.where(held, 0.0, columns.reshape(-1, *held.shape))
        by_strain = z._replace(positions=jnp.asarray(positions), strain=jnp.asarray(strains), multipliers=None)
    operator = StoredOperator(z, reference, stored.neighbors, stored.stiffness, by_strain)
    return operator, None if reference.grid is None else _preconditioner(operator)


@eqx.filter_jit
def _preconditioner(operator: "StoredOperator") -> "Preconditioner | None":
    return operator.precondition


class PreconditionedOperator(eqx.Module):
    """An operator and a preconditioner for it."""

    operator: Operator
    precondition: Operator

    def __call__(self, v: Float[Array, " n"]) -> Float[Array, " n"]:
        return self.operator(v)


class StoredOperator(eqx.Module):
    """The Hessian as second derivatives of the atoms' energies, and its columns of the strains.

    Attributes:
        z: the state.
        reference: of z.
        neighbors: the list that the stiffness is stored for.
        stiffness: `potentials.local_stiffness`.
        by_strain: ∂F/∂strain, like z with the strain's components first; None at a fixed cell.
    """

    z: Unknown | Array
    reference: Reference
    neighbors: Neighbors
    stiffness: LocalStiffness
    by_strain: Unknown | None

    def __call__(self, v: Float[Array, " n"]) -> Float[Array, " n"]:
        u = as_unknown(ravel_pytree(self.z)[1](v))
        if self.by_strain is None or u.strain is None:
            return self._among_positions(u.positions).ravel()
        positions = self._among_positions(u.positions) + jnp.tensordot(u.strain, self.by_strain.positions, 1)
        assert self.by_strain.strain is not None
        strain = jnp.tensordot(self.by_strain.positions, u.positions, 2) + self.by_strain.strain @ u.strain
        return ravel_pytree(Unknown(positions, strain))[0]

    def _among_positions(self, v: Float[Array, "atoms dim"]) -> Float[Array, "atoms dim"]:
        freedom = self.reference.freedom
        deformation = None if freedom is None else freedom.deformation(as_unknown(self.z).strain)
        v = v if deformation is None else v @ deformation
        image = self.stiffness.product(v.T, self.neighbors).T
        image = image if deformation is None else image @ deformation.T
        return jnp.where(self.reference.held, 0.0, image)

    @property
    def precondition(self) -> "Preconditioner | None":
        """r ↦ M r on flat vectors with M near A⁻¹; None where the reference has no grid. A constant in derivatives."""
        if self.reference.grid is None:
            return None
        still = jax.tree.map(jax.lax.stop_gradient, self)
        diagonal = still.stiffness.diagonal(still.neighbors)
        among_positions = two_level(still.reference.grid, lambda v: still.stiffness.product(v, still.neighbors), diagonal)
        # The strain's unit is such that its stiffness is near that of positions.
        return Preconditioner(still.z, among_positions, jnp.mean(diagonal))


class Preconditioner(eqx.Module):
    """r ↦ M r on flat vectors.

    Attributes:
        z: a state, which says how vectors are flattened.
        among_positions: M on `(dim, N)`.
        of_strain: stiffness of the strain's components.
    """

    z: Unknown | Array
    among_positions: TwoLevelPreconditioner
    of_strain: Float[Array, ""]

    def __call__(self, r: Float[Array, " n"]) -> Float[Array, " n"]:
        u = as_unknown(ravel_pytree(self.z)[1](r))
        positions = self.among_positions(u.positions.T).T
        return positions.ravel() if u.strain is None else ravel_pytree(Unknown(positions, u.strain / self.of_strain))[0]


def is_stored(reference: Reference, potential: Potential) -> bool:
    """Return whether the Hessian is kept as second derivatives of the atoms' energies, rather than as a linearised gradient."""
    plain = isinstance(reference.system.neighbors, Neighbors) and reference.symmetric
    constrained = reference.constraints is not None and reference.constraints.count
    if not plain or constrained or not gives_stiffness(potential):
        return False
    return stored_size(reference.system, potential) <= STORED_LIMIT


def stored_size(system: System, potential: Potential) -> int:
    """Return the count of numbers in the stored second derivatives."""
    if isinstance(potential, Reparameterised):
        return stored_size(system, potential.inner)
    if isinstance(potential, Sum):
        return sum(stored_size(at, term) for term, at in potential.placed(system))
    capacity, n = pair_list(system).atom.shape
    if potential.stiffness_form is not None:
        return int(potential.stiffness_form.numbers(system.dim, capacity, n))
    shape = jax.eval_shape(lambda potential, system: potential.local_stiffness(system), potential, system)
    return sum(leaf.size for leaf in jax.tree.leaves(shape))
