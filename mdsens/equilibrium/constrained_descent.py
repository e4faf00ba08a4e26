"""Relaxation under constraints: an augmented Lagrangian to the neighbourhood, Newton's method on the KKT conditions from there.

Nocedal, Wright, "Numerical Optimization", 2nd ed.: algorithm 17.4 (with inequalities after Powell, Hestenes, Rockafellar)
and section 18.1.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from mdsens.common.errors import InputError
from mdsens.common.progress import residual_bar
from mdsens.equilibrium import descent
from mdsens.implicit import MINRES, Direct
from mdsens.implicit.linear import SYMMETRIC_DIRECT_LIMIT
from mdsens.mechanics.bound_constraints import Constraints
from mdsens.mechanics.forces import gradient, lagrangian, zero_where_held
from mdsens.mechanics.landscape import Landscape
from mdsens.mechanics.null_space import rigid_null_space
from mdsens.mechanics.unknown import Reference, Unknown, as_unknown, reference_at
from mdsens.potentials.base import Potential
from mdsens.solvers import Newton, Problem, Status, solve
from mdsens.structures.system import System

ROUNDS = 60
"""Largest number of updates of the multipliers."""

NEWTON_VIOLATION = 1e-4
"""Violation of the constraints, as lengths [units of `scales`, Å as a rule], below which Newton's method is tried on the KKT
conditions."""

ROUND_FORCE = 1e-3
"""Largest force [units of `scales`, eV/Å as a rule] that a round of the augmented Lagrangian leaves."""

MAX_STIFFENING = 1e6
"""Factor by which a penalty may grow from its start before its constraint counts as one that cannot be met."""

CONTACT_DISTANCE = 1e-6
"""Distance to an inequality, up to which it may be active at the start [units of `scales`, Å as a rule]."""

MIN_SINGULAR_VALUE = 1e-8
"""Singular value of the constraints' unit normals below which they depend on each other."""


class Penalty(eqx.Module):
    """The augmented part of the Lagrangian: m c + ½ κ c², and its one-sided form for inequalities; c as lengths, m as forces."""

    constraints: Constraints
    multipliers: Float[Array, " equations"]
    pushes: Float[Array, " inequalities"]
    stiffness: Float[Array, ""]

    def energy(self, system: System) -> Array:
        """Return the energy that is added."""
        values, slacks = self.constraints.lengths(system)
        pressed = jnp.maximum(self.pushes - self.stiffness * slacks, 0.0)
        return (
            self.multipliers @ values
            + 0.5 * self.stiffness * values @ values
            + 0.5 / self.stiffness * (pressed @ pressed - self.pushes @ self.pushes)
        )

    def update(self, system: System) -> "tuple[Penalty, Array]":
        """Return `(the penalty with the next multipliers, largest violation)`."""
        values, slacks = self.constraints.lengths(system)
        violation = jnp.concatenate([values, jnp.minimum(slacks, self.pushes / self.stiffness)])
        multipliers = self.multipliers + self.stiffness * values
        pushes = jnp.maximum(self.pushes - self.stiffness * slacks, 0.0)
        return Penalty(self.constraints, multipliers, pushes, self.stiffness), jnp.max(jnp.abs(violation), initial=0.0)


class PenalisedLandscape(NamedTuple):
    """An energy landscape with a penalty for constraints that are not met."""

    reference: Reference
    potential: Potential
    penalty: Penalty


class KKTGuess(NamedTuple):
    """A start for Newton's method: z without multipliers, multipliers in their own units, and the active inequalities."""

    z: Unknown | Array
    multipliers: Array
    active: np.ndarray


def _penalised_gradient(z: Unknown | Array, data: PenalisedLandscape) -> Unknown | Array:
    reference, potential, penalty = data
    slope = jax.grad(lambda z: lagrangian(z, Landscape(reference, potential)) + penalty.energy(reference.place(z)))(z)
    return zero_where_held(slope, reference)


PENALISED_PROBLEM = Problem(
    _penalised_gradient, descent.force_norm, descent.is_stale, null_space=rigid_null_space, symmetric=True, kind="gradient"
)


def settle(reference: Reference, potential: Potential, settings: descent.Settings) -> descent.Arrival:
    """Go from the reference to a KKT point of its constraints [host].

    Raises:
        InputError: constraints that depend on each other, or outnumber the degrees of freedom.
        UnstableCell, CoincidingAtoms: as `descent.descend`.
    """
    if not reference.symmetric:
        raise InputError("Constraints go with a pressure, not with a stress that is not hydrostatic.")
    constraints, volume = reference.constraints, descent.reference_volume(reference)
    assert constraints is not None
    every = constraints.with_active(range(constraints.slacks(reference.system).size), reference.system)
    free = Constraints((), constraints.held, constraints.scale, (), 0)
    # Only motions that no inequality could ever stop count; others that are free cost nothing, and need no projection.
    motions = reference_at(reference.system, reference.freedom, every).motions
    reference = descent.mark_listed(eqx.tree_at(lambda f: (f.constraints, f.motions), reference, (free, motions)))
    constraints = _with_steepness(constraints, reference)
    _check_independent(constraints, reference)
    penalty = _first_penalty(constraints, reference, potential)
    constraints = dataclasses.replace(constraints, scale=penalty.stiffness)
    z, status, steps, softest = reference.start, Status.MAX_STEPS, 0, float(penalty.stiffness)
    units = settings.units
    settled = NEWTON_VIOLATION * units.length
    goal, before, norm = settled, np.inf, np.inf
    with residual_bar(settings.tolerance, settings.progress) as show:
        newton = functools.partial(_newton, settings=settings, volume=volume, show=show)
        if settings.solver is None:
            # Near a KKT point Newton's method arrives at once.
            guess = _guess_multipliers(constraints, reference, potential, CONTACT_DISTANCE * units.length)
            method = Newton(max_step=0.1 * units.length)
            arrival = newton(method, Landscape(reference, potential), constraints, guess, steps=steps)
            if arrival.status is Status.CONVERGED:
                return arrival
        for _ in range(ROUNDS):
            data = PenalisedLandscape(reference, potential, penalty)
            rough = max(settings.tolerance, ROUND_FORCE * units.force * min(1.0, goal / settled))
            options: dict[str, Any] = {"volume": volume, "steps": steps, "show": show, "tolerance": rough}
            z, data, norm, steps, status, _ = descent.approach(PENALISED_PROBLEM, z, data, settings, **options)
            reference = data.reference
            if status is not Status.CONVERGED:
                break
            penalty, largest = penalty.update(reference.place(z))
            violation = float(largest)
            if violation <= goal:
                active = np.flatnonzero(np.asarray(penalty.pushes) > 0.0)
                guess = KKTGuess(z, _in_own_units(constraints, penalty.multipliers, -penalty.pushes, active), active)
                method = Newton(max_step=None, backtracks=20)
                arrival = newton(method, Landscape(reference, potential), constraints, guess, steps=steps)
                if arrival.status is Status.CONVERGED:
                    return arrival
                steps, goal, status = arrival.steps, 0.1 * goal, Status.STALLED
            if violation > 0.25 * before:
                penalty = dataclasses.replace(penalty, stiffness=4.0 * penalty.stiffness)
                if penalty.stiffness > MAX_STIFFENING * softest:
                    status = Status.CONTRADICTION
                    break
            before = violation
    reference = reference_at(reference.place(z), reference.freedom, constraints)
    multipliers = _in_own_units(constraints, penalty.multipliers, penalty.pushes, np.array([], int))
    return descent.Arrival(reference, _unknown(reference, multipliers), norm, steps, status)


def _with_steepness(constraints: Constraints, reference: Reference) -> Constraints:
    """Return the constraints with their steepness at the reference."""
    system = reference.system
    whole = dataclasses.replace(constraints, steepness=None, scale=jnp.ones_like(constraints.scale))
    whole = whole.with_active(range(constraints.slacks(system).size), system)
    steep = np.linalg.norm(_normals(whole, reference), axis=1)
    # A constraint without a gradient here may have one elsewhere.
    return dataclasses.replace(constraints, steepness=jnp.asarray(np.where(steep > 0.0, steep, 1.0)))


def _in_own_units(constraints: Constraints, forces: Any, pushes: Any, active: np.ndarray) -> Array:
    """Return multipliers [eV per unit of the constraint] from the forces of equations and inequalities."""
    steep = constraints.steepness
    assert steep is not None
    return jnp.concatenate([forces / steep[: len(forces)], (pushes / steep[len(forces) :])[active]])


def _first_penalty(constraints: Constraints, reference: Reference, potential: Potential) -> Penalty:
    """Return a penalty as stiff as the system itself, with multipliers of zero."""
    stiffness, system = _mean_stiffness(reference, potential), reference.system
    zeros = (jnp.zeros_like(constraints.equations(system)), jnp.zeros_like(constraints.slacks(system)))
    return Penalty(constraints, *zeros, jnp.where(stiffness > 0.0, stiffness, 1.0))


@eqx.filter_jit
def _mean_stiffness(reference: Reference, potential: Potential) -> Array:
    """Return the stiffness of the system, by a random displacement [eV/Å²]."""
    flat, unravel = ravel_pytree(reference.start)
    probe = jax.random.normal(jax.random.key(0), flat.shape, flat.dtype)
    _, change = jax.jvp(lambda z: gradient(z, Landscape(reference, potential)), (reference.start,), (unravel(probe),))
    return jnp.linalg.norm(ravel_pytree(change)[0]) / jnp.linalg.norm(probe)


def _guess_multipliers(constraints: Constraints, reference: Reference, potential: Potential, near: float) -> KKTGuess:
    """Guess the multipliers that leave the smallest forces at the start, with the inequalities that press there."""
    system = reference.system
    touching = np.flatnonzero(np.abs(np.asarray(constraints.lengths(system)[1])) < near)
    forces = np.asarray(ravel_pytree(descent.residual_forces(reference.start, Landscape(reference, potential))[0])[0])

    def fit(active: np.ndarray) -> np.ndarray:
        normals = _normals(constraints.with_active(active, system), reference)
        return np.linalg.lstsq(normals.T, -forces, rcond=None)[0]

    equations = constraints.equations(system).size
    pressing = touching[fit(touching)[equations:] < 0.0]
    multipliers, pushes = np.split(fit(pressing), [equations])
    every = np.zeros(constraints.slacks(system).size)
    every[pressing] = pushes
    return KKTGuess(reference.start, _in_own_units(constraints, multipliers, every, pressing), pressing)


def _unknown(reference: Reference, multipliers: Array) -> Unknown | Array:
    """Return the reference's start with multipliers, which come in their own units."""
    if reference.constraints is None or not len(multipliers):
        return reference.start
    return as_unknown(reference.start)._replace(multipliers=multipliers / reference.constraints.factors)


def _newton(
    method: Newton,
    landscape: Landscape,
    constraints: Constraints,
    guess: KKTGuess,
    *,
    settings: descent.Settings,
    volume: float | None,
    steps: int,
    show: Any,
) -> descent.Arrival:
    """Solve the equations and active inequalities by Newton's method; not converged where another set is active."""
    (reference, potential), (z, multipliers, active) = landscape, guess
    system = reference.place(z)
    # Far from the start the constraints may have another steepness.
    constraints = _with_steepness(constraints, eqx.tree_at(lambda f: f.system, reference, system))
    chosen = constraints.with_active(active, system)
    reference = descent.mark_listed(reference_at(system.with_neighbors(potential), reference.freedom, chosen))
    size = ravel_pytree(z)[0].size + len(multipliers)
    method = dataclasses.replace(method, rtol=1e-7, linear_solver=Direct() if size <= SYMMETRIC_DIRECT_LIMIT else MINRES())
    run = functools.partial(solve, descent.PROBLEM, method, refresh=descent.refresher(volume))
    options: dict[str, Any] = {"tolerance": settings.tolerance, "max_steps": descent.NEWTON_STEPS}
    for _ in range(2):
        result = run(_unknown(reference, multipliers), Landscape(reference, potential), progress=show.after(steps), **options)
        steps = steps + result.steps
        multipliers = chosen.factors * result.z.multipliers if len(multipliers) else multipliers
        reference = descent.rebase(result.data.reference, result.z, potential)
        norm = float(descent.residual_forces(_unknown(reference, multipliers), Landscape(reference, potential))[1])
        if result.status is not Status.CONVERGED or norm <= settings.tolerance:
            break
        reference = descent.mark_listed(reference)
    status = result.status if norm <= settings.tolerance else Status.STALLED
    pulls = (multipliers * chosen.scale / chosen.factors)[len(multipliers) - len(active) :]
    rest = np.delete(np.asarray(chosen.scale * chosen.lengths(reference.system)[1]), active)
    if (np.asarray(pulls) > settings.tolerance).any() or (rest < -settings.tolerance).any():
        status = Status.STALLED
    return descent.Arrival(reference, _unknown(reference, multipliers), norm, steps, status)


def _normals(constraints: Constraints, reference: Reference) -> np.ndarray:
    """Return ∂values/∂z `(count, n)` at the reference's start, z without multipliers, zero where held."""
    return np.asarray(_slopes(constraints, reference)) / float(constraints.scale) * _movable_components(reference)


@eqx.filter_jit
def _slopes(constraints: Constraints, reference: Reference) -> Array:
    flat, unravel = ravel_pytree(reference.start)
    return jax.jacrev(lambda z: constraints.values(reference.place(unravel(z))))(flat).reshape(-1, flat.size)


def _movable_components(reference: Reference) -> np.ndarray:
    """Return a mask of the components of z, without multipliers, that can move."""
    more = ravel_pytree(reference.start)[0].size - reference.held.size
    return np.concatenate([~np.asarray(reference.held).ravel(), np.ones(more, dtype=bool)])


def _check_independent(constraints: Constraints, reference: Reference) -> None:
    """Raise InputError where constraints depend on each other, or on nothing that can move."""
    if constraints.count == 0:
        return
    normals, free = _normals(constraints, reference), int(_movable_components(reference).sum())
    if constraints.count > free:
        raise InputError(f"There are {constraints.count} constraints for {free} degrees of freedom: leave some out.")
    lengths, names = np.linalg.norm(normals, axis=1), constraints.names(reference.system)
    if (lengths == 0.0).any():
        raise InputError(f"{names[int(np.argmin(lengths))]} acts on nothing that can move: leave it out.")
    if np.linalg.svd(normals / lengths[:, None], compute_uv=False).min() < MIN_SINGULAR_VALUE:
        raise InputError(
            "The constraints depend on each other at the start (or contradict each other): "
            f"leave out what others say already, among {', '.join(dict.fromkeys(names))}."
        )
