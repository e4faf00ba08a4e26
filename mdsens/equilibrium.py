"""`relax`: system + potential + solver → `Equilibrium`; `equilibrium_positions`: the same as a JAX function."""

import dataclasses
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mdsens import batches, words
from mdsens.constrained import settle
from mdsens.constraints import Constraint, Constraints, bound_constraints
from mdsens.curvature import Curvature, curvature, is_saddle, kept_hessian
from mdsens.descent import (
    HANDOVER,
    LOADED_PROBLEM,
    NEWTON_STEPS,
    PROBLEM,
    Settings,
    UnstableCell,
    descend,
    in_units,
    is_tight,
    listed_here,
    listed_tightly,
    unbalanced,
)
from mdsens.errors import CoincidingAtoms, ConvergenceError, InputError
from mdsens.factors import KeptHessian
from mdsens.frame import Frame, as_unknown, cell_freedom, frame_of, gridded, periodic_volume
from mdsens.implicit import CG, differentiable_solution
from mdsens.implicit.checks import is_traced
from mdsens.implicit.linear_system import Gauge
from mdsens.implicit.probes import finite_or, withheld
from mdsens.potentials.base import Potential, total_energy
from mdsens.scales import Units, scales_of, traced_distance, traced_scales
from mdsens.solvers import LBFGS, Newton, Status, solve_traced
from mdsens.spelling import Spelled, spelled
from mdsens.stiffness import gauge, gradient, hessian_operator, known_gauge
from mdsens.system import System, is_concrete
from mdsens.units import stress_unit

FLOAT32_FMAX = 1e-3
"""Smallest fmax that forces in 32 bits can be asked for."""

TRACED_CAPACITY = 100
"""Expected number of neighbours up to which a list for the traced world is made longer."""


class Equilibrium(Spelled, eqx.Module):
    """A relaxed structure, with what its derivatives need.

    Attributes:
        system: the relaxed system, with its neighbour list.
        potential: the potential it was relaxed with.
        energy: potential energy [eV].
        fmax: largest force on an atom that is not frozen [eV/Å]; with constraints, what they do not balance.
        steps: steps taken by all solvers together.
        status: how it ended; the sentence is `status.value`.
        curvature: ends of the Hessian's spectrum, None if it was not asked for.
        solver: what was asked for, in words; without, Newton's method and where it refuses L-BFGS before it.
        cell: the freedom of the cell: `"fixed"`, `"isotropic"`, `"free"`, or the mask of free strains as nested tuples.
        load: the pressure or stress that a free cell was asked to balance, a stress as nested tuples [GPa; in 2-D eV/Å²]; None
            at a fixed cell. What presses in any state is `observables.pressure(eq.system, eq.potential)`.
        stress_error: largest component of the stress that was not balanced [GPa; in 2-D eV/Å²]; 0 for a fixed cell. In slabs
            and wires it is that of a layer, or a cross-section, of unit size.
        index: how many negative curvatures were asked for: 0 for a minimum, 1 for a saddle point.
        constraints: with their references; `constraints.active` says which inequalities hold with equality.
        multipliers: of the constraints' equations, then of the active inequalities [eV per unit of the constraint].
        kept: the Hessian and its factors, for the derivatives' linear systems, where they take no more than 160 MB (factors of
            large systems in the plane may take more). Not in files: derivatives make them again.
    """

    copying: ClassVar[str] = "eq.again(potential) relaxes it with another potential"

    system: System
    potential: Potential
    energy: float = eqx.field(static=True)
    fmax: float = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    status: Status = eqx.field(static=True)
    curvature: Curvature | None = eqx.field(static=True)
    solver: str = eqx.field(static=True)
    cell: Any = eqx.field(static=True, default="fixed")
    load: Any = eqx.field(static=True, default=None)
    stress_error: float = eqx.field(static=True, default=0.0)
    index: int = eqx.field(static=True, default=0)
    constraints: Constraints | None = None
    multipliers: Array | None = None
    kept: KeptHessian = eqx.field(static=True, default=KeptHessian())

    def __repr__(self) -> str:
        plain = isinstance(self.potential, Potential) and words.is_plain(self.system)
        return "\n  ".join(["Equilibrium", *words.of_equilibrium(self)]) if plain else super().__repr__()

    @property
    def converged(self) -> bool:
        return self.status is Status.CONVERGED

    @property
    def is_as_relaxed(self) -> bool:
        """Whether potential, structure and conditions are those that were relaxed; not so behind `eqx.tree_at`, say."""
        return self.kept.is_of(self._ingredients)

    @property
    def _ingredients(self) -> Any:
        alone = eqx.tree_at(lambda s: s.neighbors, self.system, None, is_leaf=lambda leaf: leaf is None)
        return alone, self.potential, self.constraints, self.multipliers, (self.cell, self.load, self.index)

    def as_made(self) -> "Equilibrium":
        """Return the equilibrium, which remembers what it was made from [host]."""
        return dataclasses.replace(self, kept=dataclasses.replace(self.kept, made_from=self._ingredients))

    @property
    def frame(self) -> Frame:
        """The state as the reference of an unknown, `frame.start`."""
        frame = frame_of(
            self.system, cell_freedom(self.system, self.cell, 0.0 if self.load is None else self.load), self.constraints
        )
        return gridded(frame, self.kept.grid)

    @property
    def unknown(self) -> Any:
        """z at the state."""
        return self.unknown_in(self.frame)

    def unknown_in(self, frame: Frame) -> Any:
        """z at the state in its own frame, made before."""
        start = frame.start
        if self.multipliers is None or self.constraints is None:
            return start
        return as_unknown(start)._replace(multipliers=self.multipliers / self.constraints.factors)

    def again(self, potential: Potential | None = None, **options: Any) -> "Equilibrium":
        """Relaxed again from here under the same conditions, with another potential; options as for `relax`."""
        potential = self.potential if potential is None else potential
        if self.index:
            from mdsens.saddle import find_saddle

            return find_saddle(self.system, potential, **options)
        parts = () if self.constraints is None else self.constraints.parts
        load = 0.0 if self.load is None else self.load
        conditions = {"cell": self.cell, "pressure": load, "constraints": parts, **options}
        return relax(self.system, potential, **conditions)


@spelled
def relax(
    system: System,
    potential: Potential,
    *,
    solver: Any = None,
    fmax: float | None = None,
    cell: Any = "fixed",
    pressure: Any = 0.0,
    smax: float | None = None,
    constraints: Sequence[Constraint] = (),
    max_steps: int = 100_000,
    polish: bool = True,
    check_minimum: bool = True,
    throw: bool = True,
    progress: bool | None = None,
) -> Equilibrium:
    """Find the nearest minimum of the energy, or of U + pV where the cell is free: an equilibrium at a temperature of 0 K.

    Atoms rest at their places, without thermal or zero-point motion; `observables.harmonic_free_energy` adds what harmonic
    vibrations give. A free cell strains symmetrically, without rotation; frozen atoms ride with it.

    Args:
        solver: `FIRE()`, `Newton()`, `solvers.JaxMD(minimizer)`; by default L-BFGS where Newton cannot do it alone.
        fmax: largest force that may be left on an atom [eV/Å]; by default 1e-11 of the system's own stiffness times the distance
            of neighbours, whatever its units: about 1e-9 eV/Å in covalent solids and metals.
        cell: `"fixed"`, `"isotropic"` (shape kept), `"free"`, or the mask of the strains that are free, `(dim, dim)` or in
            Voigt order; with shears in the mask the other strains stay as they are to second order only. Directions that are
            not periodic never strain.
        pressure: what a free cell is relaxed to: a pressure, or a stress `(dim, dim)` or in Voigt order, positive where it
            pulls [GPa; in 2-D eV/Å²].
        smax: largest component of the stress that may be left [GPa; in 2-D eV/Å²]. By default forces on strains obey fmax,
            which leaves less stress than fmax / (√N Å²).
        constraints: what else must hold, from `mdsens.constraints`.
        max_steps: steps of all solvers together.
        polish: let Newton's method take over as soon as it can, so that fmax = 1e-12 is ordinary.
        check_minimum: compute the lowest curvature and refuse a saddle point.
        throw: raise if the state is not what was asked; otherwise it is returned with its status.
        progress: show a bar; by default only at a terminal and for long work.

    Raises:
        InputError: the system does not fit the potential, coinciding atoms, a setting out of its range, a mask or stress of
            the wrong shape, a load that the cell cannot follow, constraints that depend on each other.
        ConvergenceError: the state did not converge, is not finite, or is a saddle point; the cell collapsed or flew apart;
            the constraints contradict each other.
    """
    check_settings(system, potential, fmax, max_steps, smax)
    system = system.as_held(False)
    if isinstance(solver, str | type):
        raise InputError(f"A solver is an object with its settings, such as ms.FIRE(), not {solver!r}.")
    way = repr(solver) if solver is not None else "Newton(), LBFGS() where it refuses" if polish else "LBFGS()"
    # A pressure is read with the cell's freedom, which refuses one that a fixed cell could not follow.
    load = None if isinstance(cell, str) and cell == "fixed" else _hashable(pressure)
    asked = {"cell": _hashable(cell), "load": load, "solver": way}
    try:
        newton_first = solver is None and polish and not constraints
        # The list of Newton's steps, which are few and mostly short.
        system = listed_tightly(system, potential) if newton_first else potential.prepared(system)
        bound = bound_constraints(constraints, system)
        frame = frame_of(system, cell_freedom(system, cell, pressure), bound)
        check_movable(frame)
        if frame.freedom is None and smax is not None:
            raise InputError('smax is for a cell that may change: leave it out, or ask for cell="free".')
        frame, own = listed_here(frame), fmax is None
        scales = scales_of(PROBLEM if frame.symmetric else LOADED_PROBLEM, frame.start, (frame, potential))
        fmax = float(scales.fmax) if fmax is None else fmax
        tolerance = _tolerance(frame, fmax, smax)
        settings = Settings(solver, tolerance, max_steps, polish, progress, own=own and smax is None, units=scales.units)
        reach = settle if bound is not None and bound.has_values(system) else descend
        return finish(reach(frame, potential, settings), potential, asked, check_minimum, throw)
    except CoincidingAtoms as error:
        if throw:
            raise
        there = system.with_positions(jnp.asarray(error.positions))
        return Equilibrium(there, potential, np.nan, np.nan, 0, Status.COINCIDING, None, **asked)
    except UnstableCell as error:
        if throw:
            raise ConvergenceError(f"The structure was not relaxed: {error}.") from None
        there = error.frame.place(error.z)
        return Equilibrium(there, potential, np.nan, np.nan, 0, Status.UNSTABLE_CELL, None, **asked)


def _hashable(setting: Any) -> Any:
    """A mask or a stress as nested tuples."""
    try:
        return setting if isinstance(setting, str) else nested(np.asarray(setting).tolist())
    except ValueError:
        raise InputError(f"The rows of a mask or a stress must be of one length, unlike {setting!r:.80}.") from None


def nested(value: Any) -> Any:
    """Lists as tuples."""
    return tuple(nested(entry) for entry in value) if isinstance(value, list) else value


def _tolerance(frame: Frame, fmax: float, smax: float | None) -> float:
    """The largest force on an atom or a strain's component for which forces and stress are small enough [eV/Å]."""
    if frame.freedom is None or smax is None:
        return fmax
    freedom, system = frame.freedom, frame.system
    per_stress = float(periodic_volume(system) / freedom.length) / np.sqrt(len(freedom.directions))
    return min(fmax, smax / stress_unit(system.dim) * per_stress)


def finish(arrival: Any, potential: Potential, asked: Any, check_minimum: bool, throw: bool) -> Equilibrium:
    """The equilibrium at which a descent (or a climb) arrived, looked at [host].

    Args:
        asked: fields of the equilibrium that say what was asked for.
    """
    frame, z, status, found, kept = arrival.frame, arrival.z, arrival.status, None, KeptHessian()
    system, fmax, stress_error = frame.system, arrival.norm, 0.0
    if status is not Status.NOT_FINITE:
        if frame.freedom is not None:
            fmax, stress_error = _left(z, frame, potential)
        if status is Status.CONVERGED and check_minimum:
            seen = gridded(frame)
            found, kept = curvature(z, seen, potential)
            kept = dataclasses.replace(kept, grid=seen.grid)
            if found.index != asked.get("index", 0):
                status = Status.WRONG_INDEX if asked.get("index") else Status.SADDLE
            elif frame.freedom is not None and found.highest == 0.0:
                status = Status.UNSTABLE_CELL
    state = Equilibrium(
        system.as_held(frame.constraints is not None and frame.constraints.hold),
        potential,
        float(_energy(potential, system)),
        fmax,
        arrival.steps,
        status,
        found,
        stress_error=stress_error,
        constraints=frame.constraints,
        multipliers=None if getattr(z, "multipliers", None) is None else frame.constraints.factors * z.multipliers,
        kept=kept if frame.freedom is None else KeptHessian(),
        **asked,
    )
    if kept.factor is not None and frame.freedom is not None and found is not None:
        # A strain is counted in a unit that follows the cell: derivatives see it from the relaxed one.
        own = state.frame
        z = state.unknown_in(own)
        state = dataclasses.replace(state, kept=kept_hessian(z, own, potential, found, known_gauge(z, own, found.rattlers)))
    state = state.as_made()
    if throw and not state.converged:
        raise ConvergenceError(f"The structure after {arrival.steps} steps (fmax {fmax:.1e} eV/Å): {status.value}.")
    return state


def _left(z: Any, frame: Frame, potential: Potential) -> tuple[float, float]:
    """The largest force on an atom [eV/Å], and the largest component of the stress that is not balanced."""
    slope = as_unknown(unbalanced(z, (frame, potential))[0])
    fmax = float(np.linalg.norm(slope.positions, axis=-1).max())
    freedom = frame.freedom
    assert freedom is not None and slope.strain is not None
    stress = np.tensordot(slope.strain, freedom.directions, 1) * float(freedom.length) / periodic_volume(frame.system)
    return fmax, float(np.abs(stress).max()) * stress_unit(frame.system.dim)


_energy = eqx.filter_jit(total_energy)


def check_settings(system: System, potential: Potential, fmax: float | None, max_steps: int, smax: float | None = None) -> None:
    """Raises InputError for what no relaxation can be asked for."""
    if not isinstance(potential, Potential):
        raise InputError(
            f"A potential is wanted behind the system, such as StillingerWeber.silicon(), not {type(potential).__name__}: "
            "ms.from_ase(calculator) makes one of a calculator of ASE, ms.JaxMD(energy) of a function."
        )
    potential.check(system)
    if not is_concrete(system):
        raise InputError(
            "relax works on concrete structures; inside jit, vmap or grad use equilibrium_positions(system, potential)."
        )
    if not (fmax is None or (isinstance(fmax, Real) and 0.0 < fmax < np.inf)):
        raise InputError(f"fmax must be a positive force in eV/Å, or None, not {fmax!r}.")
    if smax is not None and not (isinstance(smax, Real) and 0.0 < smax < np.inf):
        raise InputError(f"smax must be a positive stress in GPa, or None, not {smax!r}.")
    if not (isinstance(max_steps, Integral) and max_steps >= 1):
        raise InputError(f"max_steps must be at least 1, not {max_steps}.")
    if system.positions.dtype == jnp.float32 and (fmax is None or fmax < FLOAT32_FMAX):
        named = "the default fmax" if fmax is None else f"fmax={fmax:g}"
        raise InputError(
            f"Forces in float32 have a rounding noise far above {named}: ask for fmax={FLOAT32_FMAX:g} or more, or use float64."
        )


def check_movable(frame: Frame) -> None:
    """Raises InputError where nothing can move."""
    held = np.asarray(frame.system.frozen)[:, None]
    if frame.constraints is not None:
        held = held | np.asarray(frame.constraints.held)
    if frame.freedom is None and held.all():
        raise InputError("All atoms are frozen or held: there is nothing to relax.")


@dataclasses.dataclass(frozen=True)
class _Settings:
    solver: Any
    fmax: float | None
    max_steps: int


class _Witness(eqx.Module):
    """What the equilibrium condition needs beside the parameters, found by the solver; and how the solve ended."""

    frame: Frame
    status: Array


@spelled
def equilibrium_positions(
    system: System | Sequence[System],
    potential: Potential,
    *,
    solver: Any = None,
    fmax: float | None = None,
    max_steps: int = 100_000,
    return_status: bool = False,
) -> Any:
    """Relaxed positions `(N, dim)` [Å] as a JAX function of `potential`.

    Differentiable in the potential to any order, forward and reverse, and works under `jit` and `vmap`. With concrete
    values it is `relax`. Under `jit` and `vmap` a compiled solver runs on a list of fixed size, built from the concrete
    system with a margin (or on the list attached by `system.with_neighbors(potential, skin=...)`): where it does not
    converge, or an atom moves beyond the margin, the positions are NaN. Curvatures of a single system are not looked at there:
    only `relax` tells a saddle point from a minimum (their derivative at a saddle point is NaN where the solve meets it).

    Of several systems, which may differ in everything but the dimension, it gives a list, from compiled solvers that systems
    of similar size share: they are padded to a few shapes. What does not converge, or arrives at a saddle point, is NaN, and
    changes nothing for the others.

    Args:
        system: a concrete system, or a list of them.
        return_status: return `(positions, code)`, with `Status.from_code(code)` saying how it ended; of several, codes.

    Raises:
        InputError: a traced system, or what `relax` refuses.
        ConvergenceError: outside `jit` and `vmap`, as `relax`.
    """
    settings = _Settings(solver, fmax, max_steps)
    if isinstance(system, list | tuple):
        batches.each(lambda one: _check_traceable(one, potential, settings), system)
        positions, codes = _find_together(system, potential, settings)
    else:
        _check_traceable(system, potential, settings)
        found = _implicit(lambda _, potential: _find(system, potential, settings))
        positions, witness = found((), potential)
        codes = witness.status
        if is_traced(codes):
            positions = withheld(codes != Status.CONVERGED.code, positions)
    return (positions, codes) if return_status else positions


def _check_traceable(system: Any, potential: Potential, settings: Any) -> None:
    check_settings(system, potential, settings.fmax, settings.max_steps)
    if is_concrete(system):
        check_movable(Frame(system, None))  # type: ignore[arg-type]  # motions are of no account


def _implicit(find: Callable[..., Any]) -> Callable[..., Any]:
    """The positions that `find(start, potential)` gives with a witness, differentiable in the potential."""
    return differentiable_solution(
        find,
        _condition,
        symmetric=True,
        linear_solver=CG(),
        gauge=_condition_gauge,
        operator=_condition_operator,
        project=True,
    )


def _condition(positions: Array, witness: Any, potential: Potential) -> Any:
    return gradient(positions, (witness.frame, potential))


def _condition_gauge(positions: Array, witness: Any, potential: Potential) -> Gauge:
    return gauge(positions, (witness.frame, potential))


def _condition_operator(positions: Array, witness: Any, potential: Potential) -> Callable[..., Any]:
    return hessian_operator(positions, (witness.frame, potential))


def _find(system: Any, potential: Potential, settings: Any) -> tuple[Array, _Witness]:
    if is_concrete(potential):
        eq = relax(system, potential, **{f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)})
        return eq.system.positions, _Witness(eq.frame, jnp.asarray(eq.status.code))
    # The list and the gauge are made from concrete values on the host, though a trace is under way.
    with jax.ensure_compile_time_eval():
        if system.neighbors is None or is_tight(system.neighbors):
            system = system.with_neighbors(potential, skin=_traced_skin(system, potential))
        frame = frame_of(system)
    return _descend_traced(frame, potential, settings)


def _find_together(systems: Any, potential: Potential, settings: Any) -> tuple[Any, Array]:
    with jax.ensure_compile_time_eval():
        systems = batches.each(lambda one: batches.listed(one, potential, _traced_skin(one, potential)), systems)
        groups = batches.grouped(systems)
    positions: list[Any] = [None] * len(systems)
    codes: list[Any] = [None] * len(systems)
    for members, frames in groups:
        found, status = _relaxed_group(frames, potential, settings)
        for k, x, code in zip(members, found, status, strict=True):
            positions[k], codes[k] = x[: len(systems[k])], code
    return positions, jnp.stack(codes)


@eqx.filter_jit
def _relaxed_group(frames: Any, potential: Potential, settings: Any) -> tuple[Array, Array]:
    found = _implicit(lambda frame, potential: _descend_traced(frame, potential, settings))

    def relaxed(frame: Frame) -> tuple[Array, Array]:
        positions, witness = found(frame, potential)
        saddle = (witness.status == Status.CONVERGED.code) & is_saddle(*jax.lax.stop_gradient((positions, frame, potential)))
        status = jnp.where(saddle, Status.SADDLE.code, witness.status)
        return withheld(status != Status.CONVERGED.code, positions), status

    # One after the other: each takes the steps that it needs, and no more.
    return jax.lax.map(relaxed, frames)


def _descend_traced(frame: Frame, potential: Potential, settings: Any) -> tuple[Array, _Witness]:
    data = (frame, potential)
    steps, length = settings.max_steps, traced_distance(frame.system, potential)
    units = traced_scales(PROBLEM, frame.system.positions, data, length).units
    # Settings of our own choice of solvers are counted in the system's units: those of one that was asked for are not.
    problem, unit = (PROBLEM, Units()) if settings.solver is not None else (in_units(units), units)
    solver = LBFGS() if settings.solver is None else settings.solver

    def descend(carry: Any, tolerance: Array) -> tuple[Any, None]:
        z, code = carry
        fmax = settings.fmax
        if fmax is None:
            fmax = traced_scales(PROBLEM, z * unit.length, data, length).fmax
        fmax = fmax / unit.force
        tolerance = jnp.maximum(tolerance, fmax)
        z, _, code = solve_traced(problem, solver, z, data, tolerance=tolerance, max_steps=steps)
        polished, _, arrived = solve_traced(problem, Newton(), z, data, tolerance=fmax, max_steps=NEWTON_STEPS)
        return (jnp.where(arrived == Status.CONVERGED.code, polished, z), code), None

    # As on the host: Newton at once, unless a solver was asked for; else the solver to a hand-over, and Newton; where it
    # refuses there too, the solver to the end. A round that finds itself at the end has no work.
    start = (frame.system.positions / unit.length, jnp.asarray(Status.MAX_STEPS.code))
    handovers = [1e-2 * HANDOVER, 0.0]
    if settings.solver is None:
        handovers = [np.inf, *handovers]
    (z, status), _ = jax.lax.scan(descend, start, jnp.asarray(handovers))
    return finite_or(z * unit.length, frame.system.positions), _Witness(frame, status)


def _traced_skin(system: System, potential: Potential) -> float | None:
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
