"""`relax`: system + potential + solver → `Equilibrium`, a minimum; of one structure, or of many together."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypedDict, TypeVar, Unpack, overload

import jax
import numpy as np

from mdsens.common.errors import BatchError, InputError
from mdsens.common.modules import with_fields
from mdsens.common.progress import bar
from mdsens.common.suggestions import suggest_names
from mdsens.equilibrium import relaxation
from mdsens.equilibrium.relaxation import SMAX_OF_FIXED_CELL, Equilibrium, check_movable, check_settings, hashable, stress_left
from mdsens.equilibrium.together.course import Landing, Wish, course
from mdsens.equilibrium.together.member import LEAST_COUNT, Member, can_go_together
from mdsens.equilibrium.together.workers import run_courses
from mdsens.implicit.trees import is_traced
from mdsens.mechanics.bound_constraints import Constraint
from mdsens.mechanics.unknown import cell_freedom, reference_at
from mdsens.potentials.base import Potential
from mdsens.solvers import Status
from mdsens.structures.system import System

KEPT_BYTES = 1e9
"""Linear systems that are kept with equilibria relaxed together, for their derivatives; those of further ones are made again."""


Name = TypeVar("Name")


class Pair(NamedTuple):
    """What is relaxed: a structure with a potential, and their name in messages."""

    name: str
    system: System
    potential: Potential


class Options(TypedDict, total=False):
    """The options of `relax`."""

    solver: Any
    fmax: float | None
    cell: Any
    pressure: Any
    smax: float | None
    constraints: Sequence[Constraint]
    max_steps: int
    polish: bool
    check_minimum: bool
    throw: bool
    progress: bool | None


@overload
def relax(system: System, potential: Potential, **options: Unpack[Options]) -> Equilibrium: ...
@overload
def relax(system: Mapping[Name, System], potential: Potential, **options: Unpack[Options]) -> dict[Name, Equilibrium]: ...
@overload
def relax(system: Sequence[System], potential: Potential, **options: Unpack[Options]) -> list[Equilibrium]: ...
@overload
def relax(system: System, potential: Sequence[Potential], **options: Unpack[Options]) -> list[Equilibrium]: ...
@suggest_names
def relax(
    system: Any,
    potential: Any,
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
) -> Any:
    """Find the nearest minimum of the energy, or of U + pV where the cell is free: an equilibrium at a temperature of 0 K.

        eq = ms.relax(system, ms.StillingerWeber.silicon(), cell="free")
        eqs = ms.relax([first, second], potential)  # many structures together: a list of equilibria; a dict gives a dict
        committee = ms.relax(system, [potential_a, potential_b])  # one structure with many sets of parameters

    Atoms rest at their places, without thermal or zero-point motion; `observables.harmonic_free_energy` adds what harmonic
    vibrations give. A free cell strains symmetrically, without rotation; frozen atoms ride with it.

    Many small structures are relaxed together, each on its own way: L-BFGS, then steps by Cholesky's factor of the Hessian, which
    proves the minimum. What happens to one changes nothing for the others. What needs another way (a solver of your choice,
    constraints, energies that are no sum over neighbours, more than 1,500 unknowns) goes one after the other.

    Args:
        system: a structure, or several as a list or a dict.
        potential: one for all structures, or several for one structure.
        solver: `FIRE()`, `Newton()`, `solvers.JaxMD(minimizer)`; by default L-BFGS where Newton cannot do it alone.
        fmax: largest force that may be left on an atom [eV/Å]; by default 1e-11 of the system's own stiffness times the distance
            of neighbours, whatever its units: about 1e-9 eV/Å in covalent solids and metals.
        cell: `"fixed"`, `"isotropic"` (shape kept), `"free"`, or the mask of the strains that are free, `(dim, dim)` or in
            Voigt order; with shears in the mask the other strains stay as they are to second order only. Directions that are
            not periodic never strain.
        pressure: of a free cell: a number, or a stress `(dim, dim)` or in Voigt order, positive where it pulls [GPa; in 2-D
            eV/Å²].
        smax: largest component of the stress that may be left [GPa; in 2-D eV/Å²]. By default forces on strains obey fmax,
            which leaves less stress than fmax / (√N Å²).
        constraints: further conditions, from `mdsens.constraints`.
        max_steps: steps of all solvers together.
        polish: let Newton's method take over as soon as it can, so that fmax = 1e-12 is ordinary.
        check_minimum: compute the lowest curvature and refuse a saddle point.
        throw: raise if the state is not what was asked, of several when all are done; otherwise it is returned with its status.
        progress: show a bar; by default only at a terminal and for long work.

    Raises:
        InputError: the system does not fit the potential, coinciding atoms, a setting out of its range, a mask or stress of
            the wrong shape, a load that the cell cannot follow, constraints that depend on each other.
        ConvergenceError: the state did not converge, is not finite, or is a saddle point; the cell collapsed or flew apart;
            the constraints contradict each other. Of several structures it is a `BatchError`, whose `results` are those of
            all.
    """
    options = {
        "solver": solver,
        "fmax": fmax,
        "cell": cell,
        "pressure": pressure,
        "smax": smax,
        "constraints": constraints,
        "max_steps": max_steps,
        "polish": polish,
        "check_minimum": check_minimum,
    }
    if not isinstance(system, list | tuple | Mapping) and not isinstance(potential, list | tuple):
        return relaxation.relax(system, potential, throw=throw, progress=progress, **options)
    pairs = _pairs(system, potential)
    results = _relax_pairs(pairs, options, progress)
    if throw:
        _raise_failures(pairs, results)
    return dict(zip(system, results, strict=True)) if isinstance(system, Mapping) else results


def _pairs(system: Any, potential: Any) -> list[Pair]:
    if isinstance(potential, list | tuple):
        if isinstance(system, list | tuple | Mapping):
            raise InputError(
                "Several structures are relaxed with one potential, or one structure with several: call relax once for each "
                "potential."
            )
        pairs = [Pair(f"Potential {k}", system, one) for k, one in enumerate(potential)]
    elif isinstance(system, Mapping):
        pairs = [Pair(f"Structure {name!r}", one, potential) for name, one in system.items()]
    else:
        pairs = [Pair(f"Structure {k}", one, potential) for k, one in enumerate(system)]
    if not pairs:
        raise InputError("There is nothing to relax: the list of structures or potentials is empty.")
    return pairs


def _relax_pairs(pairs: Sequence[Pair], options: Mapping[str, Any], progress: bool | None) -> list[Equilibrium]:
    """Return the equilibria of all pairs, with their status where something is wrong [host]."""
    together = _check(pairs, options)
    if len(together) < LEAST_COUNT:
        together = []
    found: dict[int, Equilibrium] = {}
    kept = 0.0
    with bar(None, progress, total=len(pairs), desc="relax", unit="structure") as shown:
        shares = all(pair.potential is pairs[0].potential for pair in pairs)
        starts = [_start(pairs[k], options, shares) for k in together]
        for number, arrived in run_courses(starts):
            if isinstance(arrived, _Arrived):
                dense = arrived.landing.dense
                kept += dense.matrix.nbytes + dense.lower.nbytes
                found[together[number]] = _equilibrium(pairs[together[number]], arrived, options, kept <= KEPT_BYTES)
                shown.update()
        for k, pair in enumerate(pairs):
            if k not in found:
                found[k] = _relax_alone(pair, options)
                shown.update()
    return [found[k] for k in range(len(pairs))]


def _check(pairs: Sequence[Pair], options: Mapping[str, Any]) -> list[int]:
    """Raise InputError, which names the pair, for what `relax` would refuse at once; return which pairs can go together."""
    plain = options["solver"] is None and options["polish"] and options["check_minimum"] and not len(options["constraints"])
    alike: dict[Any, bool] = {}
    together = []
    for k, pair in enumerate(pairs):
        system = pair.system
        try:
            if not isinstance(system, System):
                raise InputError(f"a System is wanted, as System.from_ase(atoms) makes one, not {type(system).__name__}.")
            # What potentials look at, in structures that are all alike but for their positions.
            kind = (
                id(pair.potential),
                system.labels,
                system.pbc,
                system.cell is None,
                system.positions.shape,
                system.positions.dtype,
            )
            if kind not in alike or is_traced(system.positions):
                check_settings(system, pair.potential, options["fmax"], options["max_steps"], options["smax"])
                alike[kind] = plain and can_go_together(system, pair.potential)
            freedom = cell_freedom(system, options["cell"], options["pressure"])
            if freedom is None and options["smax"] is not None:
                raise InputError(SMAX_OF_FIXED_CELL)
            if freedom is None and plain and np.asarray(system.frozen).all():
                check_movable(reference_at(system))
        except InputError as error:
            raise InputError(f"{pair.name}: {error}") from error
        if alike[kind]:
            together.append(k)
    return together


class _Arrived(NamedTuple):
    """A member that arrived."""

    member: Member
    landing: Landing


def _start(pair: Pair, options: Mapping[str, Any], shares: bool) -> Any:
    def start() -> Any:
        freedom = cell_freedom(pair.system, options["cell"], options["pressure"])
        member = Member(pair.system, pair.potential, freedom, shares=shares)
        return run(member) if member.reference.symmetric else iter(())

    def run(member: Member) -> Any:
        landing = yield from course(member, Wish(options["fmax"], options["smax"], options["max_steps"]))
        return _Arrived(member, landing)

    return start


def _equilibrium(pair: Pair, arrived: _Arrived, options: Mapping[str, Any], keeps: bool) -> Equilibrium:
    member, (state, dense, steps, spectrum) = arrived
    placed, freedom = member.placed(state.point.z), member.freedom
    fmax, stress_error = state.point.norm, 0.0
    if freedom is not None:
        fmax, stress_error = stress_left(member.unknown(state.point.gradient), member.reference)
    cell = pair.system.cell if freedom is None else jax.device_put(placed.cell)
    # The list stays as it is: putting each array on the device takes as long as all else.
    system = with_fields(
        pair.system, positions=jax.device_put(placed.positions), cell=cell, neighbors=member.listed.neighbors, held=False
    )
    fixed = isinstance(options["cell"], str) and options["cell"] == "fixed"
    eq = Equilibrium(
        system,
        pair.potential,
        float(state.slopes.energy),
        fmax,
        steps,
        Status.CONVERGED,
        spectrum,
        "Newton(), LBFGS() where it refuses",
        hashable(options["cell"]),
        None if fixed else hashable(options["pressure"]),
        stress_error,
    )
    # The unit of a strain follows the cell, so derivatives need a Hessian in that of the relaxed one.
    return eq.as_made(dense=dense if keeps and freedom is None else None)


def _relax_alone(pair: Pair, options: Mapping[str, Any]) -> Equilibrium:
    try:
        return relaxation.relax(pair.system, pair.potential, throw=False, progress=False, **options)
    except InputError as error:
        raise InputError(f"{pair.name}: {error}") from error


def _raise_failures(pairs: Sequence[Pair], results: Sequence[Equilibrium]) -> None:
    failed = {pair.name: eq for pair, eq in zip(pairs, results, strict=True) if not eq.converged}
    if not failed:
        return
    name, eq = next(iter(failed.items()))
    rest = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
    raise BatchError(
        f"{len(failed)} of {len(pairs)} were not relaxed. {name}{rest}, after {eq.steps} steps (fmax {eq.fmax:.1e} eV/Å): "
        f"{eq.status.value}. Ask with throw=False, or look at the error's `results`.",
        results,
    )
