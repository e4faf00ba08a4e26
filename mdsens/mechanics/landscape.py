"""`Landscape`: the energy of a potential as a function of the unknown."""

from typing import NamedTuple, Protocol, Self

from mdsens.mechanics.unknown import Reference
from mdsens.potentials.base import Potential


class Landscape(NamedTuple):
    """An energy landscape: a potential, and the reference whose unknown its energy is a function of.

    This is the `data` of all problems that mdsens gives to its solvers.
    """

    reference: Reference
    potential: Potential


class LandscapeLike(Protocol):
    """The `data` of a solver: a `Landscape`, or a record that has its fields among others."""

    @property
    def reference(self) -> Reference: ...
    @property
    def potential(self) -> Potential: ...
    def _replace(self, *, reference: Reference = ...) -> Self: ...
