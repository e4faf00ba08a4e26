"""`equilibrium_positions`: relaxed positions as a JAX function of the potential, of one structure or of several together."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mdsens.common.suggestions import suggest_names
from mdsens.equilibrium import padded_batches
from mdsens.equilibrium.descent import HANDOVER, NEWTON_STEPS, PROBLEM, is_tight, problem_in_units
from mdsens.equilibrium.relaxation import check_movable, check_settings, relax
from mdsens.implicit import CG, differentiable_solution
from mdsens.implicit.linear_system import NullSpace
from mdsens.implicit.probes import replace_nonfinite, withhold
from mdsens.implicit.trees import is_traced
from mdsens.mechanics.forces import gradient
from mdsens.mechanics.hessian_operator import hessian_operator
from mdsens.mechanics.landscape import Landscape
from mdsens.mechanics.null_space import null_space
from mdsens.mechanics.scales import Units, traced_distance, traced_scales
from mdsens.mechanics.spectrum import is_saddle
from mdsens.mechanics.unknown import Reference, reference_at
from mdsens.potentials.base import Potential
from mdsens.solvers import LBFGS, Newton, Status, solve_traced
from mdsens.structures.system import System, is_concrete

TRACED_CAPACITY = 100
"""Expected number of neighbours up to which a list for the traced world is made longer."""


@dataclasses.dataclass(frozen=True)
class _Settings:
    """The settings of `equilibrium_positions`, by the names of `relax`."""

    solver: Any
    fmax: float | None
    max_steps: int


class _Witness(eqx.Module):
    """The reference that the equilibrium condition needs beside the parameters, and how the solve ended."""

    reference: Reference
    status: Array


@suggest_names
def equilibrium_positions(
    system: System | Sequence[System],
    potential: Potential,
    *,
    solver: Any = None,
    fmax: float | None = None,
    max_steps: int = 100_000,
    return_status: bool = False,
) -> Any:
    """Return relaxed positions `(N, dim)` [Å], as a JAX function of `potential`.

        bond = lambda p: jnp.linalg.norm(jnp.subtract(*ms.equilibrium_positions(dimer, p)))
        slopes = jax.grad(bond)(potential)

    It is differentiable in the potential to any order, forward and reverse, and works under `jit` and `vmap`. With concrete
    values it is `relax`. Under `jit` and `vmap` a compiled solver runs on a list of fixed size, built from the concrete
    system with a margin (or on the list attached by `system.with_neighbors(potential, skin=...)`): where it does not
    converge, or an atom moves beyond the margin, the positions are NaN. Curvatures of a single system are not looked at there:
    only `relax` tells a saddle point from a minimum (their derivative at a saddle point is NaN where the solve meets it).

    For several systems, which may differ in everything but the dimension, it gives a list, from compiled solvers that systems
    of similar size share: they are padded to a few shapes. What does not converge, or arrives at a saddle point, is NaN, and
    changes nothing for the others.

    Args:
        system: a concrete system, or a list of them.
        return_status: return `(positions, code)`, with `Status.from_code(code)` saying how it ended; a list gives several.

    Raises:
        InputError: a traced system, or what `relax` refuses.
        ConvergenceError: outside `jit` and `vmap`, as `relax`.
    """
    settings = _Settings(solver, fmax, max_steps)
    if isinstance(system, list | tuple):
        padded_batches.map_systems(lambda one: _check_traceable(one, potential, settings), system)
        positions, codes = _find_batch(system, potential, settings)
    else:
        _check_traceable(system, potential, settings)
        single = cast(System, system)
        solution = _implicit(lambda _, potential: _find(single, potential, settings))
        positions, witness = solution((), potential)
        codes = witness.status
        if is_traced(codes):
            positions = withhold(codes != Status.CONVERGED.code, positions)
    return (positions, codes) if return_status else positions


def _check_traceable(system: Any, potential: Potential, settings: _Settings) -> None:
    check_settings(system, potential, settings.fmax, settings.max_steps)
    if is_concrete(system):
        check_movable(Reference(system, None))  # type: ignore[arg-type]  # motions are of no account


def _implicit(find: Callable[..., Any]) -> Callable[..., Any]:
    """Return `find(start, potential)`, which gives positions and a witness, made differentiable in the potential."""
    return differentiable_solution(
        find,
        _condition,
        symmetric=True,
        linear_solver=CG(),
        null_space=_condition_null_space,
        operator=_condition_operator,
        project=True,
    )


def _condition(positions: Array, witness: _Witness, potential: Potential) -> Any:
    return gradient(positions, Landscape(witness.reference, potential))


def _condition_null_space(positions: Array, witness: _Witness, potential: Potential) -> NullSpace:
    return null_space(positions, Landscape(witness.reference, potential))


def _condition_operator(positions: Array, witness: _Witness, potential: Potential) -> Callable[..., Any]:
    return hessian_operator(positions, Landscape(witness.reference, potential))


def _find(system: System, potential: Potential, settings: _Settings) -> tuple[Array, _Witness]:
    if is_concrete(potential):
        eq = relax(system, potential, **{f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)})
        return eq.system.positions, _Witness(eq.reference, jnp.asarray(eq.status.code))
    # The list and the null space are made from concrete values on the host, though a trace is under way.
    with jax.ensure_compile_time_eval():
        if system.neighbors is None or is_tight(system.neighbors):
            system = system.with_neighbors(potential, skin=_traced_skin(system, potential))
        reference = reference_at(system)
    return _descend_traced(reference, potential, settings)


def _find_batch(systems: Sequence[System], potential: Potential, settings: _Settings) -> tuple[list[Array], Array]:
    with jax.ensure_compile_time_eval():
        listed = lambda one: padded_batches.with_list(one, potential, _traced_skin(one, potential))  # noqa: E731
        systems = padded_batches.map_systems(listed, systems)
        groups = padded_batches.group_by_shape(systems)
    positions: list[Any] = [None] * len(systems)
    codes: list[Any] = [None] * len(systems)
    for members, references in groups:
        relaxed, status = _relax_group(references, potential, settings)
        for k, x, code in zip(members, relaxed, status, strict=True):
            positions[k], codes[k] = x[: len(systems[k])], code
    return positions, jnp.stack(codes)


@eqx.filter_jit
def _relax_group(references: Reference, potential: Potential, settings: _Settings) -> tuple[Array, Array]:
    solution = _implicit(lambda reference, potential: _descend_traced(reference, potential, settings))

    def relaxed(reference: Reference) -> tuple[Array, Array]:
        positions, witness = solution(reference, potential)
        saddle = (witness.status == Status.CONVERGED.code) & is_saddle(*jax.lax.stop_gradient((positions, reference, potential)))
        status = jnp.where(saddle, Status.SADDLE.code, witness.status)
        return withhold(status != Status.CONVERGED.code, positions), status

    # One after the other, so that each takes only the steps that it needs.
    return jax.lax.map(relaxed, references)


def _descend_traced(reference: Reference, potential: Potential, settings: _Settings) -> tuple[Array, _Witness]:
    data = Landscape(reference, potential)
    steps, length = settings.max_steps, traced_distance(reference.system, potential)
    units = traced_scales(PROBLEM, reference.system.positions, data, length).units
    # The default solvers' settings are counted in the system's units, those of a solver of the user's are not.
    problem, unit = (PROBLEM, Units()) if settings.solver is not None else (problem_in_units(units), units)
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
    # refuses there too, the solver to the end. A round that begins at the end has no work.
    start = (reference.system.positions / unit.length, jnp.asarray(Status.MAX_STEPS.code))
    handovers = [1e-2 * HANDOVER, 0.0]
    if settings.solver is None:
        handovers = [np.inf, *handovers]
    (z, status), _ = jax.lax.scan(descend, start, jnp.asarray(handovers))
    return replace_nonfinite(z * unit.length, reference.system.positions), _Witness(reference, status)


def _traced_skin(system: System, potential: Potential) -> float | None:
    """Return the longest of a few skins whose lists stay small; None where the potential has its own kind of list."""
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
