"""`relax`: system + potential + solver → `Equilibrium`; `equilibrium_positions`: the same as a JAX function."""

import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mdsens.errors import CoincidingAtoms, ConvergenceError, InputError
from mdsens.gauge import rigid_motions
from mdsens.implicit import CG, differentiable_solution
from mdsens.neighbors import SKIN, Neighbors
from mdsens.potentials.base import Potential, total_energy
from mdsens.progress import residual_bar
from mdsens.solvers import FIRE, Newton, Problem, Status, solve, solve_traced
from mdsens.stiffness import Curvature, Frame, curvature, gauge, gradient, hessian_operator, rigid_gauge
from mdsens.system import System, is_concrete

HANDOVER = 1e-2
"""Size of the largest force [eV/Å] at which Newton's method is first tried."""

NEWTON_STEPS = 50
"""Newton steps after one hand-over, at most; a handful is usual."""

TIGHT_SKIN = 0.01
"""Skin of an equilibrium's list, as a share of the range: derivatives at the state need only its own pairs."""

FLOAT32_FMAX = 1e-3
"""Smallest fmax that forces in 32 bits can be asked for."""

TRACED_CAPACITY = 100
"""Expected number of neighbours up to which a list for the traced world is made longer."""


def _force_norm(slope):
    return jnp.sqrt(jnp.max(jnp.sum(slope**2, axis=-1)))


def _is_stale(positions, data):
    frame, potential = data
    return frame.system.neighbors.is_stale(positions, potential.range)


PROBLEM = Problem(gradient, _force_norm, _is_stale, gauge=rigid_gauge, symmetric=True, operator=hessian_operator, kind="gradient")
"""Positions at which no force is left: the problem that all solvers are given."""


class Equilibrium(eqx.Module):
    """A relaxed structure, with what its derivatives need.

    Attributes:
        system: the relaxed system, with its neighbour list.
        potential: the potential it was relaxed with.
        energy: potential energy [eV].
        fmax: largest force on an atom that is not frozen [eV/Å].
        steps: steps taken by all solvers together.
        status: how it ended; the sentence is `status.value`.
        curvature: ends of the Hessian's spectrum, None if it was not asked for.
        solver: what it was reached with, in words.
    """

    system: System
    potential: Potential
    energy: float = eqx.field(static=True)
    fmax: float = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    status: Status = eqx.field(static=True)
    curvature: Curvature | None = eqx.field(static=True)
    solver: str = eqx.field(static=True)

    @property
    def converged(self) -> bool:
        return self.status is Status.CONVERGED

    @property
    def frame(self) -> Frame:
        return Frame(self.system, rigid_motions(self.system))


def relax(
    system: System,
    potential: Potential,
    *,
    solver: Any = None,
    fmax: float = 1e-8,
    cell: str = "fixed",
    pressure: float = 0.0,
    max_steps: int = 100_000,
    polish: bool = True,
    check_minimum: bool = True,
    throw: bool = True,
    progress: bool | None = None,
) -> Equilibrium:
    """Find the nearest minimum of the energy.

    Args:
        solver: `FIRE()`, `Newton()`, `solvers.JaxMD(minimizer)`; by default FIRE where Newton cannot do it alone.
        fmax: largest force that may be left on an atom [eV/Å].
        cell: `"fixed"`; other cells are not available yet. pressure: [GPa], 0 with a fixed cell.
        max_steps: steps of all solvers together.
        polish: let Newton's method take over as soon as it can, so that fmax = 1e-12 is ordinary.
        check_minimum: compute the lowest curvature and refuse a saddle point.
        throw: raise if the state is not what was asked; otherwise it is returned with its status.
        progress: show a bar; by default only at a terminal and for long work.

    Raises:
        InputError: the system does not fit the potential, coinciding atoms, a setting out of its range.
        ConvergenceError: the state did not converge, is not finite, or is a saddle point.
    """
    potential.check(system)
    _check_settings(system, fmax, cell, pressure, max_steps)
    hasty = solver is None and polish
    solver = FIRE() if solver is None else solver
    try:
        system = potential.prepared(system)
        frame = Frame(system, rigid_motions(system))
        z, frame, norm, steps, status = _descend(frame, potential, solver, fmax, max_steps, polish, hasty, progress)
        return _finish(z, frame, potential, norm, steps, status, solver, check_minimum, throw)
    except CoincidingAtoms as error:
        if throw:
            raise
        there = system.with_positions(jnp.asarray(error.positions))
        return Equilibrium(there, potential, np.nan, np.nan, 0, Status.COINCIDING, None, repr(solver))


def _descend(frame, potential, solver, fmax, max_steps, polish, hasty, progress):
    """The solver down to a hand-over, Newton from there; when Newton refuses, the solver goes on to a lower one.

    `hasty` tries Newton at once: near an equilibrium it arrives in a few steps, far from one it refuses in the first.
    """
    z, data = frame.system.positions, (frame, potential)
    widening = 1.0

    def refresh(z, data, wider):
        nonlocal widening
        widening = 2.0 * widening if wider else widening
        frame, potential = data
        standing = frame.system.with_positions(z)
        reach = np.asarray(potential.range)
        skin = SKIN * widening * float(reach) if np.isfinite(reach) else None
        return Frame(standing.with_neighbors(potential, skin=skin), frame.motions), potential

    polish = polish and not isinstance(solver, Newton)
    handover, steps = (max(fmax, HANDOVER) if polish else fmax), 0
    run = functools.partial(solve, PROBLEM, refresh=refresh)
    with residual_bar(fmax, progress) as show:
        while True:
            if not hasty:
                result = run(solver, z, data, tolerance=handover, max_steps=max_steps - steps, progress=show.after(steps))
                z, data, steps = result.z, result.data, steps + result.steps
                if result.status is not Status.CONVERGED or result.norm <= fmax:
                    break
            limit = max(1, min(NEWTON_STEPS, max_steps - steps))
            result = run(Newton(), z, data, tolerance=fmax, max_steps=limit, progress=show.after(steps))
            steps += result.steps
            if result.status is Status.CONVERGED:
                z, data = result.z, result.data
                break
            if not hasty:
                handover = max(fmax, 0.01 * handover)
            hasty = False
    return z, data[0], result.norm, steps, result.status


def _finish(z, frame, potential, norm, steps, status, solver, check_minimum, throw):
    system, found = frame.system.with_positions(z), None
    if status is not Status.NOT_FINITE:
        system = listed_tightly(system, potential)
        frame = Frame(system, rigid_motions(system))
        if status is Status.CONVERGED and check_minimum:
            found = curvature(z, frame, potential)
            if found.negative:
                status = Status.SADDLE
    state = Equilibrium(
        system,
        potential,
        float(_energy(potential, system)),
        norm,
        steps,
        status,
        found,
        repr(solver),
    )
    if throw and not state.converged:
        raise ConvergenceError(f"The structure after {steps} steps (fmax {norm:.1e} eV/Å): {status.value}.")
    return state


def listed_tightly(system: System, potential: Potential) -> System:
    """The system with the list that an equilibrium keeps; a function of positions and range alone."""
    reach = float(np.asarray(potential.range))
    return system.with_neighbors(potential, skin=TIGHT_SKIN * reach if np.isfinite(reach) else None)


_energy = eqx.filter_jit(total_energy)


def _check_settings(system, fmax, cell, pressure, max_steps):
    if not is_concrete(system):
        raise InputError(
            "relax works on concrete structures; inside jit, vmap or grad use equilibrium_positions(system, potential)."
        )
    if not (np.isscalar(fmax) and 0.0 < fmax < np.inf):
        raise InputError(f"fmax must be a positive force in eV/Å, not {fmax!r}.")
    if cell != "fixed" or pressure != 0.0:
        raise InputError('Only cell="fixed" at pressure=0.0 is available in this version.')
    if max_steps < 1:
        raise InputError(f"max_steps must be at least 1, not {max_steps}.")
    if system.positions.dtype == jnp.float32 and fmax < FLOAT32_FMAX:
        raise InputError(
            f"Forces in float32 have a rounding noise far above fmax={fmax:g}: ask for fmax={FLOAT32_FMAX:g} or more, "
            "or use float64."
        )
    if np.asarray(system.frozen).all():
        raise InputError("All atoms are frozen: there is nothing to relax.")


@dataclasses.dataclass(frozen=True)
class _Settings:
    solver: Any
    fmax: float
    max_steps: int


class _Witness(eqx.Module):
    """What the equilibrium condition needs beside the parameters, found by the solver; and how the solve ended."""

    frame: Frame
    status: Array


def equilibrium_positions(
    system: System,
    potential: Potential,
    *,
    solver: Any = None,
    fmax: float = 1e-8,
    max_steps: int = 100_000,
    return_status: bool = False,
):
    """Relaxed positions `(N, dim)` [Å] as a JAX function of `potential`.

    Differentiable in the potential to any order, forward and reverse, and works under `jit` and `vmap`. With concrete
    values it is `relax`. Under `jit` and `vmap` a compiled solver runs on a list of fixed size, built from the concrete
    system with a margin (or on the list attached by `system.with_neighbors(potential, skin=...)`): where it does not
    converge, or an atom moves beyond the margin, the positions are NaN. Curvatures are not looked at there: only `relax`
    tells a saddle point from a minimum (their derivative at a saddle point is NaN where the solve meets it).

    Args:
        return_status: return `(positions, code)`, with `Status.from_code(code)` saying how it ended.

    Raises:
        InputError: a traced system, or what `relax` refuses.
        ConvergenceError: outside `jit` and `vmap`, as `relax`.
    """
    potential.check(system)
    _check_settings(system, fmax, "fixed", 0.0, max_steps)
    settings = _Settings(solver, fmax, max_steps)
    solution = differentiable_solution(
        lambda _, potential: _find(system, potential, settings),
        _condition,
        symmetric=True,
        linear_solver=CG(),
        gauge=_condition_gauge,
        operator=_condition_operator,
        project=True,
    )
    positions, witness = solution((), potential)
    return (positions, witness.status) if return_status else positions


def _condition(positions, witness, potential):
    return gradient(positions, (witness.frame, potential))


def _condition_gauge(positions, witness, potential):
    return gauge(positions, (witness.frame, potential))


def _condition_operator(positions, witness, potential):
    return hessian_operator(positions, (witness.frame, potential))


def _find(system, potential, settings):
    if is_concrete(potential):
        eq = relax(system, potential, **{f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)})
        return eq.system.positions, _Witness(eq.frame, jnp.asarray(eq.status.code))
    # The list and the gauge are made from concrete values on the host, though a trace is under way.
    with jax.ensure_compile_time_eval():
        if system.neighbors is None or _is_tight(system.neighbors):
            system = system.with_neighbors(potential, skin=_traced_skin(system, potential))
        frame = Frame(system, rigid_motions(system))
    return _descend_traced(frame, potential, settings)


def _descend_traced(frame, potential, settings):
    data = (frame, potential)
    steps, solver = settings.max_steps, FIRE() if settings.solver is None else settings.solver

    def descend(carry, tolerance):
        z, code = carry
        z, _, code = solve_traced(PROBLEM, solver, z, data, tolerance=tolerance, max_steps=steps)
        polished, _, arrived = solve_traced(PROBLEM, Newton(), z, data, tolerance=settings.fmax, max_steps=NEWTON_STEPS)
        return (jnp.where(arrived == Status.CONVERGED.code, polished, z), code), None

    # As on the host: Newton at once, unless a solver was asked for; else the solver to a hand-over, and Newton; where it
    # refuses there too, the solver to the end. A round that finds itself at the end has no work.
    start = (frame.system.positions, jnp.asarray(Status.MAX_STEPS.code))
    handovers = [max(settings.fmax, 1e-2 * HANDOVER), settings.fmax]
    if settings.solver is None:
        handovers = [np.inf, *handovers]
    (z, status), _ = jax.lax.scan(descend, start, jnp.asarray(handovers))
    return jnp.where(status == Status.CONVERGED.code, z, jnp.nan), _Witness(frame, status)


def _is_tight(neighbors) -> bool:
    """Whether a list is the one that an equilibrium keeps, in which atoms have no room to move."""
    return isinstance(neighbors, Neighbors) and bool(neighbors.skin <= 1.01 * TIGHT_SKIN * (neighbors.radius - neighbors.skin))


def _traced_skin(system, potential) -> float | None:
    """The longest of a few skins whose lists stay small; None where the potential has its own idea of a list."""
    reach = potential._host_range()
    if not np.isfinite(reach):
        return None
    ball = {2: np.pi, 3: 4.0 * np.pi / 3.0}[system.dim]
    volume = float(system.volume) if system.cell is not None else 0.0
    for share in (3.0, 2.0, 1.0, 0.5):
        listed = len(system) * ball * ((1.0 + share) * reach) ** system.dim / volume if volume else len(system)
        if listed <= TRACED_CAPACITY:
            return share * reach
    return 0.25 * reach
