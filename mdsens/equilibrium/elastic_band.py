"""`nudged_chain`: a path between two equilibria and the top of it, where the search for a saddle point starts."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from mdsens.common.errors import CoincidingAtoms, ConvergenceError, InputError
from mdsens.common.progress import residual_bar
from mdsens.common.suggestions import suggest_names
from mdsens.equilibrium.relaxation import Equilibrium
from mdsens.potentials.ase_calculator import Calculator
from mdsens.potentials.base import Potential
from mdsens.structures.system import System

INTERPOLATIONS = ("idpp", "linear")

MIN_DISPLACEMENT = 1e-3
"""Largest displacement of an atom [Å] up to which two structures count as the same."""

CLIMB_START = 5.0
"""Forces of the chain, in units of fmax, below which the highest image climbs: before, another may be the highest."""


@dataclasses.dataclass(frozen=True, repr=False)
class Chain:
    """Images along a path of least energy between two equilibria.

    Attributes:
        images: the structures, the two ends included; no atom is wrapped on the way.
        energies: of each [eV].
        lengths: of the path up to each, in the space of all coordinates [Å].
        highest: index of the highest image, never an end.
        tangent: of the path there, of unit length: the first guess of the unstable mode.
        fmax: largest force on an atom perpendicular to the path (at a climbing image, with its reversed part along it) [eV/Å].
        steps: of the optimiser.
        converged: whether fmax is what was asked for.
    """

    images: tuple[System, ...]
    energies: Float[np.ndarray, " images"]
    lengths: Float[np.ndarray, " images"]
    highest: int
    tangent: Float[np.ndarray, "atoms dim"]
    fmax: float
    steps: int
    converged: bool

    def __repr__(self) -> str:
        state = f"{'converged' if self.converged else 'not converged'} to {self.fmax:.1e} eV/Å in {self.steps} steps"
        where = f"{self.barrier:.6g} eV above the first at image {self.highest}"
        return f"Chain({len(self.images)} images over {self.lengths[-1]:.4g} Å, highest {where}, {state})"

    @property
    def barrier(self) -> float:
        """Energy of the highest image above the first [eV]: the barrier, as far as the image has climbed."""
        return float(self.energies[self.highest] - self.energies[0])


@suggest_names
def nudged_chain(
    initial: Equilibrium | System,
    final: Equilibrium | System,
    potential: Potential | None = None,
    *,
    images: int = 7,
    climb: bool = True,
    fmax: float = 0.05,
    spring: float | None = None,
    interpolation: str = "idpp",
    max_steps: int = 1000,
    throw: bool = True,
    progress: bool | None = None,
) -> Chain:
    """Find the path of least energy between two equilibria of the same atoms in the same cell, as a nudged elastic band.

    The band is ASE's own (`ase.mep.NEB` with FIRE), on mdsens's energies. G. Henkelman, B. P. Uberuaga, H. Jónsson,
    J. Chem. Phys. 113, 9901 (2000), the climbing image; G. Henkelman, H. Jónsson, ibid. 9978, the tangent; S. Smidstrup,
    A. Pedersen, K. Stokbro, H. Jónsson, J. Chem. Phys. 140, 214106 (2014), the interpolation of distances ("idpp").

    Args:
        initial, final: relaxed; atom k of one is atom k of the other, at its nearest periodic image.
        potential: for `System`s; an `Equilibrium` knows its own.
        images: of the chain, with its two ends.
        climb: let the highest image climb to the saddle point.
        fmax: largest force that may be left on an atom of an image [eV/Å]; for a start of `MinimumMode`, rough is enough.
        spring: between images [eV/Å²]; by default of the size of the barrier's own curvature.
        interpolation: `"idpp"`, between the distances of all pairs of atoms (memory of N² numbers), or `"linear"`.
        max_steps: of the optimiser.
        throw: raise if the chain did not converge; otherwise `chain.converged` says so.
        progress: show a bar; by default only at a terminal and for long work.

    Raises:
        InputError: other atoms, cells or potentials at the two ends, ends that are not relaxed to fmax or are the same, a path
            on which atoms coincide, settings out of their range.
        ConvergenceError: the chain did not converge, or no image lies above both ends.
    """
    if not (images >= 3 and fmax > 0.0 and max_steps >= 1 and (spring is None or spring > 0.0)):
        raise InputError(
            "nudged_chain needs images >= 3 (the ends count), positive fmax and spring and max_steps >= 1, not "
            f"{images}, {fmax}, {spring} and {max_steps}."
        )
    if interpolation not in INTERPOLATIONS:
        raise InputError(f"interpolation must be one of {', '.join(map(repr, INTERPOLATIONS))}, not {interpolation!r}.")
    potential = _common_potential((initial, final), potential)
    ends = [end.system if isinstance(end, Equilibrium) else end for end in (initial, final)]
    _check_ends(ends, potential, fmax)
    atoms = _interpolate(ends, potential, images, interpolation)
    try:
        spring = _barrier_curvature(atoms) if spring is None else spring
        neb, steps, converged = _relax_band(atoms, climb, spring, fmax=fmax, max_steps=max_steps, progress=progress)
    except CoincidingAtoms as error:
        raise InputError(
            f"On the {interpolation} path between the two structures atoms come to lie on each other: check that atom k is the "
            "same atom in both, or take the other interpolation."
        ) from error
    chain = _chain(neb, ends[0], steps, converged)
    if throw and not converged:
        raise ConvergenceError(
            f"The chain after {steps} steps (fmax {chain.fmax:.1e} eV/Å) has not converged: raise max_steps or fmax, or give "
            "more images."
        )
    return chain


def _relax_band(
    atoms: list[Any], climb: bool, spring: float, *, fmax: float, max_steps: int, progress: bool | None
) -> tuple[Any, int, bool]:
    """Return `(neb, steps, converged)`; the band relaxes without climbing first."""
    from ase.mep import NEB
    from ase.optimize import FIRE

    neb = NEB(atoms, k=spring, climb=False, method="improvedtangent")
    steps, converged = 0, False
    with residual_bar(fmax, progress) as show:
        for climbing in (False, True) if climb else (False,):
            neb.climb = climbing
            optimiser = FIRE(neb, logfile=None)
            shown = show.after(steps)
            optimiser.attach(lambda optimiser=optimiser, shown=shown: shown(optimiser.nsteps, float(neb.get_residual())))
            goal = CLIMB_START * fmax if climb and not climbing else fmax
            converged = bool(optimiser.run(fmax=goal, steps=max_steps - steps))
            steps += optimiser.nsteps
            if not converged:
                break
    return neb, steps, converged


def _barrier_curvature(atoms: list[Any]) -> float:
    """Return the curvature of a parabola as high and as wide as the interpolated barrier."""
    energies = np.array([image.get_potential_energy() for image in atoms])
    return float(8.0 * np.ptp(energies) / _lengths([image.positions for image in atoms])[-1] ** 2)


def _interpolate(ends: Sequence[System], potential: Potential, count: int, interpolation: str) -> list[Any]:
    from ase.mep import NEB

    first, last = (end.to_ase() for end in ends)
    last.positions = first.positions + _nearest_image(first, last)
    atoms = [first, *(first.copy() for _ in range(count - 2)), last]
    band = NEB(atoms, method="improvedtangent")
    band.interpolate(interpolation, mic=True, apply_constraint=False)
    for image in atoms:
        image.calc = Calculator(potential)
    return atoms


def _nearest_image(first: Any, last: Any) -> np.ndarray:
    """Return the displacements from one structure to the periodic images of the other that are nearest, `(N, 3)`."""
    from ase.geometry import find_mic

    return find_mic(last.positions - first.positions, first.cell, first.pbc)[0]


def _chain(neb: Any, first: System, steps: int, converged: bool) -> Chain:
    positions = [image.positions[:, : first.dim].copy() for image in neb.images]
    energies = np.array([image.get_potential_energy() for image in neb.images])
    highest = int(energies[1:-1].argmax()) + 1
    if not energies[highest] > max(energies[0], energies[-1]):
        raise ConvergenceError(
            "No image of the chain lies above both its ends: there is no barrier between them, or it is narrower than the "
            "distance of the images; give more images."
        )
    images = tuple(first.with_positions(jnp.asarray(x, first.positions.dtype)) for x in positions)
    tangent, residual = _tangent(positions, energies, highest), float(neb.get_residual())
    return Chain(images, energies, _lengths(positions), highest, tangent, residual, steps, converged)


def _tangent(positions: Sequence[np.ndarray], energies: np.ndarray, k: int) -> np.ndarray:
    """Return the tangent at an image that is a maximum: equations 10 to 12 of Henkelman and Jónsson."""
    behind, ahead = energies[k] - energies[k - 1], energies[k] - energies[k + 1]
    smaller, larger = sorted((behind, ahead))
    weights = (larger, smaller) if behind > ahead else (smaller, larger)
    forward, backward = positions[k + 1] - positions[k], positions[k] - positions[k - 1]
    tangent = weights[0] * forward + weights[1] * backward
    return tangent / np.linalg.norm(tangent)


def _lengths(positions: Sequence[np.ndarray]) -> np.ndarray:
    return np.cumsum([0.0, *(np.linalg.norm(b - a) for a, b in itertools.pairwise(positions))])


def _common_potential(ends: tuple[Equilibrium | System, ...], potential: Potential | None) -> Potential:
    """Return the potential of both ends, or the one that comes with systems."""
    for end in ends:
        if not isinstance(end, Equilibrium | System):
            raise InputError(
                f"A chain is spanned between two equilibria, ms.relax(system, potential), not a {type(end).__name__}."
            )
    known = [end.potential for end in ends if isinstance(end, Equilibrium)]
    known += [] if potential is None else [potential]
    if not known:
        raise InputError("Two systems know no potential: give nudged_chain(initial, final, potential), or two equilibria.")
    if not all(eqx.tree_equal(known[0], other) for other in known[1:]):
        raise InputError("The ends of a chain were relaxed with different potentials: relax both with the one that is meant.")
    return known[0]


def _check_ends(ends: Sequence[System], potential: Potential, fmax: float) -> None:
    first, last = ends
    if len(first) != len(last) or first.symbols != last.symbols:
        raise InputError("The ends of a chain must have the same atoms in the same order: atom k of one is atom k of the other.")
    cell, other = (np.zeros((end.dim, end.dim)) if end.cell is None else np.asarray(end.cell) for end in ends)
    if first.pbc != last.pbc or not np.allclose(cell, other, rtol=1e-10, atol=1e-10):
        raise InputError("The ends of a chain must have the same cell and pbc: relax both with the cell fixed.")
    frozen = np.asarray(first.frozen)
    if not (frozen == last.frozen).all() or (np.abs(first.positions - last.positions)[frozen] > 1e-10).any():
        raise InputError("The ends of a chain must have the same frozen atoms at the same places.")
    for name, end in zip(("initial", "final"), ends, strict=True):
        largest = np.linalg.norm(np.asarray(potential.forces(end))[~frozen], axis=1).max(initial=0.0)
        if not largest <= fmax:
            raise InputError(
                f"The {name} structure has a force of {largest:.1e} eV/Å left, more than fmax={fmax:g}: "
                "relax it first, ms.relax(system, potential)."
            )
    if np.linalg.norm(_nearest_image(*(end.to_ase() for end in ends)), axis=1).max() <= MIN_DISPLACEMENT:
        raise InputError("The ends of a chain are the same structure: the path between them has no length.")
