"""`Constraints`: all constraints of a state together, with the references that they were bound to."""

from collections.abc import Sequence
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mdsens.common.errors import InputError
from mdsens.structures.system import System


class Constraint(eqx.Module):
    """Base class. `bound(system)` gives the constraint with its references taken from a concrete system, if it has none yet."""

    inequality: ClassVar[bool] = False
    costs_nothing: ClassVar[bool] = False
    """Whether what it holds would not move anyway."""

    def bound(self, system: System) -> "Constraint":
        return self

    def held(self, system: System) -> Bool[Array, "atoms dim"]:
        """Components that do not move at all."""
        return jnp.zeros(system.positions.shape, bool)

    def values(self, system: System) -> Float[Array, " k"]:
        """What is zero, or not negative, where the constraint is met; pure JAX."""
        return jnp.zeros(0, system.positions.dtype)


class Constraints(eqx.Module):
    """All constraints of a state together, with references bound.

    Attributes:
        parts: the constraints.
        held: `(N, dim)`, components that do not move.
        active: which values of the inequalities (counted through all of them) are zero and count as equations.
        count: of equations, active inequalities included.
        scale: what `values` are multiplied by, so that the conditions on positions and constraints are of one size.
        steepness: ‖∂c/∂z‖ of each equation, then of each inequality, where the constraints were looked at; None for 1. Divided by
            it their values are lengths, whatever unit their function has.
    """

    parts: tuple[Constraint, ...]
    held: Bool[Array, "atoms dim"]
    scale: Float[Array, ""]
    active: tuple[int, ...] = eqx.field(static=True)
    count: int = eqx.field(static=True)
    steepness: Float[Array, " k"] | None = None

    def has_values(self, system: System) -> bool:
        """Whether there is anything with a multiplier, rather than components held still only."""
        return any(jax.eval_shape(part.values, system).size for part in self.parts)

    @eqx.filter_jit
    def equations(self, system: System) -> Float[Array, " k"]:
        return _concatenate(system, [part.values(system) for part in self.parts if not part.inequality])

    @eqx.filter_jit
    def slacks(self, system: System) -> Float[Array, " k"]:
        """The values of all inequalities."""
        return _concatenate(system, [part.values(system) for part in self.parts if part.inequality])

    def lengths(self, system: System) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
        """`(the equations, the values of all inequalities)` as lengths [Å], to first order."""
        equations, slacks = self.equations(system), self.slacks(system)
        if self.steepness is None:
            return equations, slacks
        return equations / self.steepness[: equations.size], slacks / self.steepness[equations.size :]

    def values(self, system: System) -> Float[Array, " count"]:
        """What vanishes: the equations, and the inequalities that are active, as lengths times `scale`."""
        equations, slacks = self.lengths(system)
        return self.scale * jnp.concatenate([equations, slacks[np.array(self.active, dtype=int)]])

    @property
    def factors(self) -> Float[Array, " count"]:
        """What `values` are per unit of the constraint: multipliers of `values` times it are those of the constraints."""
        if self.steepness is None:
            return jnp.full(self.count, self.scale)
        first = self.count - len(self.active)
        chosen = np.concatenate([np.arange(first), first + np.array(self.active, dtype=int)])
        return self.scale / self.steepness[chosen]

    @eqx.filter_jit
    def normals(self, system: System) -> Float[Array, "count n"]:
        """∂values/∂positions, zero where held."""
        at = lambda x: self.values(system.with_positions(x))  # noqa: E731
        slopes = jax.jacrev(at)(system.positions) * ~self.held
        return slopes.reshape(self.count, system.positions.size)

    def names(self, system: System) -> list[str]:
        """The kind of constraint behind each equation."""
        parts = [part for part in self.parts if not part.inequality]
        return [type(part).__name__ for part in parts for _ in range(jax.eval_shape(part.values, system).size)]

    @property
    def hold(self) -> bool:
        """Whether anything but the centre of mass, which costs nothing, is held in place by an equation or altogether [host]."""
        alone = all(part.costs_nothing for part in self.parts)
        return not alone and (self.count > 0 or bool(np.asarray(self.held).any()))

    def with_active(self, active: Sequence[int], system: System) -> "Constraints":
        count = jax.eval_shape(self.equations, system).size + len(active)
        return Constraints(self.parts, self.held, self.scale, tuple(int(k) for k in active), count, self.steepness)


def _concatenate(system: System, values: Sequence[Array]) -> Array:
    return jnp.concatenate([jnp.zeros(0, system.positions.dtype), *values])


def bound_constraints(constraints: Sequence[Constraint], system: System) -> Constraints | None:
    """Constraints with their references taken from a system [host]; None without any.

    Raises:
        InputError: something else than constraints, or one that does not fit the system.
    """
    constraints = [constraints] if isinstance(constraints, Constraint) else list(constraints or ())
    parts = []
    for part in constraints:
        if not isinstance(part, Constraint):
            raise InputError(
                f"constraints holds a {type(part).__name__}, none of mdsens.constraints: constraints.from_ase translates ASE's."
            )
        parts.append(part.bound(system))
    if not parts:
        return None
    held = np.zeros(system.positions.shape, dtype=bool)
    for part in parts:
        held = held | np.asarray(part.held(system))
    unity = jnp.ones((), system.positions.dtype)
    return Constraints(tuple(parts), jnp.asarray(held), unity, (), 0).with_active((), system)
