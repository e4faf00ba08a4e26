"""Interatomic potentials: each is a pytree of its own parameters, written once as a pair, a site or an embedding energy."""

from mdsens.potentials.base import Potential, static
from mdsens.potentials.eam import EAM
from mdsens.potentials.embedded import EmbeddedPotential
from mdsens.potentials.jaxmd import JaxMD
from mdsens.potentials.lennard_jones import LennardJones
from mdsens.potentials.pair import PairPotential
from mdsens.potentials.reparameterised import Reparameterised, fixed, reparameterised, tied
from mdsens.potentials.site import SitePotential
from mdsens.potentials.soft_sphere import SoftSphere
from mdsens.potentials.stillinger_weber import StillingerWeber
from mdsens.potentials.sums import Sum
from mdsens.potentials.tersoff import Tersoff
from mdsens.potentials.zhou import ZhouJohnsonWadley

SHIPPED = {cls.__name__: cls for cls in (LennardJones, SoftSphere, StillingerWeber, Tersoff, EAM, ZhouJohnsonWadley)}
"""Potentials that a file can name and `load` can build again."""

SHIPPED |= {cls.__name__: cls for cls in (Sum, Reparameterised)}

__all__ = [
    "EAM",
    "SHIPPED",
    "EmbeddedPotential",
    "JaxMD",
    "LennardJones",
    "PairPotential",
    "Potential",
    "Reparameterised",
    "SitePotential",
    "SoftSphere",
    "StillingerWeber",
    "Sum",
    "Tersoff",
    "ZhouJohnsonWadley",
    "fixed",
    "reparameterised",
    "static",
    "tied",
]
