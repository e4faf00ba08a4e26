"""`WithCharges`: a short-range potential, and charges that are eliminated inside the energy of the positions."""

from typing import Any, ClassVar

from jaxtyping import Array, Float

from mdsens.potentials.base import Potential
from mdsens.potentials.electrostatics.charges import ChargeEquilibration
from mdsens.structures.system import System


class WithCharges(Potential):
    """U(x) + min_q E(x, q): a short-range potential and charges that follow the positions.

    Args:
        short_range: any potential with neighbour lists.
        equilibration: the charges' energy.
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

    def find_neighbors(self, system: System, *, skin: float | None = None) -> Any:
        return self.short_range.find_neighbors(system, skin=skin)

    def prepared(self, system: System) -> System:
        self.equilibration.prepared(system)
        return super().prepared(system)

    def atom_energies(self, system: System) -> Float[Array, " atoms"]:
        return self.short_range.atom_energies(system) + self.equilibration.atom_energies(system)
