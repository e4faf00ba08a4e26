"""`SelfConsistent`: the energy of charges or dipoles that are the fixed point of a map, wherever the atoms are."""

from numbers import Real
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mdsens.common.errors import InputError
from mdsens.implicit import custom_fixed_point
from mdsens.implicit.contraction import check_contraction, spectral_radius
from mdsens.potentials.base import Potential, constant_range
from mdsens.potentials.species import Atom
from mdsens.potentials.wrapped.jaxmd_energy import AllPairs
from mdsens.structures.system import System, is_concrete

MAX_STEPS = 10_000
"""Largest number of steps: enough for a spectral radius of 0.997."""

TOLERANCE = 300.0
"""Change in a step at which the iteration ends, in units of the rounding of the largest component."""


class SelfConsistent(Potential):
    """The energy U(x) of a finite system with an inner state z = T(z, x, θ).

    A subclass gives `start`, `map`, `functional` and a static field `mixing`, m. The state is found by z ← (1 - m) z +
    m T(z), and differentiated implicitly: in parameters and positions, in every mode, to any order, under `jit` and
    `vmap`. With concrete values an iteration that does not contract is refused with its spectral radius; inside a
    transformation one that does not arrive gives NaN. There is one energy for the whole system (per-atom energies are
    equal shares), and each step forms all N² pairs.
    """

    local: ClassVar = False

    positive: ClassVar[tuple[str, ...]] = ()
    """Parameters that must be larger than zero."""

    scalars: ClassVar[tuple[str, ...]] = ()
    """Parameters that are one number; the others may also be dicts by label or have one value per atom."""

    remedy: ClassVar[str] = ""
    """Advice for messages: what it means that the iteration does not contract, and what to do."""

    # For subclasses to define.

    def start(self, system: System) -> Float[Array, "..."]:
        """Return a state of the right shape to iterate from."""
        raise NotImplementedError

    def map(self, state: Float[Array, "..."], system: System) -> Float[Array, "..."]:
        """Return T(z) at the system's positions; pure JAX."""
        raise NotImplementedError

    def functional(self, state: Float[Array, "..."], system: System) -> Float[Array, ""]:
        """Return W(z, x) [eV], stationary in z at the fixed point, where it is the energy U(x); pure JAX."""
        raise NotImplementedError

    # Derived from the above.

    def __check_init__(self) -> None:
        name = type(self).__name__
        mixing: float = self.mixing
        if not (isinstance(mixing, Real) and 0.0 < mixing <= 1.0):
            raise InputError(f"{name}'s mixing must be a share above 0 and up to 1, not {mixing!r}.")
        for parameter, value in self.parameters().items():
            leaves = jax.tree.leaves(value)
            if parameter in self.scalars:
                if isinstance(value, dict) or np.ndim(value) != 0:
                    raise InputError(f"{name}'s {parameter} must be one number.")
            elif any(np.ndim(leaf) > (not isinstance(value, dict)) or np.size(leaf) == 0 for leaf in leaves):
                raise InputError(f"{name}'s {parameter} must be one number, a dict by labels, or one value per atom.")
            if parameter in self.positive and is_concrete(value) and not all((np.asarray(leaf) > 0.0).all() for leaf in leaves):
                raise InputError(f"{name}'s {parameter} must be positive everywhere.")

    @property
    def range(self) -> Float[Array, ""]:
        return constant_range(np.inf)

    @property
    def smoothness(self) -> float:
        return np.inf

    def check(self, system: System) -> None:
        super().check(system)
        if any(system.pbc):
            raise InputError(
                f"{type(self).__name__} is for finite systems, and this one is periodic: the sum over images (Ewald) is not "
                "available; cut out a cluster, with pbc=False."
            )

    def find_neighbors(self, system: System, *, skin: float | None = None) -> AllPairs:
        return AllPairs()

    def prepared(self, system: System) -> System:
        self.check(system)
        system = system.with_neighbors(self)
        if is_concrete(self, system):
            self._check_contraction(system)
        return system

    def state(self, system: System) -> Float[Array, "..."]:
        """Return the fixed point at the system's positions.

        Raises:
            ConvergenceError: outside transformations, a map that does not contract.
            InputError: a system that is periodic or that parameters are missing for.
        """
        self.check(system)
        return solve_state(self, system)

    def atom_energies(self, system: System) -> Float[Array, " atoms"]:
        return jnp.full(len(system), _compiled_energy(self, system) / len(system))

    def contraction(self, system: System) -> float:
        """Return the spectral radius of the iteration [host]: below 1 the factor by which a step reduces the error."""
        self.check(system)
        system = system.with_neighbors(self)
        return spectral_radius(_mixing_step, self.start(system), self, system)

    def per_atom(self, parameter: Any, system: System) -> Float[Array, " atoms"]:
        """Return the value of a parameter for each atom, however it was given."""
        n = len(system)
        return jnp.broadcast_to(self.one(parameter, Atom(jnp.arange(n), system.species, system.labels, n)), (n,))

    def _check_contraction(self, system: System) -> None:
        what = f"The iteration of {type(self).__name__}"
        check_contraction(_mixing_step, self.start(system), self, system, what=what, remedy=self.remedy)


def solve_state(model: SelfConsistent, system: System) -> Float[Array, "..."]:
    """Return the fixed point, without a check of the system. Pure JAX."""
    system = system.with_neighbors(model)  # another potential's list would only be another shape to compile for
    return _fixed_point(model.start(system), model, system)


@eqx.filter_custom_jvp
def _stationary(model: SelfConsistent, system: System) -> Array:
    return model.functional(solve_state(model, system), system)


@_stationary.def_jvp
def _stationary_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    # dU = ∂W/∂θ dθ at fixed z: forces need no linear solve. The next derivative sees how z moves.
    state = solve_state(*primals)
    return eqx.filter_jvp(lambda model, system: model.functional(state, system), primals, tangents)


_compiled_energy = eqx.filter_jit(_stationary)


def _mixing_step(state: Array, model: SelfConsistent, system: System) -> Array:
    return (1.0 - model.mixing) * state + model.mixing * model.map(state, system)


@custom_fixed_point(_mixing_step)
def _fixed_point(start: Array, model: SelfConsistent, system: System) -> Array:
    if is_concrete(start, model, system):
        model._check_contraction(system)
    return _iterate(start, model, system)


@eqx.filter_jit
def _iterate(start: Array, model: SelfConsistent, system: System) -> Array:
    tolerance = TOLERANCE * jnp.finfo(start.dtype).eps

    def change(carry: Any) -> Array:
        _, state, moved = carry
        return moved / jnp.maximum(jnp.max(jnp.abs(state)), jnp.finfo(start.dtype).tiny)

    def go_on(carry: Any) -> Array:
        step, _, _ = carry
        return (step < MAX_STEPS) & (change(carry) > tolerance)

    def iterate(carry: Any) -> tuple[Any, ...]:
        step, state, _ = carry
        new = _mixing_step(state, model, system)
        return step + 1, new, jnp.max(jnp.abs(new - state))

    end = jax.lax.while_loop(go_on, iterate, (0, start, jnp.asarray(jnp.inf, start.dtype)))
    return jnp.where(change(end) <= tolerance, end[1], jnp.nan)
