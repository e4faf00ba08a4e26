"""Physical fixed points: induced dipoles and equilibrated charges of finite systems, alone or together with the positions."""

from mdsens.electrostatics.charges import ChargeEquilibration
from mdsens.electrostatics.dipoles import InducedDipoles
from mdsens.electrostatics.joint import ChargedEquilibrium, WithCharges, relax_with_charges
from mdsens.electrostatics.selfconsistent import SelfConsistent

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
