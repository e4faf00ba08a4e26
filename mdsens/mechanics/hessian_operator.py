"""The derivative A = ∂F/∂z of the condition of an equilibrium as a linear operator with a known null space."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from mdsens.implicit.linear_system import Gauge
from mdsens.mechanics.forces import gradient
from mdsens.mechanics.preconditioner import TwoLevel, two_level
from mdsens.mechanics.rigid_motions import coupled_atoms
from mdsens.mechanics.unknown import Frame, Unknown, as_unknown
from mdsens.potentials.base import Potential, gives_stiffness, sound_stiffness
from mdsens.potentials.forms.stored_stiffness import LocalStiffness
from mdsens.structures.neighbors.neighbor_list import Neighbors
from mdsens.structures.system import System

STORED_LIMIT = 4 * 10**8
"""Numbers in stored second derivatives, at most (3.2 GB); beyond, the gradient is linearised."""


def rigid_gauge(z: Any, data: Any) -> Gauge:
    """The null space that forces respect by themselves: frozen atoms and free rigid motions."""
    frame, _ = data
    return gauge_of(z, frame, ~frame.held)


def gauge(z: Any, data: Any) -> Gauge:
    """The known null space of the Hessian at a state: rattlers too, on which a general right-hand side may act."""
    frame, _ = data
    return gauge_of(z, frame, coupled(hessian_operator(z, data), z, frame))


@eqx.filter_jit
def known_gauge(z: Any, frame: Frame, rattlers: tuple[int, ...]) -> Gauge:
    """The same as `gauge` where the rattlers are known already."""
    return gauge_of(z, frame, (~frame.held).at[np.array(rattlers, dtype=int)].set(False))


def coupled(product: Callable[..., Any], z: Any, frame: Frame) -> Array:
    """`(N, dim)`: components of positions that can move and that something acts on."""
    _, unravel = ravel_pytree(z)
    image = coupled_atoms(lambda v: as_unknown(unravel(product(v))).positions, ravel_pytree(z)[0])
    return ~frame.held & image[:, None]


def gauge_of(z: Any, frame: Frame, active: Array) -> Gauge:
    """The null space of rigid motions of the active components `(N, dim)` and of those that are not."""
    basis = frame.motions.basis(as_unknown(z).positions, active)
    more = ravel_pytree(z)[0].size - active.size
    return Gauge(jnp.concatenate([active.ravel(), jnp.ones(more, bool)]), jnp.pad(basis, ((0, more), (0, 0))))


def hessian_operator(z: Any, data: Any) -> Callable[..., Any]:
    """v ↦ ∂F/∂z v on flat vectors, made once and applied many times; pure JAX, differentiable in z and data.

    Second derivatives of the atoms' energies are stored, where the potential gives them and they fit, and a preconditioner
    comes with them if the frame has a grid for it; otherwise F is linearised.
    """
    frame, potential = data
    flat, unravel = ravel_pytree(z)
    if not is_stored(frame, potential):
        return jax.linearize(lambda x: ravel_pytree(gradient(unravel(x), data))[0], flat)[1]
    system = frame.place(z)
    stiffness = sound_stiffness(potential, system)
    by_strain = None
    if isinstance(z, Unknown) and z.strain is not None:
        directions = jnp.eye(z.strain.size, dtype=z.strain.dtype)
        rest = jax.tree.map(jnp.zeros_like, z)
        along = lambda e: jax.jvp(lambda x: gradient(x, data), (z,), (rest._replace(strain=e),))[1]  # noqa: E731
        by_strain = jax.lax.map(along, directions)
    return StoredOperator(z, frame, system.neighbors, stiffness, by_strain)


class Preconditioned(eqx.Module):
    """An operator and a preconditioner for it."""

    operator: Any
    precondition: Any

    def __call__(self, v: Float[Array, " n"]) -> Float[Array, " n"]:
        return self.operator(v)


class StoredOperator(eqx.Module):
    """The Hessian as second derivatives of the atoms' energies, and its columns of the strains.

    Attributes:
        z: where.
        frame: of z.
        neighbors: what the stiffness is stored for.
        stiffness: `potentials.local_stiffness`.
        by_strain: ∂F/∂strain, like z with the strain's components first; None at a fixed cell.
    """

    z: Any
    frame: Frame
    neighbors: Neighbors
    stiffness: LocalStiffness
    by_strain: Any

    def __call__(self, v: Float[Array, " n"]) -> Float[Array, " n"]:
        u = as_unknown(ravel_pytree(self.z)[1](v))
        if self.by_strain is None or u.strain is None:
            return self._among_positions(u.positions).ravel()
        positions = self._among_positions(u.positions) + jnp.tensordot(u.strain, self.by_strain.positions, 1)
        strain = jnp.tensordot(self.by_strain.positions, u.positions, 2) + self.by_strain.strain @ u.strain
        return ravel_pytree(Unknown(positions, strain))[0]

    def _among_positions(self, v: Float[Array, "atoms dim"]) -> Float[Array, "atoms dim"]:
        freedom = self.frame.freedom
        deformation = None if freedom is None else freedom.deformation(self.z.strain)
        v = v if deformation is None else v @ deformation
        image = self.stiffness.product(v.T, self.neighbors).T
        image = image if deformation is None else image @ deformation.T
        return jnp.where(self.frame.held, 0.0, image)

    @property
    def precondition(self) -> "Preconditioner | None":
        """r ↦ M r on flat vectors with M near A⁻¹; None where the frame has no grid. Held fixed in derivatives."""
        if self.frame.grid is None:
            return None
        still = jax.tree.map(jax.lax.stop_gradient, self)
        diagonal = still.stiffness.diagonal(still.neighbors)
        among_positions = two_level(still.frame.grid, lambda v: still.stiffness.product(v, still.neighbors), diagonal)
        # The strain's unit is such that its stiffness is near that of positions.
        return Preconditioner(still.z, among_positions, jnp.mean(diagonal))


class Preconditioner(eqx.Module):
    """r ↦ M r on flat vectors.

    Attributes:
        z: of whose structure they are.
        among_positions: M on `(dim, N)`.
        of_strain: stiffness of the strain's components.
    """

    z: Any
    among_positions: TwoLevel
    of_strain: Float[Array, ""]

    def __call__(self, r: Float[Array, " n"]) -> Float[Array, " n"]:
        u = as_unknown(ravel_pytree(self.z)[1](r))
        positions = self.among_positions(u.positions.T).T
        return positions.ravel() if u.strain is None else ravel_pytree(Unknown(positions, u.strain / self.of_strain))[0]


def is_stored(frame: Frame, potential: Potential) -> bool:
    """Whether the Hessian is kept as second derivatives of the atoms' energies, rather than as a linearised gradient."""
    plain = isinstance(frame.system.neighbors, Neighbors) and frame.symmetric
    constrained = frame.constraints is not None and frame.constraints.count
    if not plain or constrained or not gives_stiffness(potential):
        return False
    return stored_size(frame.system, potential) <= STORED_LIMIT


def stored_size(system: System, potential: Potential) -> int:
    """Numbers in the stored second derivatives."""
    return sum(leaf.size for leaf in jax.tree.leaves(_stored.eval_shape(potential, system)))


# Compiled nowhere; a jitted function keeps its trace, which takes half a second, from one Newton step to the next.
_stored = jax.jit(lambda potential, system: potential.local_stiffness(system))
