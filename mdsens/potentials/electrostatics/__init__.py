"""Physical fixed points: induced dipoles and equilibrated charges of finite systems, alone or together with the positions."""

from mdsens.equilibrium.with_charges import ChargedEquilibrium, WithCharges, relax_with_charges
from mdsens.potentials.electrostatics.charges import ChargeEquilibration
from mdsens.potentials.electrostatics.dipoles import InducedDipoles
from mdsens.potentials.electrostatics.self_consistent import SelfConsistent

__all__ = [
    "ChargeEquilibration",
    "ChargedEquilibrium",
    "InducedDipoles",
    "SelfConsistent",
    "WithCharges",
    "relax_with_charges",
]


def __dir__() -> list[str]:
    return sorted(__all__)
