"""`WithCharges`: a short-range potential with charges that are eliminated from the energy."""

from typing import ClassVar

from jaxtyping import Array, Float

from mdsens.potentials.base import Potential
from mdsens.potentials.electrostatics.charges import ChargeEquilibration
from mdsens.structures.neighbors.preparation import Preparation
from mdsens.structures.system import System


class WithCharges(Potential):
    """The energy U(x) + min_q E(x, q) of a short-range potential and charges that follow the positions.

    Args:
        short_range: U, any potential with neighbour lists.
        equilibration: E, the charges' energy.
    """

    local: ClassVar = False

    short_range: Potential
    equilibration: ChargeEquilibration

    @property
    def range(self) -> Float[Array, ""]:
        return self.short_range.range

    @property
    def smoothness(self) -> float:
        return self.short_range.smoothness

    def check(self, system: System) -> None:
        self.short_range.check(system)
        self.equilibration.check(system)

    def find_neighbors(self, system: System, *, skin: float | None = None) -> Preparation:
        return self.short_range.find_neighbors(system, skin=skin)

    def prepared(self, system: System) -> System:
        self.equilibration.prepared(system)
        return super().prepared(system)

    def atom_energies(self, system: System) -> Float[Array, " atoms"]:
        return self.short_range.atom_energies(system) + self.equilibration.atom_energies(system)
