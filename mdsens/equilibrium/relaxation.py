"""One structure: system + potential + solver → `Equilibrium`, a minimum; and `saddle_from`, the saddle point beside it."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mdsens.common.blas import one_thread
from mdsens.common.errors import CoincidingAtoms, ConvergenceError, InputError
from mdsens.common.hidden_value import HiddenValue
from mdsens.common.modules import with_fields
from mdsens.common.suggestions import NameSuggester, suggest_names
from mdsens.common.units import stress_unit
from mdsens.equilibrium import descent
from mdsens.equilibrium.climb import checked_mode, climb
from mdsens.equilibrium.constrained_descent import settle
from mdsens.mechanics.bound_constraints import Constraint, Constraints, bound_constraints
from mdsens.mechanics.dense_system import DenseSystem
from mdsens.mechanics.hessian import Hessian, dense_hessian, hessian_at, known_hessian
from mdsens.mechanics.landscape import Landscape
from mdsens.mechanics.preconditioner import CoarseGrid
from mdsens.mechanics.programs import energy_and_slopes
from mdsens.mechanics.rigid_motions import rigid_motions
from mdsens.mechanics.scales import scales_of
from mdsens.mechanics.spectrum import Spectrum
from mdsens.mechanics.unknown import (
    Reference,
    Unknown,
    as_unknown,
    cell_freedom,
    force_tolerance,
    periodic_volume,
    reference_at,
    with_coarse_grid,
)
from mdsens.potentials.base import Potential
from mdsens.solvers import Status
from mdsens.structures.system import System, atoms_text, cell_text, has_values, is_concrete, periodicity_text

SMAX_OF_FIXED_CELL = 'smax is for a cell that may change: leave it out, or ask for cell="free".'

FLOAT32_FMAX = 1e-3
"""Smallest fmax that forces in 32 bits can reach."""


@dataclasses.dataclass
class Memory:
    """The origin of an equilibrium, and what was computed at it.

    Attributes:
        ingredients: structure, potential and conditions that it was made of.
        fields: the same as they are in its fields.
        grid: of its reference's preconditioner; None before it is made.
        hessian: at the state; None before it is made.
        dense: its linear system, of which the Hessian can be made; None where it was not kept.
    """

    ingredients: Any
    fields: tuple[Any, ...]
    grid: CoarseGrid | None
    hessian: Hessian | None
    dense: DenseSystem | None = None

    def is_of(self, ingredients: Any) -> bool:
        """Return whether the equilibrium was made of just these."""
        (ours, alike), (theirs, like) = jax.tree.flatten(self.ingredients), jax.tree.flatten(ingredients)
        # Leaves are arrays, or words of the conditions.
        return bool(alike == like) and all(  # type: ignore[operator]  # of jax's stubs
            a is b or np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)
        )


class Equilibrium(NameSuggester, eqx.Module):
    """A relaxed structure, with what its derivatives need.

        eq = ms.relax(system, ms.StillingerWeber.silicon(), cell="free")
        eq.energy, eq.system.positions, eq.hessian.spectrum.lowest

    Attributes:
        system: the relaxed system, with its neighbour list.
        potential: the potential it was relaxed with.
        energy: potential energy [eV].
        fmax: largest force on an atom that is not frozen [eV/Å]; with constraints, what they do not balance.
        steps: steps taken by all solvers together.
        status: how it ended; the sentence is `status.value`.
        spectrum: ends of the Hessian's spectrum, None if it was not asked for.
        solver: the one that was asked for, in words; by default Newton's method, and where it refuses L-BFGS before it.
        cell: the freedom of the cell: `"fixed"`, `"isotropic"`, `"free"`, or the mask of free strains as nested tuples.
        load: the pressure or stress that a free cell was asked to balance, a stress as nested tuples [GPa; in 2-D eV/Å²]; None
            at a fixed cell. What presses in any state is `observables.pressure(eq.system, eq.potential)`.
        stress_error: largest component of the stress that was not balanced [GPa; in 2-D eV/Å²]; 0 for a fixed cell. In slabs
            and wires it is that of a layer, or a cross-section, of unit size.
        index: number of negative curvatures that were asked for: 0 for a minimum, 1 for a saddle point.
        constraints: bound to their references; `constraints.active` says which inequalities hold with equality.
        multipliers: of the constraints' equations, then of the active inequalities [eV per unit of the constraint].
        kept: what it was made of, and its `hessian`; not in files.
    """

    copying: ClassVar[str] = "eq.again(potential) relaxes it with another potential"

    system: System
    potential: Potential
    energy: float = eqx.field(static=True)
    fmax: float = eqx.field(static=True)
    steps: int = eqx.field(static=True)
    status: Status = eqx.field(static=True)
    spectrum: Spectrum | None = eqx.field(static=True)
    solver: str = eqx.field(static=True)
    cell: Any = eqx.field(static=True, default="fixed")
    load: Any = eqx.field(static=True, default=None)
    stress_error: float = eqx.field(static=True, default=0.0)
    index: int = eqx.field(static=True, default=0)
    constraints: Constraints | None = None
    multipliers: Array | None = None
    kept: HiddenValue[Memory | None] = eqx.field(static=True, default=HiddenValue(None))

    def __repr__(self) -> str:
        plain = isinstance(self.potential, Potential) and has_values(self.system)
        return "\n  ".join(["Equilibrium", *equilibrium_lines(self)]) if plain else super().__repr__()

    @property
    def curvature(self) -> Spectrum | None:
        """The spectrum, by its name in version 0.1."""
        return self.spectrum

    @property
    def converged(self) -> bool:
        """Whether the state is the equilibrium that was asked for."""
        return self.status is Status.CONVERGED

    @property
    def is_as_relaxed(self) -> bool:
        """Whether potential, structure and conditions are those that were relaxed; not so behind `eqx.tree_at`, say."""
        memory = self.kept.value
        if memory is None or all(a is b for a, b in zip(memory.fields, self._fields, strict=True)):
            return True
        return memory.is_of(self._ingredients)

    @property
    def _fields(self) -> tuple[Any, ...]:
        return self.system, self.potential, self.constraints, self.multipliers, self.cell, self.load, self.index

    @property
    def _ingredients(self) -> Any:
        alone = with_fields(self.system, neighbors=None)
        return alone, self.potential, self.constraints, self.multipliers, (self.cell, self.load, self.index)

    def as_made(
        self, hessian: Hessian | None = None, grid: CoarseGrid | None = None, dense: DenseSystem | None = None
    ) -> "Equilibrium":
        """Return the equilibrium with a `Memory` of what it is made of [host]."""
        return with_fields(self, kept=HiddenValue(Memory(self._ingredients, self._fields, grid, hessian, dense)))

    @property
    def hessian(self) -> Hessian:
        """The Hessian at the state, with its spectrum, null space and factors: made once, for all derivatives."""
        as_relaxed = self.is_as_relaxed
        memory = self.kept.value if as_relaxed else None
        if memory is not None and memory.hessian is not None:
            return memory.hessian
        reference = self.reference
        z = self.unknown_in(reference)
        if memory is not None and memory.dense is not None and self.spectrum is not None:
            dense = memory.dense
            hessian = dense_hessian(z, reference, self.potential, self.spectrum, dense)
        elif as_relaxed and self.spectrum is not None:
            hessian = known_hessian(z, reference, self.potential, self.spectrum)
        else:
            hessian = hessian_at(z, reference, self.potential)
        if memory is not None:
            memory.hessian = hessian
        return hessian

    @property
    def reference(self) -> Reference:
        """The state as the reference of an unknown, `reference.start`."""
        freedom = cell_freedom(self.system, self.cell, 0.0 if self.load is None else self.load)
        # Of NumPy's arrays, which are made in a fraction of the time.
        motions = rigid_motions(self.system, self.constraints, on_device=False)
        reference = Reference(self.system, motions, freedom, self.constraints)
        memory = self.kept.value
        return with_coarse_grid(reference, None if memory is None else memory.grid)

    @property
    def unknown(self) -> Unknown | Array:
        """The unknown z at the state."""
        return self.unknown_in(self.reference)

    def unknown_in(self, reference: Reference) -> Unknown | Array:
        """Return z at the state in its own reference, made before."""
        start = reference.start
        if self.multipliers is None or self.constraints is None:
            return start
        return as_unknown(start)._replace(multipliers=self.multipliers / self.constraints.factors)

    def again(self, potential: Potential | None = None, **options: Any) -> "Equilibrium":
        """Relax again from here under the same conditions, with another potential; options as for `relax`."""
        potential = self.potential if potential is None else potential
        if self.index:
            return saddle_from(self.system, potential, **options)
        parts = () if self.constraints is None else self.constraints.parts
        load = 0.0 if self.load is None else self.load
        conditions = {"cell": self.cell, "pressure": load, "constraints": parts, **options}
        return relax(self.system, potential, **conditions)


@suggest_names
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
    """Relax one structure; all as for `mdsens.equilibrium.relaxations.relax`."""
    check_settings(system, potential, fmax, max_steps, smax)
    system = system.as_held(False)
    if isinstance(solver, str | type):
        raise InputError(f"A solver is an object with its settings, such as ms.FIRE(), not {solver!r}.")
    method = repr(solver) if solver is not None else "Newton(), LBFGS() where it refuses" if polish else "LBFGS()"
    # `cell_freedom` refuses a pressure that a fixed cell could not follow.
    load = None if isinstance(cell, str) and cell == "fixed" else hashable(pressure)
    request = {"cell": hashable(cell), "load": load, "solver": method}
    try:
        newton_first = solver is None and polish and not constraints
        # Newton's steps are few and mostly short: a tight list will do.
        system = descent.with_tight_list(system, potential) if newton_first else potential.prepared(system)
        bound = bound_constraints(constraints, system)
        reference = reference_at(system, cell_freedom(system, cell, pressure), bound)
        check_movable(reference)
        if reference.freedom is None and smax is not None:
            raise InputError(SMAX_OF_FIXED_CELL)
        reference, own = descent.mark_listed(reference), fmax is None
        problem = descent.PROBLEM if reference.symmetric else descent.LOADED_PROBLEM
        scales = scales_of(problem, reference.start, Landscape(reference, potential))
        fmax = float(scales.fmax) if fmax is None else fmax
        tolerance = force_tolerance(reference, fmax, smax)
        settings = descent.Settings(solver, tolerance, max_steps, polish, progress, own=own and smax is None, units=scales.units)
        reach = settle if bound is not None and bound.has_values(system) else descent.descend
        with one_thread(system.positions.size):
            return finish(reach(reference, potential, settings), potential, request, check_minimum, throw)
    except CoincidingAtoms as error:
        if throw:
            raise
        return _failure(system.with_positions(jnp.asarray(error.positions)), potential, Status.COINCIDING, request)
    except descent.UnstableCell as error:
        if throw:
            raise ConvergenceError(f"The structure was not relaxed: {error}.") from None
        return _failure(error.reference.place(error.z), potential, Status.UNSTABLE_CELL, request)


def _failure(system: System, potential: Potential, status: Status, request: Mapping[str, Any]) -> Equilibrium:
    return Equilibrium(system, potential, np.nan, np.nan, 0, status, None, **request)


def hashable(setting: Any) -> Any:
    """Return a mask or a stress as nested tuples."""
    try:
        return setting if isinstance(setting, str) else as_tuples(np.asarray(setting).tolist())
    except ValueError:
        raise InputError(f"The rows of a mask or a stress must be of one length, unlike {setting!r:.80}.") from None


def as_tuples(value: Any) -> Any:
    """Return nested lists as nested tuples."""
    return tuple(as_tuples(entry) for entry in value) if isinstance(value, list) else value


def saddle_from(
    system: System,
    potential: Potential,
    *,
    mode: Any = None,
    fmax: float | None = None,
    max_step: float | None = None,
    max_steps: int = 1000,
    throw: bool = True,
    progress: bool | None = None,
) -> Equilibrium:
    """Find the saddle point that minimum-mode following reaches from a structure; all as for `find_saddle`."""
    check_settings(system, potential, fmax, max_steps)
    if not (max_step is None or (isinstance(max_step, Real) and max_step > 0.0)):
        raise InputError(f"max_step must be a positive length in Å, or None, not {max_step!r}.")
    mode = checked_mode(mode, system)
    request: dict[str, Any] = {"cell": "fixed", "load": None, "solver": "MinimumMode()", "index": 1}
    try:
        reference = reference_at(potential.prepared(system))
        check_movable(reference)
        scales = scales_of(descent.PROBLEM, reference.start, Landscape(reference, potential))
        fmax = float(scales.fmax) if fmax is None else fmax
        length = scales.units.length
        max_step = 0.1 * length if max_step is None else max_step
        settings: dict[str, Any] = {"max_step": max_step, "length": length, "max_steps": max_steps, "progress": progress}
        arrival = climb(reference, potential, mode, fmax=fmax, **settings)
    except CoincidingAtoms as error:
        if throw:
            raise
        return _failure(system.with_positions(jnp.asarray(error.positions)), potential, Status.COINCIDING, request)
    return finish(arrival, potential, request, True, throw)


def finish(
    arrival: descent.Arrival, potential: Potential, request: Mapping[str, Any], check_minimum: bool, throw: bool
) -> Equilibrium:
    """Make the equilibrium at which a descent or a climb arrived, and check it [host].

    Args:
        request: fields of the equilibrium that say what was asked for.
    """
    system = arrival.reference.system
    system = system.as_held(arrival.reference.constraints is not None and arrival.reference.constraints.hold)
    reference = eqx.tree_at(lambda r: r.system, arrival.reference, system)
    z, status, fmax, stress_error = arrival.z, arrival.status, arrival.norm, 0.0
    spectrum, hessian = None, None
    if status is not Status.NOT_FINITE:
        if reference.freedom is not None:
            fmax, stress_error = _residuals(z, reference, potential)
        if status is Status.CONVERGED and check_minimum:
            reference = with_coarse_grid(reference)
            hessian = hessian_at(z, reference, potential)
            spectrum = hessian.spectrum
            if spectrum.index != request.get("index", 0):
                status = Status.WRONG_INDEX if request.get("index") else Status.SADDLE
            elif reference.freedom is not None and spectrum.highest == 0.0:
                status = Status.UNSTABLE_CELL
    multipliers = as_unknown(z).multipliers
    state = Equilibrium(
        system,
        potential,
        energy_and_slopes(system, potential, deforms=reference.freedom is not None).energy,
        fmax,
        arrival.steps,
        status,
        spectrum,
        stress_error=stress_error,
        constraints=reference.constraints,
        multipliers=None if multipliers is None else reference.constraints.factors * multipliers,
        **request,
    )
    # The unit of a strain follows the cell, so derivatives need a Hessian in that of the relaxed one.
    state = state.as_made(hessian if reference.freedom is None else None, reference.grid)
    if throw and not state.converged:
        raise ConvergenceError(f"The structure after {arrival.steps} steps (fmax {fmax:.1e} eV/Å): {status.value}.")
    return state


def _residuals(z: Unknown | Array, reference: Reference, potential: Potential) -> tuple[float, float]:
    """Return the largest force on an atom [eV/Å], and the largest component of the stress that is not balanced."""
    return stress_left(descent.residual_forces(z, Landscape(reference, potential))[0], reference)


def stress_left(residual: Any, reference: Reference) -> tuple[float, float]:
    """Return the largest force on an atom [eV/Å] and the largest component of the stress that a residual leaves."""
    slope = as_unknown(residual)
    fmax = float(np.linalg.norm(slope.positions, axis=-1).max())
    freedom = reference.freedom
    assert freedom is not None and slope.strain is not None
    stress = np.tensordot(slope.strain, freedom.directions, 1) * float(freedom.length) / periodic_volume(reference.system)
    return fmax, float(np.abs(stress).max()) * stress_unit(reference.system.dim)


def check_settings(system: System, potential: Potential, fmax: float | None, max_steps: int, smax: float | None = None) -> None:
    """Raise InputError for settings that no relaxation can have."""
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


def check_movable(reference: Reference) -> None:
    """Raise InputError where nothing can move."""
    held = np.asarray(reference.system.frozen)[:, None]
    if reference.constraints is not None:
        held = held | np.asarray(reference.constraints.held)
    if reference.freedom is None and held.all():
        raise InputError("All atoms are frozen or held: there is nothing to relax.")


def equilibrium_lines(eq: Equilibrium) -> Iterator[str]:
    """Describe a relaxed structure, line by line."""
    system, unit = eq.system, "GPa" if eq.system.dim == 3 else "eV/Å²"
    yield f"System       {atoms_text(system)}, {int(system.frozen.sum())} frozen"
    yield f"Cell         {cell_text(system)}, {periodicity_text(system)}"
    yield f"Potential    {' + '.join(type(part).__name__ for part in eq.potential.parts())}"
    if rules := getattr(eq.potential, "rules", ()):
        yield f"             {', '.join(' '.join(rule).strip() for rule in rules)}"
    kind = "saddle point" if eq.index else "equilibrium"
    yield f"State        {kind} at 0 K, {eq.status.name}: energy {eq.energy:.10g} eV, fmax {eq.fmax:.1e} eV/Å, {eq.steps} steps"
    if eq.reference.freedom is not None:
        freedom = eq.cell if isinstance(eq.cell, str) else "partly free"
        load = f"a pressure or stress of {eq.load} {unit} within {eq.stress_error:.1e} {unit}"
        yield f"             cell {freedom}, relaxed to {load}"
    if eq.constraints is not None:
        names = ", ".join(type(part).__name__ for part in eq.constraints.parts)
        yield f"             under {names}; active inequalities: {', '.join(map(str, eq.constraints.active)) or 'none'}"
    if eq.spectrum is not None:
        rattlers = ", ".join(map(str, eq.spectrum.rattlers)) or "none"
        yield f"Curvature    lowest {eq.spectrum.lowest:.4g}, highest {eq.spectrum.highest:.4g} eV/Å², rattlers: {rattlers}"
