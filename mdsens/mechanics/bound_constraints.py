"""`Constraints`: all constraints of a state together, each bound to the structure that it refers to."""

import dataclasses
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
    """Base class of constraints."""

    inequality: ClassVar[bool] = False
    costs_nothing: ClassVar[bool] = False
    """Whether it holds only what would not move anyway."""

    def bound(self, system: System) -> "Constraint":
        """Return the constraint with its references taken from a concrete system, if it has none yet."""
        return self

    def held(self, system: System) -> Bool[Array, "atoms dim"]:
        """Return a mask of components that do not move at all."""
        return jnp.zeros(system.positions.shape, bool)

    def values(self, system: System) -> Float[Array, " k"]:
        """Return numbers that are zero, or not negative, where the constraint is met; pure JAX."""
        return jnp.zeros(0, system.positions.dtype)


class Constraints(eqx.Module):
    """All constraints of a state together.

    Attributes:
        parts: the constraints, bound to their references.
        held: `(N, dim)`, components that do not move.
        active: which values of the inequalities (counted through all of them) are zero and count as equations.
        count: of equations, active inequalities included.
        scale: what `values` are multiplied by, so that the conditions on positions and constraints are of one size.
        steepness: ‖∂c/∂z‖ of each equation, then of each inequality, at the reference; None for 1. Divided by it their values
            are lengths, whatever unit their function has.
    """

    parts: tuple[Constraint, ...]
    held: Bool[Array, "atoms dim"]
    scale: Float[Array, ""]
    active: tuple[int, ...] = eqx.field(static=True)
    count: int = eqx.field(static=True)
    steepness: Float[Array, " k"] | None = None

    def has_values(self, system: System) -> bool:
        """Return whether anything has a multiplier, rather than components held still only."""
        return any(jax.eval_shape(part.values, system).size for part in self.parts)

    @eqx.filter_jit
    def equations(self, system: System) -> Float[Array, " k"]:
        """Return the values of all equations."""
        return _concatenate(system, [part.values(system) for part in self.parts if not part.inequality])

    @eqx.filter_jit
    def slacks(self, system: System) -> Float[Array, " k"]:
        """Return the values of all inequalities."""
        return _concatenate(system, [part.values(system) for part in self.parts if part.inequality])

    def lengths(self, system: System) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
        """Return `(the equations, the values of all inequalities)` as lengths [Å], to first order."""
        equations, slacks = self.equations(system), self.slacks(system)
        if self.steepness is None:
            return equations, slacks
        return equations / self.steepness[: equations.size], slacks / self.steepness[equations.size :]

    def values(self, system: System) -> Float[Array, " count"]:
        """Return what vanishes: the equations and the active inequalities, as lengths times `scale`."""
        equations, slacks = self.lengths(system)
        return self.scale * jnp.concatenate([equations, slacks[np.array(self.active, dtype=int)]])

    @property
    def factors(self) -> Float[Array, " count"]:
        """The size of `values` per unit of the constraint: multipliers of `values` times it are those of the constraints."""
        if self.steepness is None:
            return jnp.full(self.count, self.scale)
        first = self.count - len(self.active)
        chosen = np.concatenate([np.arange(first), first + np.array(self.active, dtype=int)])
        return self.scale / self.steepness[chosen]

    @eqx.filter_jit
    def normals(self, system: System) -> Float[Array, "count n"]:
        """Return ∂values/∂positions, zero where held."""
        at = lambda x: self.values(system.with_positions(x))  # noqa: E731
        slopes = jax.jacrev(at)(system.positions) * ~self.held
        return slopes.reshape(self.count, system.positions.size)

    def names(self, system: System) -> list[str]:
        """Return the kind of constraint behind each equation."""
        parts = [part for part in self.parts if not part.inequality]
        return [type(part).__name__ for part in parts for _ in range(jax.eval_shape(part.values, system).size)]

    @property
    def hold(self) -> bool:
        """Whether anything but the centre of mass, which costs nothing, is held in place by an equation or altogether [host]."""
        alone = all(part.costs_nothing for part in self.parts)
        return not alone and (self.count > 0 or bool(np.asarray(self.held).any()))

    def with_active(self, active: Sequence[int] | np.ndarray, system: System) -> "Constraints":
        """Return the constraints with some inequalities that count as equations."""
        count = jax.eval_shape(self.equations, system).size + len(active)
        return dataclasses.replace(self, active=tuple(int(k) for k in active), count=count)


def _concatenate(system: System, values: Sequence[Array]) -> Array:
    return jnp.concatenate([jnp.zeros(0, system.positions.dtype), *values])


def bound_constraints(constraints: Sequence[Constraint], system: System) -> Constraints | None:
    """Bind constraints to the system that their references are taken from [host]; None without any.

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
    held = np.any([np.asarray(part.held(system)) for part in parts], axis=0)
    return Constraints(tuple(parts), jnp.asarray(held), jnp.ones((), system.positions.dtype), (), 0).with_active((), system)
