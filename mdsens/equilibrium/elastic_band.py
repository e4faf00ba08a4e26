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
from mdsens.common.suggestions import spelled
from mdsens.equilibrium.relaxation import Equilibrium
from mdsens.potentials.ase_calculator import Calculator
from mdsens.potentials.base import Potential
from mdsens.structures.system import System

INTERPOLATIONS = ("idpp", "linear")

MIN_DISPLACEMENT = 1e-3
"""Largest displacement of an atom [Å] with which two structures are still the same."""

CLIMB_START = 5.0
"""The highest image climbs once the chain's forces are below so many fmax: before, another may be the highest."""


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


@spelled
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
    """The nudged elastic band between two equilibria of the same atoms in the same cell.

    ASE's own (`ase.mep.NEB` with FIRE), on mdsens's energies. G. Henkelman, B. P. Uberuaga, H. Jónsson, J. Chem. Phys. 113,
    9901 (2000), the climbing image; G. Henkelman, H. Jónsson, ibid. 9978, the tangent; S. Smidstrup, A. Pedersen,
    K. Stokbro, H. Jónsson, J. Chem. Phys. 140, 214106 (2014), the interpolation of distances ("idpp").

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
    potential = _check_settings(initial, final, potential, images, fmax, spring, interpolation, max_steps)
    ends = [end.system if isinstance(end, Equilibrium) else end for end in (initial, final)]
    _check_ends(ends, potential, fmax)
    atoms = _interpolate(ends, potential, images, interpolation)
    try:
        neb, steps, converged = _relax_band(atoms, climb, fmax, spring, max_steps, progress)
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
    atoms: Any, climb: bool, fmax: float, spring: float | None, max_steps: int, progress: Any
) -> tuple[Any, int, bool]:
    """`(neb, steps, converged)`: first without climbing."""
    from ase.mep import NEB
    from ase.optimize import FIRE

    neb = NEB(atoms, k=_barrier_curvature(atoms) if spring is None else spring, climb=False, method="improvedtangent")
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


def _barrier_curvature(atoms: Any) -> float:
    """That of a parabola as high and as wide as the interpolated barrier."""
    energies = np.array([image.get_potential_energy() for image in atoms])
    return float(8.0 * np.ptp(energies) / _lengths([image.positions for image in atoms])[-1] ** 2)


def _interpolate(ends: Any, potential: Potential, count: int, interpolation: str) -> list[Any]:
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
    """Displacements from one structure to the periodic images of the other that are nearest, `(N, 3)`."""
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
    return Chain(
        tuple(first.with_positions(jnp.asarray(x, first.positions.dtype)) for x in positions),
        energies,
        _lengths(positions),
        highest,
        _tangent(positions, energies, highest),
        float(neb.get_residual()),
        steps,
        converged,
    )


def _tangent(positions: Sequence[np.ndarray], energies: np.ndarray, k: int) -> np.ndarray:
    """Equations 10 to 12 of Henkelman and Jónsson for an image that is a maximum."""
    behind, ahead = energies[k] - energies[k - 1], energies[k] - energies[k + 1]
    smaller, larger = sorted((behind, ahead))
    weights = (larger, smaller) if behind > ahead else (smaller, larger)
    forward, backward = positions[k + 1] - positions[k], positions[k] - positions[k - 1]
    tangent = weights[0] * forward + weights[1] * backward
    return tangent / np.linalg.norm(tangent)


def _lengths(positions: Sequence[np.ndarray]) -> np.ndarray:
    return np.cumsum([0.0, *(np.linalg.norm(b - a) for a, b in itertools.pairwise(positions))])


def _check_settings(
    initial: Any,
    final: Any,
    potential: Potential | None,
    images: int,
    fmax: float,
    spring: float | None,
    interpolation: str,
    max_steps: int,
) -> Potential:
    if not (images >= 3 and fmax > 0.0 and max_steps >= 1 and (spring is None or spring > 0.0)):
        raise InputError(
            "nudged_chain needs images >= 3 (the ends count), positive fmax and spring and max_steps >= 1, not "
            f"{images}, {fmax}, {spring} and {max_steps}."
        )
    if interpolation not in INTERPOLATIONS:
        raise InputError(f"interpolation must be one of {', '.join(map(repr, INTERPOLATIONS))}, not {interpolation!r}.")
    for end in (initial, final):
        if not isinstance(end, Equilibrium | System):
            raise InputError(
                f"A chain is spanned between two equilibria, ms.relax(system, potential), not a {type(end).__name__}."
            )
    known = [end.potential for end in (initial, final) if isinstance(end, Equilibrium)]
    known += [] if potential is None else [potential]
    if not known:
        raise InputError("Two systems know no potential: give nudged_chain(initial, final, potential), or two equilibria.")
    if not all(eqx.tree_equal(known[0], other) for other in known[1:]):
        raise InputError("The ends of a chain were relaxed with different potentials: relax both with the one that is meant.")
    return known[0]


def _check_ends(ends: Any, potential: Potential, fmax: float) -> None:
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
