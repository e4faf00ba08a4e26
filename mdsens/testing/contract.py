"""The contract that every potential keeps: symmetries, derivatives, smoothness, precision, files.

What is compared is computed by three compiled functions, so that a check takes seconds, most of them compilation.
"""

import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from mdsens.common.differences import central_difference
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
from mdsens.potentials.forms.neighbor_vectors import pair_list
from mdsens.solvers import Status
from mdsens.structures.neighbors.neighbor_list import Neighbors, widen_like
from mdsens.structures.neighbors.search import find_neighbors
from mdsens.structures.neighbors.vectors import displacements
from mdsens.structures.system import System
from mdsens.testing.smoothness import JUMP, jit_quickly, jumps

ROUNDING = 1e-9
"""Relative difference allowed between numbers that must be the same but for rounding."""

DIFFERENCES = 1e-6
"""Relative difference of derivatives from Richardson's differences, whose steps are 1e-4 of what changes."""

STEPS = (1e-4, 1e-5, 1e-6)

SINGLE_PRECISION = 1e-3
"""Relative difference of forces in 32 bits; energies and forces are differences of larger numbers."""

RATTLE = 0.02
"""Displacement of atoms, as a share of the smallest distance, by which a crystal loses its symmetry."""


class ContractError(MdsensError, AssertionError):
    """Raised where a potential breaks its contract; `violations` are sentences, `report` says what was checked."""

    def __init__(self, violations: tuple[str, ...], report: "Report") -> None:
        super().__init__("\n".join(violations))
        self.violations, self.report = violations, report


@dataclasses.dataclass(frozen=True)
class Finding:
    """One promise: what was measured, how much is allowed, and what it means if it is more.

    A `note` says why nothing was measured.
    """

    what: str
    measured: float
    allowed: float
    sentence: str
    note: str = ""

    @property
    def is_kept(self) -> bool:
        """Whether the promise is kept, or could not be checked."""
        return bool(self.note) or self.measured <= self.allowed


def _unchecked(what: str, reason: str) -> Finding:
    return Finding(what, 0.0, 0.0, "", reason)


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of `check_potential`, one row a promise."""

    potential: str
    findings: tuple[Finding, ...]

    def __str__(self) -> str:
        rows = (f"  {f.what:<24} {f.note or f'{f.measured:8.1e} of {f.allowed:.0e}'}" for f in self.findings)
        return "\n".join([self.potential, *rows])


def check_potential(potential: Potential, system: System) -> Report:
    """Check that a potential does what mdsens expects of one, near a structure that is typical for it.

    `print(check_potential(*EXAMPLES["Tersoff"]()))` shows the figures. Checked are: permutation, translation, rotation, periodic
    images and repeated cells; forces, stress and parameter derivatives against finite differences; forward against reverse mode,
    in positions and parameters, to second order and without NaN, in the structure as it is too; the stiffness that is stored;
    continuity of as many derivatives as `smoothness` promises; 32 bits against 64; a file.

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
        f"{f.sentence} ({f.what}: {f.measured:.1e}, allowed {f.allowed:.0e})." for f in findings if not f.is_kept
    ):
        raise ContractError(violations, report)
    return report


class _Case:
    """A potential with a rattled system, and what is computed of them once.

    Attributes:
        original: the system before it was rattled.
        system: the rattled one, with its list.
        values: energies and derivatives there; `energy` and `force` are the largest of an atom.
        spacing: smallest distance in the original [Å].
    """

    def __init__(self, potential: Potential, original: System) -> None:
        self.potential, self.original, self.rng = potential, original, np.random.default_rng(11)
        self.local = is_local(potential)
        self.spacing = smallest_distance(original)
        shift = self.rng.normal(size=original.positions.shape)
        shift *= RATTLE * self.spacing / np.linalg.norm(shift, axis=1).max()
        self.system = self.listed(original.with_positions(original.positions + shift))
        self.values = self.evaluate(self.system)
        self.force = float(np.abs(self.values.forces).max())
        self.energy = float(np.abs(self.values.energies).max())

    def listed(self, system: System, potential: Potential | None = None) -> System:
        """Return a system with a list that has room for the steps of differences, and always as many places."""
        potential = self.potential if potential is None else potential
        reach = float(np.asarray(potential.range))
        listed = system.with_neighbors(potential, skin=0.05 * reach if np.isfinite(reach) else None)
        if not (hasattr(self, "system") and len(system) == len(self.system) and isinstance(listed.neighbors, Neighbors)):
            return listed
        neighbors = widen_like(listed.neighbors, pair_list(self.system))
        return eqx.tree_at(lambda s: s.neighbors, listed, neighbors, is_leaf=lambda leaf: leaf is None)

    def evaluate(self, system: System, potential: Potential | None = None) -> "_Values":
        return jax.tree.map(np.asarray, _evaluate(self.potential if potential is None else potential, system))

    def difference(self, values: "_Values", order: Any = slice(None), turn: np.ndarray | None = None) -> float:
        """Return the largest relative difference of energies and forces from those of the case, in another order or turned."""
        forces = self.values.forces[order] if turn is None else self.values.forces @ turn
        energies = _relative(values.energies, self.values.energies[order], self.energy)
        return max(energies, _relative(values.forces, forces, self.force))


class _Values(eqx.Module):
    """Energies of atoms [eV], forces [eV/Å], ∂U/∂strain [eV] and ∂U/∂θ."""

    energies: Float[Array, " atoms"]
    forces: Float[Array, "atoms dim"]
    virial: Float[Array, "dim dim"]
    by_parameters: Potential


class _SecondDerivatives(NamedTuple):
    """Second derivatives along v (positions) and a direction of parameters, by different modes.

    Attributes:
        slope: the slope of U along both together, forward.
        change: the slope of ∂U/∂x along both, forward over reverse.
        hv, mixed: ∂²U/∂x∂x v and v ∂²U/∂x∂θ, reverse over reverse.
        stored: the stored stiffness times v; None where there is none.
    """

    slope: Array
    change: Array
    hv: Array
    mixed: Potential
    stored: Array | None


@jit_quickly
def _evaluate(potential: Potential, system: System) -> _Values:
    """Return values and first derivatives, by one reverse pass."""

    def energy(potential: Potential, positions: Array, strain: Array) -> tuple[Array, Array]:
        deformation = jnp.eye(system.dim, dtype=positions.dtype) + strain
        energies = listed_energies(potential, system.with_positions(positions).deformed(deformation))
        return jnp.sum(energies), energies

    still = jnp.zeros((system.dim, system.dim), system.positions.dtype)
    slopes, energies = jax.grad(energy, argnums=(0, 1, 2), has_aux=True)(potential, system.positions, still)
    by_parameters, by_positions, by_strain = slopes
    return _Values(energies, -by_positions, by_strain, by_parameters)


@jit_quickly
def _second_order(potential: Potential, system: System, v: Array, direction: Potential) -> _SecondDerivatives:
    energy = lambda x, theta: total_energy(theta, system.with_positions(x))  # noqa: E731
    at = (system.positions, potential)
    _, (slope, change) = jax.jvp(jax.value_and_grad(energy), at, (v, direction))
    hv, mixed = jax.grad(lambda x, theta: jnp.vdot(jax.grad(energy)(x, theta), v), argnums=(0, 1))(*at)
    stored = None
    if gives_stiffness(potential) and isinstance(system.neighbors, Neighbors):
        stored = sound_stiffness(potential, system).product(v.T, system.neighbors).T
    return _SecondDerivatives(slope, change, hv, mixed, stored)


def smallest_distance(system: System) -> float:
    """Return the smallest distance of two atoms, or images [Å]."""
    radius = 2.0 * (float(system.volume) / len(system)) ** (1.0 / system.dim) if system.cell is not None else 10.0
    neighbors = find_neighbors(system.positions, system.cell, system.pbc, radius=radius, skin=0.0)
    lengths = np.linalg.norm(displacements(system.positions, system.cell, neighbors), axis=-1)[np.asarray(neighbors.mask)]
    return float(lengths.min(initial=radius))


def _relative(a: Any, b: Any, scale: Any = None) -> float:
    """Return the largest difference as a share of the largest of the second, or of `scale`; NaN counts as infinite."""
    a, b = np.asarray(a), np.asarray(b)
    scale = (np.abs(b).max(initial=0.0) if scale is None else scale) or 1.0
    difference = np.abs(a - b).max(initial=0.0) / scale
    return float(difference) if np.isfinite(difference) else np.inf


# The promises


def _check_permutation(case: _Case) -> Iterator[Finding]:
    order = case.rng.permutation(len(case.system))
    if not case.local and case.system.cell is not None:
        yield _unchecked("permutation", "not checked: the energy has a list of its own")
        return
    per_atom = lambda s: (s.positions, s.species, s.masses, s.frozen)  # noqa: E731
    rattled = case.original.with_positions(case.system.positions)
    permuted = eqx.tree_at(per_atom, rattled, tuple(leaf[order] for leaf in per_atom(rattled)))
    values = case.evaluate(case.listed(permuted), _with_atoms(case, order))
    yield Finding("permutation", case.difference(values, order), ROUNDING, "The energy depends on the order of the atoms")


def _with_atoms(case: _Case, order: np.ndarray) -> Potential:
    """Return the potential for atoms in another order: parameters with a value for each atom go with them."""
    n = len(case.original)
    return jax.tree.map(lambda leaf: leaf[order] if leaf.shape == (n,) else leaf, case.potential)


def _check_translation(case: _Case) -> Iterator[Finding]:
    shift = case.rng.normal(size=case.system.dim) * case.spacing
    values = case.evaluate(case.listed(case.original.with_positions(case.system.positions + shift)))
    sentence = "The energy or forces change under a translation of all atoms"
    yield Finding("translation", case.difference(values), ROUNDING, sentence)


def _check_rotation(case: _Case) -> Iterator[Finding]:
    if not case.local and case.system.cell is not None:
        yield _unchecked("rotation", "not checked: the energy has a cell of its own")
        return
    turn, _ = np.linalg.qr(case.rng.normal(size=(case.system.dim,) * 2))
    turn *= np.sign(np.linalg.det(turn))
    turn = turn if np.linalg.det(turn) > 0.0 else turn * np.array([-1.0, *[1.0] * (case.system.dim - 1)])
    turned = case.original.with_positions(case.system.positions).deformed(turn)
    values = case.evaluate(case.listed(turned))
    sentence = "The energy or forces do not turn with the structure"
    yield Finding("rotation", case.difference(values, turn=turn), ROUNDING, sentence)


def _check_images(case: _Case) -> Iterator[Finding]:
    system = case.system
    if not any(system.pbc):
        yield _unchecked("images", "not checked: the system is not periodic")
        return
    whole = case.rng.integers(-2, 3, size=system.positions.shape) * np.array(system.pbc)
    values = case.evaluate(case.listed(case.original.with_positions(system.positions + whole @ np.asarray(system.cell))))
    yield Finding("images", case.difference(values), ROUNDING, "The energy changes when atoms are replaced by periodic images")
    if not case.local:
        yield _unchecked("repeated cell", "not checked: the energy has a cell of its own")
        return
    axis = system.pbc.index(True)
    cell = np.array(system.cell)
    positions = np.concatenate([system.positions, system.positions + cell[axis]])
    cell[axis] *= 2.0
    twice = System(positions, cell=cell, pbc=system.pbc, species=case.original.symbols * 2)
    energies = np.asarray(_with_atoms(case, np.tile(np.arange(len(system)), 2)).energies(twice))
    worst = _relative(energies, np.tile(case.values.energies, 2), case.energy)
    yield Finding("repeated cell", worst, ROUNDING, "The energy of an atom changes when the cell is repeated")


def _slope_error(
    case: _Case, quantity: Callable[[_Values], Any], path: Callable[..., Any], slope: Any, scale: Any, *, unit: float = 1.0
) -> float:
    """Return how far a slope is from Richardson's central differences of a quantity along `path(t) -> (system, potential)`.

    Where a step crosses a jump of a higher derivative a shorter one doesn't.
    """
    error = np.inf
    for step in unit * np.array(STEPS):
        difference = central_difference(lambda t: quantity(case.evaluate(*path(t))), step)
        error = min(error, _relative((difference - slope) / scale, 0.0))
        if error <= DIFFERENCES:
            break
    return error


def _total(values: _Values) -> Any:
    return values.energies.sum()


def _check_forces(case: _Case) -> Iterator[Finding]:
    x, worst = case.system.positions, 0.0
    for _ in range(2):
        v = case.rng.normal(size=x.shape)
        path = lambda t, v=v: (case.system.with_positions(x + t * v), None)  # noqa: E731
        slope, scale = -np.vdot(case.values.forces, v), np.linalg.norm(case.values.forces)
        worst = max(worst, _slope_error(case, _total, path, slope, scale, unit=case.spacing))
    yield Finding("forces", worst, DIFFERENCES, "Forces are not minus the gradient of the energy")


def _check_stress(case: _Case) -> Iterator[Finding]:
    system = case.system
    if system.cell is None or not all(system.pbc):
        yield _unchecked("stress", "not checked: the system is not periodic in all directions")
        return
    virial = np.asarray(case.values.virial)
    if not case.local:
        try:
            virial = np.asarray(from_voigt(case.potential.stress(system))) * float(system.volume) / stress_unit(system.dim)
        except InputError as refusal:
            yield _unchecked("stress", f"refused: {refusal}")
            return
    worst = 0.0
    for _ in range(2):
        strain = case.rng.normal(size=(system.dim,) * 2)
        strain = 0.5 * (strain + strain.T)

        def path(t: Any, strain: np.ndarray = strain) -> tuple[System, None]:
            return system.deformed(np.eye(system.dim) + t * strain), None

        worst = max(worst, _slope_error(case, _total, path, np.vdot(virial, strain), np.linalg.norm(virial)))
    yield Finding("stress", worst, DIFFERENCES, "The stress is not the derivative of the energy in the strain")


def _check_modes(case: _Case) -> Iterator[Finding]:
    """Check forward against reverse mode and differences, in first and second order; the stored stiffness; no NaN."""
    system, potential = case.system, case.potential
    v = jnp.asarray(case.rng.normal(size=system.positions.shape))
    flat, unravel = ravel_pytree(potential)
    step = np.asarray(case.rng.normal(size=flat.shape) * flat)
    second, of_original = (
        _second_order(potential, at, v, unravel(jnp.asarray(step))) for at in (system, case.listed(case.original))
    )
    infinite = sum(int((~np.isfinite(leaf)).sum()) for leaf in jax.tree.leaves((second, of_original)))
    sentence = "A second derivative is not finite (use jnp.where on both sides of what has none)"
    yield Finding("finite derivatives", float(infinite), 0.0, sentence)
    by_theta = np.asarray(ravel_pytree(case.values.by_parameters)[0])
    reverse = np.vdot(by_theta, step) - np.vdot(case.values.forces, v)
    scale = np.linalg.norm(case.values.forces) * np.linalg.norm(v) + np.linalg.norm(by_theta) * np.linalg.norm(step)
    sentence = "Forward and reverse mode give different slopes of the energy"
    yield Finding("jvp = vjp", _relative(second.slope, reverse, scale), ROUNDING, sentence)
    hv, of_step = np.asarray(second.hv), np.asarray(second.change - second.hv)
    forward, reverse = np.vdot(v, of_step), np.vdot(ravel_pytree(second.mixed)[0], step)
    scale = np.linalg.norm(v) * max(np.linalg.norm(of_step), np.linalg.norm(hv))
    sentence = "Forward and reverse mode differ in second derivatives in positions and parameters"
    yield Finding("jvp = vjp, second order", _relative(forward, reverse, scale), ROUNDING, sentence)
    path = lambda t: (system.with_positions(system.positions + t * v), None)  # noqa: E731
    worst = _slope_error(case, lambda values: -values.forces, path, hv, np.abs(hv).max(), unit=case.spacing)
    yield Finding("second derivatives", worst, DIFFERENCES, "The Hessian is not the slope of the forces")
    if second.stored is None:
        yield _unchecked("stored stiffness", "not checked: the potential gives none")
    else:
        worst = _relative(second.stored, hv)
        yield Finding("stored stiffness", worst, ROUNDING, "local_stiffness is not the Hessian of the energy")
    if flat.size:
        yield from _check_parameters(case, v, second.mixed)


def _check_parameters(case: _Case, v: Array, by_theta: Potential) -> Iterator[Finding]:
    leaves, structure = jax.tree.flatten(case.potential)
    first, mixed, directions = jax.tree.leaves(case.values.by_parameters), jax.tree.leaves(by_theta), _directions(leaves)
    slopes = np.array([[np.vdot(a, d), np.vdot(b, d)] for a, b, d in zip(first, mixed, directions, strict=True)])
    scale, worst, where = np.abs(slopes).max(axis=0) + 1e-12, 0.0, ""
    quantity = lambda values: np.array([values.energies.sum(), -np.vdot(values.forces, v)])  # noqa: E731
    for k, (name, d) in enumerate(zip(parameter_paths(case.potential), directions, strict=True)):

        def path(t: Any, k: int = k, d: np.ndarray = d) -> tuple[System, Potential]:
            return case.system, jax.tree.unflatten(structure, [*leaves[:k], leaves[k] + t * d, *leaves[k + 1 :]])

        error = _slope_error(case, quantity, path, slopes[k], scale)
        worst, where = (error, name) if error > worst else (worst, where)
    yield Finding("parameters", worst, DIFFERENCES, f"The derivative in {where} is not what finite differences say")


def _directions(leaves: list[Array]) -> list[np.ndarray]:
    """Return a change of each parameter by its own size, 1 where it is zero, times a random share for values of an array."""
    rng = np.random.default_rng(5)
    sizes = [np.where(leaf == 0.0, np.abs(leaf).max(initial=0.0) or 1.0, leaf) for leaf in map(np.asarray, leaves)]
    return [size * (rng.uniform(0.5, 1.0, size.shape) if size.ndim else 1.0) for size in sizes]


def _check_smoothness(case: _Case) -> Iterator[Finding]:
    order = case.potential.smoothness
    if order < 0 or not case.local:
        yield _unchecked("smoothness", "not checked: nothing is promised" if order < 0 else "not checked: no range")
        return
    names = ("energy", "force", "second derivative")
    for k, (name, jump) in enumerate(zip(names, jumps(case.potential, case.system, case.spacing), strict=True)):
        if k <= order:
            sentence = f"smoothness promises {order:g} continuous derivatives, but the {name} jumps somewhere up to the cutoff"
            yield Finding(f"continuous {name}", jump, JUMP, sentence)


def _check_single_precision(case: _Case) -> Iterator[Finding]:
    single = case.potential.astype("float32")
    system = case.listed(case.original.with_positions(case.system.positions).astype("float32"), single)
    values = case.evaluate(system, single)
    sentence = "Energies and forces in 32 bits are not close to those in 64"
    yield Finding("32 bits", case.difference(values), SINGLE_PRECISION, sentence)
    same = values.energies.dtype == values.forces.dtype == np.float32
    yield Finding("32 bits stay", 0.0 if same else 1.0, 0.0, "What is computed in 32 bits comes back in 64 (a float64 constant)")


def _check_file(case: _Case) -> Iterator[Finding]:
    ours = all(SHIPPED.get(type(part).__name__) is type(part) for part in (case.potential, *case.potential.parts()))
    state = Equilibrium(case.system, case.potential, 0.0, case.force, 0, Status.MAX_STEPS, None, "none")
    with tempfile.TemporaryDirectory() as folder:
        path = save(Path(folder) / "state.h5", state)
        again = load(path, potential=None if ours else case.potential)[0].potential
    same = jax.tree.structure(again) == jax.tree.structure(case.potential)  # type: ignore[operator]  # of jax's stubs
    for pair in zip(jax.tree.leaves(again), jax.tree.leaves(case.potential), strict=True) if same else ():
        a, b = map(np.asarray, pair)
        same = same and a.dtype == b.dtype and a.tobytes() == b.tobytes()
    yield Finding("file", 0.0 if same else 1.0, 0.0, "A file does not give the potential back bit for bit")


_CHECKS = (
    *(_check_permutation, _check_translation, _check_rotation, _check_images, _check_forces, _check_stress),
    *(_check_modes, _check_smoothness, _check_single_precision, _check_file),
)
