"""A structure that is relaxed together with others: its unknown as flat arrays of NumPy, its neighbour list, its condition."""

import functools
from collections.abc import Generator
from typing import Any, NamedTuple

import jax
import numpy as np

from mdsens.common.modules import with_fields
from mdsens.equilibrium.descent import STATE_SKIN
from mdsens.mechanics.assembly import Listed, assembled_dense
from mdsens.mechanics.batches import Question, Shaped, cheap_reach, shaped, shaped_by_pairs
from mdsens.mechanics.evaluation import condition_from, deformation_at, norm_of
from mdsens.mechanics.programs import Slopes
from mdsens.mechanics.rigid_motions import rigid_motions
from mdsens.mechanics.unknown import CellFreedom, Reference, Unknown, force_tolerance
from mdsens.potentials.base import Potential
from mdsens.solvers.host_lbfgs import Flat, Point
from mdsens.structures.neighbors.neighbor_list import SKIN
from mdsens.structures.neighbors.search import Pairs, find_pairs
from mdsens.structures.system import System

Asking = Generator[Question, Any, Any]
"""A way that yields questions to programs, is sent their answers, and returns what it is for."""


class Search(NamedTuple):
    """A search for pairs: the positions at which they are all within a reach."""

    positions: np.ndarray
    pairs: Pairs
    reach: float


class State(NamedTuple):
    """A point at which the energy is known, with its slopes."""

    point: Point
    slopes: Slopes


class Member:
    """A structure, the potential, and the freedom of its cell.

    Attributes:
        reference: of the unknown z, which is flat: positions, then the strain's components.
        held: `(N, dim)`, components of positions that do not move.
    """

    def __init__(self, system: System, potential: Potential, freedom: CellFreedom | None) -> None:
        self.potential, self.range = potential, float(np.asarray(potential.range))
        self._listed: Shaped | None = None
        self._search: Search | None = None
        self._room, self._wide = 0.0, True
        self.rest(system, freedom)

    def rest(self, system: System, freedom: CellFreedom | None) -> None:
        """Make a structure the reference."""
        host = with_fields(
            system,
            positions=np.asarray(system.positions),
            cell=None if system.cell is None else np.asarray(system.cell),
            frozen=np.asarray(system.frozen),
            neighbors=None,
        )
        self.reference = Reference(host, rigid_motions(host, on_device=False), jax.tree.map(np.asarray, freedom))
        self.held = np.repeat(host.frozen[:, None], host.dim, axis=1)

    @property
    def start(self) -> Flat:
        """The unknown of the reference."""
        positions = np.asarray(self.reference.system.positions).ravel()
        freedom = self.reference.freedom
        return positions if freedom is None else np.concatenate([positions, np.zeros(len(freedom.directions))])

    @property
    def listed(self) -> Shaped:
        """The structure with its present list."""
        assert self._listed is not None
        return self._listed

    def unknown(self, flat: Flat) -> Any:
        """Return z in the shape of the reference's."""
        positions, strain = np.split(flat, [self.held.size])
        parts: Any = (positions.reshape(self.held.shape), strain)
        return parts[0] if self.reference.freedom is None else Unknown(*parts)

    def placed(self, flat: Flat) -> Any:
        """Return the structure at z, without a list, as arrays of NumPy."""
        z, freedom, system = self.unknown(flat), self.reference.freedom, self.reference.system
        if freedom is None:
            return with_fields(system, positions=z)
        deformation = deformation_at(z, freedom)
        return with_fields(system, positions=z.positions @ deformation, cell=system.cell @ deformation)

    def force_tolerance(self, fmax: float, smax: float | None) -> float:
        """Return the largest force on an atom or a strain's component for which forces and stress are small enough [eV/Å]."""
        return force_tolerance(self.reference, fmax, smax)

    def tighten(self) -> None:
        """Let the list be a tight one from now on, by which the second derivatives are few."""
        self._wide, self._room = False, -1.0

    def loosen(self) -> None:
        """Let the list leave room for steps from now on."""
        self._wide = True

    def state(self, flat: Flat) -> Asking:
        """Ask for the energy and its slopes at z; return a `State`.

        Raises:
            CoincidingAtoms: from the search for neighbours.
        """
        system = self.placed(flat)
        cell = None if self.reference.freedom is None else system.cell
        if not self._is_listed(system.positions):
            self._list(system)
        program = "slopes" if cell is None else "slopes and stress"
        slopes: Slopes = yield Question(program, self.listed.at(system.positions, cell), self.potential)
        z = self.unknown(flat)
        if cell is None:
            gradient = np.where(self.held, 0.0, slopes.positions)
            norm = float(np.sqrt((gradient * gradient).sum(axis=1).max()))
            return State(Point(flat, gradient.ravel(), norm), slopes)
        residual = condition_from(slopes, z, self.reference)
        gradient = np.concatenate([residual.positions.ravel(), residual.strain])
        return State(Point(flat, gradient, norm_of(residual)), slopes)

    def hessian(self, state: State) -> Asking:
        """Ask for the second derivatives at a state; return `(∂F/∂z as a dense matrix, what it was made of)`."""
        system = self.placed(state.point.z)
        cell = None if self.reference.freedom is None else system.cell
        stiffness = yield Question("second derivatives", self.listed.at(system.positions, cell), self.potential)
        stored = Listed(stiffness, self.listed.neighbors)
        z = self.unknown(state.point.z)
        return assembled_dense(z, self.reference, system, stored, state.slopes.positions), stored

    def _is_listed(self, positions: np.ndarray) -> bool:
        """Return whether the list is complete there; a cell that changes has a new list each time."""
        if self._listed is None or self.reference.freedom is not None:
            return False
        return _farthest(positions, self._listed_at) <= self._room

    def _list(self, system: Any) -> None:
        tight, potential = (1.0 + STATE_SKIN) * self.range, self.potential
        self._listed_at = system.positions
        if type(potential).find_neighbors is not Potential.find_neighbors:
            neighbors: Any = jax.tree.map(np.asarray, potential.find_neighbors(system, skin=STATE_SKIN * self.range))
            self._listed, reach = shaped(with_fields(system, neighbors=neighbors)), tight
        else:
            pairs, reach = self._pairs(system, tight)
            self._listed = shaped_by_pairs(self._listed, system, pairs, radius=reach, skin=reach - self.range)
        self._room = 0.5 * (reach - self.range)

    def _pairs(self, system: Any, tight: float) -> tuple[Pairs, float]:
        """Return pairs for a list, and its reach: more than the tight one where steps need room."""
        positions, fixed = system.positions, self.reference.freedom is None
        search = functools.partial(find_pairs, positions, system.cell, system.pbc, radius=self.range)
        if self._wide and fixed:
            pairs = search(skin=SKIN * self.range)
            reach = cheap_reach(pairs, len(positions), tight, (1.0 + SKIN) * self.range)
            self._search = Search(positions, pairs.within(reach), reach)
            return self._search.pairs, reach
        known = self._search
        if known is None or not fixed or 2.0 * _farthest(positions, known.positions) > known.reach - tight:
            self._search = known = Search(positions, search(skin=tight - self.range), tight)
            return known.pairs, tight
        vectors = positions[known.pairs.j] - positions[known.pairs.i]
        if system.cell is not None:
            vectors = vectors + known.pairs.shift @ system.cell
        return known.pairs._replace(distance=np.sqrt((vectors * vectors).sum(axis=1))).within(tight), tight


def _farthest(positions: np.ndarray, before: np.ndarray) -> float:
    moved = positions - before
    return float(np.sqrt((moved * moved).sum(axis=1).max()))
