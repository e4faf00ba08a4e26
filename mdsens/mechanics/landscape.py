"""`Landscape`: the energy of a potential as a function of the unknown."""

from typing import NamedTuple

from mdsens.mechanics.unknown import Reference
from mdsens.potentials.base import Potential


class Landscape(NamedTuple):
    """An energy landscape: a potential, and the reference whose unknown its energy is a function of.

    This is the `data` of all problems that mdsens gives to its solvers.
    """

    reference: Reference
    potential: Potential
