"""The contract that every potential keeps: symmetries, derivatives, smoothness, precision, files.

What is compared is computed by three compiled functions, so that a check takes seconds, most of them compilation.
"""

import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from mdsens.common.differences import richardson_difference
from mdsens.common.errors import InputError, MdsensError
from mdsens.common.units import stress_unit
from mdsens.common.voigt import from_voigt
from mdsens.equilibrium.relaxation import Equilibrium
from mdsens.files.state_files import load, save
from mdsens.potentials import SHIPPED
from mdsens.potentials.base import (
    Potential,
    gives_stiffness,
    is_local,
    listed_energies,
    parameter_paths,
    sound_stiffness,
    total_energy,
)
from mdsens.solvers import Status
from mdsens.structures.neighbors.neighbor_list import Neighbors, widened_like
from mdsens.structures.neighbors.search import find_neighbors
from mdsens.structures.neighbors.vectors import displacements
from mdsens.structures.system import System
from mdsens.testing.smoothness import jumps, quickly_compiled

ROUNDING = 1e-9
"""Relative difference of what must be the same but for rounding."""

DIFFERENCES = 1e-6
"""Relative difference of derivatives from Richardson's differences, whose steps are 1e-4 of what changes."""

STEPS = (1e-4, 1e-5, 1e-6)

SINGLE = 1e-3
"""Relative difference of forces in 32 bits; energies and forces are differences of larger numbers."""

RATTLE = 0.02
"""Displacement of atoms, as a share of the smallest distance, by which a crystal loses its symmetry."""


class ContractError(MdsensError, AssertionError):
    """A potential breaks its contract; `violations` are sentences, `report` says what was checked."""

    def __init__(self, violations: tuple[str, ...], report: "Report") -> None:
        super().__init__("\n".join(violations))
        self.violations, self.report = violations, report


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was measured, how much was allowed, and what it means if it is more; `note` says why nothing was measured."""

    what: str
    measured: float
    allowed: float
    sentence: str
    note: str = ""

    @property
    def fine(self) -> bool:
        return bool(self.note) or self.measured <= self.allowed


@dataclasses.dataclass(frozen=True)
class Report:
    """What `check_potential` found, one row a promise."""

    potential: str
    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        rows = (f"  {f.what:<24} {f.note or f'{f.measured:8.1e} of {f.allowed:.0e}'}" for f in self.findings)
        return "\n".join([self.potential, *rows])


def check_potential(potential: Potential, system: System) -> Report:
    """Hold a potential against what mdsens expects of one, near a structure that is typical for it.

    Checked are: permutation, translation, rotation, periodic images and repeated cells; forces, stress and parameter
    derivatives against finite differences; forward against reverse mode, in positions and parameters, to second order and
    without NaN, in the structure as it is too; the stiffness that is stored; continuity of as many derivatives as
    `smoothness` promises; 32 bits against 64; a file.

    Args:
        system: a few atoms of all species; they are rattled a little, from a fixed seed.

    Returns:
        what was checked, with figures; `print` it.

    Raises:
        ContractError: with all violations, a sentence each.
        InputError: a system that the potential has no parameters for.
    """
    potential.check(system)
    case = _Case(potential, system)
    findings = tuple(itertools.chain.from_iterable(check(case) for check in _CHECKS))
    report = Report(type(potential).__name__, findings)
    if violations := tuple(
        f"{f.sentence} ({f.what}: {f.measured:.1e}, allowed {f.allowed:.0e})." for f in findings if not f.fine
    ):
        raise ContractError(violations, report)
    return report


class _Case:
    """A potential with a rattled system, and what is computed of them once."""

    def __init__(self, potential: Potential, given: Any) -> None:
        self.potential, self.given, self.rng = potential, given, np.random.default_rng(11)
        self.local = is_local(potential)
        self.spacing = _smallest_distance(given)
        moved = self.rng.normal(size=given.positions.shape)
        moved *= RATTLE * self.spacing / np.linalg.norm(moved, axis=1).max()
        self.system = self.listed(given.with_positions(given.positions + moved))
        self.found = self.evaluate(self.system)
        self.force = float(np.abs(self.found.forces).max())
        self.energy = float(np.abs(self.found.energies).max())

    def listed(self, system: System, potential: Potential | None = None) -> System:
        """With a list that has room for the steps of differences, and always the same number of places."""
        potential = self.potential if potential is None else potential
        reach = float(np.asarray(potential.range))
        listed = system.with_neighbors(potential, skin=0.05 * reach if np.isfinite(reach) else None)
        same = hasattr(self, "system") and len(system) == len(self.system) and isinstance(listed.neighbors, Neighbors)
        if not same:
            return listed
        neighbors = widened_like(listed.neighbors, self.system.neighbors)
        return eqx.tree_at(lambda s: s.neighbors, listed, neighbors, is_leaf=lambda leaf: leaf is None)

    def evaluate(self, system: System, potential: Potential | None = None) -> "_Evaluated":
        return jax.tree.map(np.asarray, _evaluated(self.potential if potential is None else potential, system))


class _Evaluated(eqx.Module):
    energies: jax.Array
    forces: jax.Array
    virial: jax.Array
    by_parameters: Potential


@quickly_compiled
def _evaluated(potential: Potential, system: System) -> _Evaluated:
    """Energies, forces, ∂U/∂strain, ∂U/∂θ by one reverse pass."""

    def energy(potential: Potential, positions: Array, strain: Array) -> tuple[Array, Array]:
        deformation = jnp.eye(system.dim, dtype=positions.dtype) + strain
        cell = None if system.cell is None else system.cell @ deformation
        moved = eqx.tree_at(lambda s: s.positions, system, positions @ deformation)
        moved = moved if cell is None else eqx.tree_at(lambda s: s.cell, moved, cell)
        energies = listed_energies(potential, moved)
        return jnp.sum(energies), energies

    still = jnp.zeros((system.dim, system.dim), system.positions.dtype)
    slopes, energies = jax.grad(energy, argnums=(0, 1, 2), has_aux=True)(potential, system.positions, still)
    by_parameters, by_positions, by_strain = slopes
    return _Evaluated(energies, -by_positions, by_strain, by_parameters)


@quickly_compiled
def _second_order(potential: Potential, system: System, v: Array, direction: Any) -> tuple[Any, ...]:
    """Second derivatives along v (positions) and a direction of parameters, by different modes.

    In order: the slope of U along both together, forward; of ∂U/∂x along both, forward over reverse; ∂²U/∂x∂x v and
    v ∂²U/∂x∂θ, reverse over reverse; the stored stiffness times v.
    """
    energy = lambda x, theta: total_energy(theta, system.with_positions(x))  # noqa: E731
    at = (system.positions, potential)
    _, (along, together) = jax.jvp(jax.value_and_grad(energy), at, (v, direction))
    hv, mixed = jax.grad(lambda x, theta: jnp.vdot(jax.grad(energy)(x, theta), v), argnums=(0, 1))(*at)
    stored = None
    if gives_stiffness(potential) and isinstance(system.neighbors, Neighbors):
        stored = sound_stiffness(potential, system).product(v.T, system.neighbors).T
    return along, together, hv, mixed, stored


def _smallest_distance(system: System) -> float:
    radius = 2.0 * (float(system.volume) / len(system)) ** (1.0 / system.dim) if system.cell is not None else 10.0
    neighbors = find_neighbors(system.positions, system.cell, system.pbc, radius=radius, skin=0.0)
    lengths = np.linalg.norm(displacements(system.positions, system.cell, neighbors), axis=-1)[np.asarray(neighbors.mask)]
    return float(lengths.min(initial=radius))


def _relative(a: Any, b: Any, scale: Any = None) -> float:
    """Largest difference on the scale of the second; nan counts as infinite."""
    a, b = np.asarray(a), np.asarray(b)
    scale = (np.abs(b).max(initial=0.0) if scale is None else scale) or 1.0
    difference = np.abs(a - b).max(initial=0.0) / scale
    return float(difference) if np.isfinite(difference) else np.inf


# The promises


def _permutation(case: _Case) -> Iterator[Finding]:
    order = case.rng.permutation(len(case.system))
    if not case.local and case.system.cell is not None:
        yield Finding("permutation", 0.0, 0.0, "", "not checked: the energy has a list of its own")
        return
    found = case.evaluate(case.listed(_chosen(case.given, case.system.positions, order)), _per_atom(case, order))
    sentence = "The energy depends on the order of the atoms"
    worst = max(
        _relative(found.energies, case.found.energies[order], case.energy),
        _relative(found.forces, case.found.forces[order], case.force),
    )
    yield Finding("permutation", worst, ROUNDING, sentence)


def _chosen(given: System, positions: Any, order: Any) -> System:
    return System(
        np.asarray(positions)[order],
        cell=given.cell,
        pbc=given.pbc,
        species=[given.symbols[k] for k in order],
        masses=np.asarray(given.masses)[order] if given.masses_known else None,
    )


def _per_atom(case: _Case, order: Any) -> Potential:
    """Parameters with a value for each atom go with the atoms."""
    n = len(case.given)
    return jax.tree.map(lambda leaf: leaf[order] if leaf.shape == (n,) else leaf, case.potential)


def _translation(case: _Case) -> Iterator[Finding]:
    shift = case.rng.normal(size=case.system.dim) * case.spacing
    found = case.evaluate(case.listed(case.given.with_positions(case.system.positions + shift)))
    yield Finding("translation", _same(case, found), ROUNDING, "The energy or forces change under a translation of all atoms")


def _same(case: _Case, found: _Evaluated, turn: Any = None) -> float:
    forces = case.found.forces if turn is None else case.found.forces @ turn
    return max(_relative(found.energies, case.found.energies, case.energy), _relative(found.forces, forces, case.force))


def _rotation(case: _Case) -> Iterator[Finding]:
    if not case.local and case.system.cell is not None:
        yield Finding("rotation", 0.0, 0.0, "", "not checked: the energy has a cell of its own")
        return
    turn, _ = np.linalg.qr(case.rng.normal(size=(case.system.dim,) * 2))
    turn *= np.sign(np.linalg.det(turn))
    turn = turn if np.linalg.det(turn) > 0.0 else turn * np.array([-1.0, *[1.0] * (case.system.dim - 1)])
    turned = case.given.with_positions(case.system.positions @ turn)
    if turned.cell is not None:
        turned = eqx.tree_at(lambda s: s.cell, turned, turned.cell @ turn)
    found = case.evaluate(case.listed(turned))
    yield Finding("rotation", _same(case, found, turn), ROUNDING, "The energy or forces do not turn with the structure")


def _images(case: _Case) -> Iterator[Finding]:
    system = case.system
    if not any(system.pbc):
        yield Finding("images", 0.0, 0.0, "", "not checked: the system is not periodic")
        return
    whole = case.rng.integers(-2, 3, size=system.positions.shape) * np.array(system.pbc)
    moved = case.given.with_positions(system.positions + whole @ np.asarray(system.cell))
    found = case.evaluate(case.listed(moved))
    yield Finding("images", _same(case, found), ROUNDING, "The energy changes when atoms are replaced by periodic images")
    if not case.local:
        yield Finding("repeated cell", 0.0, 0.0, "", "not checked: the energy has a cell of its own")
        return
    axis = system.pbc.index(True)
    cell = np.array(system.cell)
    positions = np.concatenate([system.positions, system.positions + cell[axis]])
    cell[axis] *= 2.0
    twice = System(positions, cell=cell, pbc=system.pbc, species=case.given.symbols * 2)
    order = np.tile(np.arange(len(system)), 2)
    energies = np.asarray(_per_atom(case, order).energies(twice))
    worst = _relative(energies, np.tile(case.found.energies, 2), case.energy)
    yield Finding("repeated cell", worst, ROUNDING, "The energy of an atom changes when the cell is repeated")


def _off(case: _Case, of: Callable[..., Any], at: Callable[..., Any], slope: Any, scale: Any, unit: float = 1.0) -> float:
    """How far a slope is from Richardson's central differences of `of(_Evaluated)` along `at(t) -> (system, potential)`.

    Where a step crosses a jump of a higher derivative a shorter one doesn't.
    """
    error = np.inf
    for step in unit * np.array(STEPS):
        found = {k: of(case.evaluate(*at(k * step))) for k in (-2, -1, 1, 2)}
        difference = richardson_difference(found[1] - found[-1], found[2] - found[-2], step)
        error = min(error, _relative((difference - slope) / scale, 0.0))
        if error <= DIFFERENCES:
            break
    return error


def _total(found: _Evaluated) -> Any:
    return found.energies.sum()


def _forces(case: _Case) -> Iterator[Finding]:
    x, worst = case.system.positions, 0.0
    for _ in range(2):
        v = case.rng.normal(size=x.shape)
        at = lambda t, v=v: (case.system.with_positions(x + t * v), None)  # noqa: E731
        slope, scale = -np.vdot(case.found.forces, v), np.linalg.norm(case.found.forces)
        worst = max(worst, _off(case, _total, at, slope, scale, case.spacing))
    yield Finding("forces", worst, DIFFERENCES, "Forces are not minus the gradient of the energy")


def _stress(case: _Case) -> Iterator[Finding]:
    system = case.system
    if system.cell is None or not all(system.pbc):
        yield Finding("stress", 0.0, 0.0, "", "not checked: the system is not periodic in all directions")
        return
    virial = np.asarray(case.found.virial)
    if not case.local:
        try:
            virial = np.asarray(from_voigt(case.potential.stress(system))) * float(system.volume) / stress_unit(system.dim)
        except InputError as refusal:
            yield Finding("stress", 0.0, 0.0, "", f"refused: {refusal}")
            return
    worst = 0.0
    for _ in range(2):
        strain = case.rng.normal(size=(system.dim,) * 2)
        strain = 0.5 * (strain + strain.T)

        def at(t: Any, strain: Any = strain) -> tuple[System, None]:
            deformation = np.eye(system.dim) + t * strain
            where = lambda s: (s.positions, s.cell)  # noqa: E731
            return eqx.tree_at(where, system, (system.positions @ deformation, system.cell @ deformation)), None

        worst = max(worst, _off(case, _total, at, np.vdot(virial, strain), np.linalg.norm(virial)))
    yield Finding("stress", worst, DIFFERENCES, "The stress is not the derivative of the energy in the strain")


def _modes(case: _Case) -> Iterator[Finding]:
    """Forward against reverse mode and differences, first and second order; the stiffness; NaN."""
    system, potential = case.system, case.potential
    v = jnp.asarray(case.rng.normal(size=system.positions.shape))
    flat, unravel = ravel_pytree(potential)
    step = np.asarray(case.rng.normal(size=flat.shape) * flat)
    results = _second_order(potential, system, v, unravel(jnp.asarray(step)))
    as_given = _second_order(potential, case.listed(case.given), v, unravel(jnp.asarray(step)))
    bad = sum(int((~np.isfinite(leaf)).sum()) for leaf in jax.tree.leaves((results, as_given)))
    yield Finding(
        "finite derivatives", float(bad), 0.0, "A second derivative is not finite (use jnp.where on both sides of what has none)"
    )
    along, together, hv, mixed, stored = results
    by_theta = np.asarray(ravel_pytree(case.found.by_parameters)[0])
    reverse = np.vdot(by_theta, step) - np.vdot(case.found.forces, v)
    scale = np.linalg.norm(case.found.forces) * np.linalg.norm(v) + np.linalg.norm(by_theta) * np.linalg.norm(step)
    yield Finding(
        "jvp = vjp", _relative(along, reverse, scale), ROUNDING, "Forward and reverse mode give different slopes of the energy"
    )
    of_step = np.asarray(together - hv)
    forward, reverse = np.vdot(v, of_step), np.vdot(ravel_pytree(mixed)[0], step)
    scale = np.linalg.norm(v) * max(np.linalg.norm(of_step), np.linalg.norm(hv))
    sentence = "Forward and reverse mode differ in second derivatives in positions and parameters"
    yield Finding("jvp = vjp, second order", _relative(forward, reverse, scale), ROUNDING, sentence)
    x = system.positions
    at = lambda t: (system.with_positions(x + t * v), None)  # noqa: E731
    worst = _off(case, lambda found: -found.forces, at, np.asarray(hv), np.abs(hv).max(), case.spacing)
    yield Finding("second derivatives", worst, DIFFERENCES, "The Hessian is not the slope of the forces")
    if stored is None:
        yield Finding("stored stiffness", 0.0, 0.0, "", "not checked: the potential gives none")
    else:
        yield Finding("stored stiffness", _relative(stored, hv), ROUNDING, "local_stiffness is not the Hessian of the energy")
    if flat.size:
        yield from _parameters(case, v, mixed)


def _parameters(case: _Case, v: Any, by_theta: Any) -> Iterator[Any]:
    leaves, structure = jax.tree.flatten(case.potential)
    first, mixed = jax.tree.leaves(case.found.by_parameters), jax.tree.leaves(by_theta)
    slopes = np.array([[np.vdot(first[k], d), np.vdot(mixed[k], d)] for k, d in enumerate(_directions(case, leaves))])
    scale, worst, where = np.abs(slopes).max(axis=0) + 1e-12, 0.0, ""
    for k, (name, d) in enumerate(zip(parameter_paths(case.potential), _directions(case, leaves), strict=True)):

        def at(t: Any, k: Any = k, d: Any = d) -> tuple[System, Potential]:
            return case.system, jax.tree.unflatten(structure, [leaf + t * d if n == k else leaf for n, leaf in enumerate(leaves)])

        of = lambda found: np.array([found.energies.sum(), -np.vdot(found.forces, v)])  # noqa: E731
        error = _off(case, of, at, slopes[k], scale)
        worst, where = (error, name) if error > worst else (worst, where)
    yield Finding("parameters", worst, DIFFERENCES, f"The derivative in {where} is not what finite differences say")


def _directions(case: _Case, leaves: Any) -> Iterator[Any]:
    """By which each parameter changes: its own size, 1 where it is zero, by a factor for each value of an array."""
    rng = np.random.default_rng(5)
    for leaf in leaves:
        size = np.where(np.asarray(leaf) == 0.0, np.abs(np.asarray(leaf)).max(initial=0.0) or 1.0, np.asarray(leaf))
        yield size * (rng.uniform(0.5, 1.0, np.shape(leaf)) if np.ndim(leaf) else 1.0)


def _smooth(case: _Case) -> Iterator[Finding]:
    order = case.potential.smoothness
    if order < 0 or not case.local:
        yield Finding("smoothness", 0.0, 0.0, "", "not checked: nothing is promised" if order < 0 else "not checked: no range")
        return
    for k, (name, (jump, allowed)) in enumerate(
        zip(("energy", "force", "second derivative"), jumps(case.potential, case.system, case.spacing), strict=True)
    ):
        if k <= order:
            sentence = f"smoothness promises {order:g} continuous derivatives, but the {name} jumps somewhere up to the cutoff"
            yield Finding(f"continuous {name}", jump, allowed, sentence)


def _single(case: _Case) -> Iterator[Finding]:
    single = case.potential.astype("float32")
    system = case.listed(case.given.with_positions(case.system.positions).astype("float32"), single)
    found = case.evaluate(system, single)
    worst = max(
        _relative(found.energies, case.found.energies, case.energy), _relative(found.forces, case.found.forces, case.force)
    )
    yield Finding("32 bits", worst, SINGLE, "Energies and forces in 32 bits are not close to those in 64")
    ours = found.energies.dtype == np.float32 and found.forces.dtype == np.float32
    yield Finding("32 bits stay", 0.0 if ours else 1.0, 0.0, "What is computed in 32 bits comes back in 64 (a float64 constant)")


def _file(case: _Case) -> Iterator[Finding]:
    ours = all(SHIPPED.get(type(part).__name__) is type(part) for part in (case.potential, *case.potential.parts()))
    state = Equilibrium(case.system, case.potential, 0.0, case.force, 0, Status.MAX_STEPS, None, "none")
    with tempfile.TemporaryDirectory() as folder:
        path = save(Path(folder) / "state.h5", state)
        again = load(path, potential=None if ours else case.potential)[0].potential
    alike = jax.tree.structure(again) == jax.tree.structure(case.potential)  # type: ignore[operator]  # of jax's stubs
    same = alike and all(
        a.dtype == b.dtype and a.tobytes() == b.tobytes()
        for a, b in zip(map(np.asarray, jax.tree.leaves(again)), map(np.asarray, jax.tree.leaves(case.potential)), strict=True)
    )
    yield Finding("file", 0.0 if same else 1.0, 0.0, "A file does not give the potential back bit for bit")


_CHECKS = (_permutation, _translation, _rotation, _images, _forces, _stress, _modes, _smooth, _single, _file)
