"""Charges and dipoles: fixed, or found self-consistently in finite systems, alone or with a short-range potential."""

from mdsens.potentials.electrostatics.charges import ChargeEquilibration
from mdsens.potentials.electrostatics.dipoles import InducedDipoles
from mdsens.potentials.electrostatics.self_consistent import SelfConsistent
from mdsens.potentials.electrostatics.with_charges import WithCharges

__all__ = ["ChargeEquilibration", "InducedDipoles", "SelfConsistent", "WithCharges"]


def __dir__() -> list[str]:
    return sorted(__all__)
