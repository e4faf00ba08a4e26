"""Interatomic potentials: each is a pytree of its own parameters, written once as a pair or a site energy."""

from mdsens.potentials.base import Potential, static
from mdsens.potentials.jaxmd import JaxMD
from mdsens.potentials.lennard_jones import LennardJones
from mdsens.potentials.pair import PairPotential
from mdsens.potentials.site import SitePotential
from mdsens.potentials.soft_sphere import SoftSphere
from mdsens.potentials.stillinger_weber import StillingerWeber

SHIPPED = {cls.__name__: cls for cls in (LennardJones, SoftSphere, StillingerWeber)}
"""Potentials that a file can name and `load` can build again."""

__all__ = [
    "SHIPPED",
    "JaxMD",
    "LennardJones",
    "PairPotential",
    "Potential",
    "SitePotential",
    "SoftSphere",
    "StillingerWeber",
    "static",
]
