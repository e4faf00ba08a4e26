"""A structure that is relaxed together with others: its unknown as flat arrays of NumPy, its neighbour list, its condition."""

import functools
from collections.abc import Generator
from typing import Any, NamedTuple

import jax
import numpy as np

from mdsens.common.modules import with_fields
from mdsens.equilibrium.descent import STATE_SKIN
from mdsens.mechanics.batches import Shaped, cheap_reach, shaped, shaped_by_pairs
from mdsens.mechanics.evaluation import deformation_at
from mdsens.mechanics.programs import ignores_strangers
from mdsens.mechanics.rigid_motions import rigid_motions
from mdsens.mechanics.softest_modes import DENSE_LIMIT
from mdsens.mechanics.unknown import CellFreedom, Reference, Unknown, force_tolerance
from mdsens.potentials import SHIPPED
from mdsens.potentials.base import Potential, gives_stiffness
from mdsens.solvers.host_lbfgs import Flat
from mdsens.structures.neighbors.neighbor_list import SKIN, Neighbors
from mdsens.structures.neighbors.search import Pairs, find_pairs
from mdsens.structures.system import System

LEAST_COUNT = 4
"""Structures from which they go together: the programs for many are others than those for one."""

Asking = Generator[Any, Any, Any]
"""A way that yields questions (`mdsens.equilibrium.together.questions`), is sent their answers, and returns what it is for."""


class Search(NamedTuple):
    """A search for pairs: the positions at which they are all within a reach."""

    positions: np.ndarray
    pairs: Pairs
    reach: float


class Member:
    """A structure, the potential, and the freedom of its cell.

    Attributes:
        reference: of the unknown z, which is flat: positions, then the strain's components.
        freedom: of the cell; None for a fixed one.
        held: `(N, dim)`, components of positions that do not move.
        shares: whether all that go together have one potential.
        spare: places of lists that stay unused: a user's own energy is watched not to count them.
        kind: what members share whose questions are answered together.
    """

    def __init__(self, system: System, potential: Potential, freedom: CellFreedom | None, *, shares: bool = True) -> None:
        self.potential, self.range, self.shares = potential, float(np.asarray(potential.range)), shares
        self.spare = 0 if set(map(type, potential.parts())) <= set(SHIPPED.values()) else 1
        self._listed: Shaped | None = None
        self._search: Search | None = None
        self._wide, self._widening = True, 1.0
        self.listed_at, self.room = np.empty((0, 0)), -1.0
        self.rest(system, freedom)

    def rest(self, system: System, freedom: CellFreedom | None) -> None:
        """Make a structure the reference."""
        host: Any = with_fields(
            system,
            positions=np.asarray(system.positions),
            cell=None if system.cell is None else np.asarray(system.cell),
            frozen=np.asarray(system.frozen),
            neighbors=None,
        )
        self.freedom = jax.tree.map(np.asarray, freedom)
        self.reference = Reference(host, rigid_motions(host, on_device=False), self.freedom)
        self._host = host
        self.held = np.repeat(host.frozen[:, None], host.positions.shape[1], axis=1)
        structure = jax.tree.structure(self.potential)
        self.kind = host.positions.shape, host.labels, host.pbc, host.cell is None, freedom is None, structure, self.shares

    @property
    def start(self) -> Flat:
        """The unknown of the reference."""
        positions = self._host.positions.ravel()
        return positions if self.freedom is None else np.concatenate([positions, np.zeros(len(self.freedom.directions))])

    @property
    def listed(self) -> Shaped:
        """The structure with its present list."""
        assert self._listed is not None
        return self._listed

    def unknown(self, flat: Flat) -> Any:
        """Return z in the shape of the reference's."""
        if self.freedom is None:
            return flat.reshape(self.held.shape)
        positions, strain = np.split(flat, [self.held.size])
        parts: Any = (positions.reshape(self.held.shape), strain)
        return Unknown(*parts)

    def placed(self, flat: Flat) -> Any:
        """Return the structure at z, without a list, as arrays of NumPy."""
        z = self.unknown(flat)
        if self.freedom is None:
            return with_fields(self._host, positions=z)
        deformation = deformation_at(z, self.freedom)
        return with_fields(self._host, positions=z.positions @ deformation, cell=self._host.cell @ deformation)

    def force_tolerance(self, fmax: float, smax: float | None) -> float:
        """Return the largest force on an atom or a strain's component for which forces and stress are small enough [eV/Å]."""
        return force_tolerance(self.reference, fmax, smax)

    def tighten(self) -> None:
        """Let the list be a tight one from now on, by which the second derivatives are few."""
        self._wide, self.room = False, -1.0

    def renew_list(self, *, wider: bool) -> None:
        """Let the next state have a new list, with twice the room if it is to be wider."""
        self.room = -1.0
        self._widening *= 2.0 if wider else 1.0

    def loosen(self) -> None:
        """Let the list leave room for steps from now on."""
        self._wide = True

    def pairs_at(self, system: Any) -> tuple[Pairs, float] | None:
        """Return the pairs of a new list at a place, and its reach; None where the potential makes its own list, which is done.

        Raises:
            CoincidingAtoms: from the search for neighbours.
        """
        tight, potential = (1.0 + STATE_SKIN) * self.range, self.potential
        if type(potential).find_neighbors is Potential.find_neighbors:
            return self._pairs(system, tight)
        skin = SKIN * self._widening * self.range if self._wide and self.freedom is None else tight - self.range
        neighbors: Any = jax.tree.map(np.asarray, potential.find_neighbors(system, skin=skin))
        self.take_list(shaped(with_fields(system, neighbors=neighbors)), system.positions, self.range + skin)
        return None

    def first_list(self, pairs: Pairs, reach: float, like: Shaped | None) -> Shaped:
        """Return the structure with a list: one that will be replaced, as it looks for a member of its kind, if there is one."""
        if like is None:
            return shaped_by_pairs(self._host, pairs, radius=reach, skin=reach - self.range, spare=self.spare)
        return like.of(self._host)

    def take_list(self, listed: Shaped, positions: np.ndarray, reach: float) -> None:
        """Have a new list, made at some positions. A cell that changes has a new one each time."""
        self._listed, self.listed_at = listed, positions
        self.room = 0.5 * (reach - self.range) if self.freedom is None else -1.0

    @classmethod
    def at_rest(cls, eq_system: System, potential: Potential, freedom: CellFreedom | None, *, shares: bool) -> "Member":
        """Return the member that an equilibrium is, with its own list."""
        member = cls(eq_system, potential, freedom, shares=shares)
        member.tighten()
        if isinstance(eq_system.neighbors, Neighbors):
            listed = shaped(with_fields(member._host, neighbors=jax.tree.map(np.asarray, eq_system.neighbors)))
            member.take_list(listed, np.asarray(eq_system.neighbors.reference), float(eq_system.neighbors.radius))
        return member

    @property
    def has_list(self) -> bool:
        """Whether it ever had a list."""
        return self._listed is not None

    def _pairs(self, system: Any, tight: float) -> tuple[Pairs, float]:
        """Return pairs for a list, and its reach: more than the tight one where steps need room."""
        positions, fixed = system.positions, self.freedom is None
        search = functools.partial(find_pairs, positions, system.cell, system.pbc, radius=self.range)
        if self._wide and fixed:
            skin = SKIN * self._widening * self.range
            pairs, reach = search(skin=skin), self.range + skin
            if self._widening == 1.0:
                reach = cheap_reach(pairs, len(positions), tight, reach, self.spare)
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


def can_go_together(system: System, potential: Potential) -> bool:
    """Return whether a structure is small, its Hessian stored, and its energy a sum over neighbours."""
    if system.positions.size > DENSE_LIMIT or system.positions.dtype != np.float64 or potential.dtype != np.float64:
        return False
    if not gives_stiffness(potential) or not np.isfinite(float(np.asarray(potential.range))):
        return False
    return ignores_strangers(potential, len(system))


def _farthest(positions: np.ndarray, before: np.ndarray) -> float:
    moved = positions - before
    return float(np.sqrt((moved * moved).sum(axis=1).max()))
