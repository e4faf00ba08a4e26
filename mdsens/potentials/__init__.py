"""Interatomic potentials: each is a pytree of its own parameters, written once as a pair, a site or an embedding energy."""

from mdsens.potentials.base import Potential, static
from mdsens.potentials.behler_parrinello import BehlerParrinello
from mdsens.potentials.born_mayer_huggins import BornMayerHuggins
from mdsens.potentials.buckingham import Buckingham
from mdsens.potentials.coulomb import Coulomb
from mdsens.potentials.deep_sets import DeepSets
from mdsens.potentials.eam import EAM
from mdsens.potentials.embedded import EmbeddedPotential
from mdsens.potentials.ewald import Ewald
from mdsens.potentials.external import from_ase
from mdsens.potentials.finnis_sinclair import FinnisSinclair
from mdsens.potentials.gupta import Gupta
from mdsens.potentials.harmonic_bonds import HarmonicBonds
from mdsens.potentials.jaxmd import JaxMD
from mdsens.potentials.lennard_jones import LennardJones
from mdsens.potentials.mie import Mie
from mdsens.potentials.morse import Morse
from mdsens.potentials.network import GraphPotential, NetworkPotential
from mdsens.potentials.pair import PairPotential
from mdsens.potentials.reparameterised import Reparameterised, fixed, reparameterised, tied
from mdsens.potentials.site import SitePotential
from mdsens.potentials.snap import SNAP
from mdsens.potentials.soft_sphere import SoftSphere
from mdsens.potentials.stillinger_weber import StillingerWeber
from mdsens.potentials.sums import Sum
from mdsens.potentials.tersoff import Tersoff
from mdsens.potentials.weeks_chandler_andersen import WeeksChandlerAndersen
from mdsens.potentials.yukawa import Yukawa
from mdsens.potentials.zbl import ZBL
from mdsens.potentials.zhou import ZhouJohnsonWadley

SHIPPED: dict[str, type[Potential]] = {
    cls.__name__: cls
    for cls in (
        *(LennardJones, Mie, WeeksChandlerAndersen, Morse, Buckingham, BornMayerHuggins, Yukawa, ZBL),
        *(SoftSphere, HarmonicBonds, Coulomb, Ewald),
        *(StillingerWeber, Tersoff),
        *(EAM, FinnisSinclair, Gupta, ZhouJohnsonWadley),
        *(SNAP, BehlerParrinello, DeepSets),
        *(Sum, Reparameterised),
    )
}
"""Potentials that a file can name and `load` can build again."""

__all__ = [
    "EAM",
    "SHIPPED",
    "SNAP",
    "ZBL",
    "BehlerParrinello",
    "BornMayerHuggins",
    "Buckingham",
    "Coulomb",
    "DeepSets",
    "EmbeddedPotential",
    "Ewald",
    "FinnisSinclair",
    "GraphPotential",
    "Gupta",
    "HarmonicBonds",
    "JaxMD",
    "LennardJones",
    "Mie",
    "Morse",
    "NetworkPotential",
    "PairPotential",
    "Potential",
    "Reparameterised",
    "SitePotential",
    "SoftSphere",
    "StillingerWeber",
    "Sum",
    "Tersoff",
    "WeeksChandlerAndersen",
    "Yukawa",
    "ZhouJohnsonWadley",
    "fixed",
    "from_ase",
    "reparameterised",
    "static",
    "tied",
]


def __dir__() -> list[str]:
    return sorted(__all__)
