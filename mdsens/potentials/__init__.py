"""Interatomic potentials: each is a pytree of its own parameters, written once as a pair, a site or an embedding energy."""

from mdsens.potentials.base import Potential
from mdsens.potentials.electrostatics.coulomb import Coulomb
from mdsens.potentials.electrostatics.ewald import Ewald
from mdsens.potentials.forms.embedded import EmbeddedPotential
from mdsens.potentials.forms.pair import PairPotential
from mdsens.potentials.forms.site import SitePotential
from mdsens.potentials.learned.behler_parrinello import BehlerParrinello
from mdsens.potentials.learned.deep_sets import DeepSets
from mdsens.potentials.learned.network import GraphPotential, NetworkPotential
from mdsens.potentials.learned.snap import SNAP
from mdsens.potentials.manybody.stillinger_weber import StillingerWeber
from mdsens.potentials.manybody.tersoff import Tersoff
from mdsens.potentials.metals.eam import EAM
from mdsens.potentials.metals.finnis_sinclair import FinnisSinclair
from mdsens.potentials.metals.gupta import Gupta
from mdsens.potentials.metals.zhou import ZhouJohnsonWadley
from mdsens.potentials.pairs.born_mayer_huggins import BornMayerHuggins
from mdsens.potentials.pairs.buckingham import Buckingham
from mdsens.potentials.pairs.harmonic_bonds import HarmonicBonds
from mdsens.potentials.pairs.lennard_jones import LennardJones
from mdsens.potentials.pairs.mie import Mie
from mdsens.potentials.pairs.morse import Morse
from mdsens.potentials.pairs.soft_sphere import SoftSphere
from mdsens.potentials.pairs.weeks_chandler_andersen import WeeksChandlerAndersen
from mdsens.potentials.pairs.yukawa import Yukawa
from mdsens.potentials.pairs.zbl import ZBL
from mdsens.potentials.reparameterised import Reparameterised, fixed, reparameterised, tied
from mdsens.potentials.species import static
from mdsens.potentials.sums import Sum
from mdsens.potentials.wrapped.ase_energy import from_ase
from mdsens.potentials.wrapped.jaxmd_energy import JaxMD

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
