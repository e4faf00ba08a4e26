"""The spectral neighbour analysis potential: an energy linear (or quadratic) in the bispectrum of an atom's neighbourhood."""

import functools
import itertools
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mdsens.errors import InputError
from mdsens.potentials.base import Potential, bond_vectors, handles, static
from mdsens.potentials.bispectrum import Bispectrum, Surroundings, energies
from mdsens.potentials.local_stiffness import SiteStiffness
from mdsens.potentials.site import in_blocks
from mdsens.potentials.snap_files import read_snap
from mdsens.system import is_concrete

BLOCK = 2**15

class SNAP(Potential):
    units: ClassVar = {"coefficients": "eV", "weights": ""}

    coefficients: dict[str, Float[Array, " coefficients"]]
    weights: dict[str, Float[Array, ""]]
    radii: tuple[tuple[str, float], ...] = static()
    rcutfac: float = static()
    twojmax: int = static()
    rfac0: float = static(0.99363)
    rmin0: float = static(0.0)
    switchflag: bool = static(True)
    bzeroflag: bool = static(True)
    quadraticflag: bool = static(False)
    chemflag: bool = static(False)
    bnormflag: bool = static(False)
    wselfallflag: bool = static(False)
    switchinnerflag: bool = static(False)
    sinner: tuple = static(())
    dinner: tuple = static(())

    @classmethod
    def from_files(cls, coefficients, parameters, elements=None):
        return cls(**read_snap(coefficients, parameters, elements))

    @property
    def range(self):
        return np.asarray(2.0 * self.rcutfac * max(dict(self.radii).values()))

    @property
    def form(self):
        return Bispectrum(self.twojmax,self.rfac0,self.rmin0,self.switchflag,self.bzeroflag,self.quadraticflag,self.bnormflag,self.wselfallflag,self.switchinnerflag,len(self.radii) if self.chemflag else 1)

    def atom_energies(self, system):
        return in_blocks(lambda *s: energies(self.form, *s), self._sites(system), BLOCK)

    def local_stiffness(self, system):
        return SiteStiffness(in_blocks(self.form.stiffness, self._sites(system), BLOCK))

    def _sites(self, system):
        d, inside = bond_vectors(system, self.range)
        i, j = handles(system)
        radius = jnp.asarray([dict(self.radii)[label] for label in i.labels])
        cutoff = self.rcutfac * (radius[i.code] + radius[j.code])
        weight = jnp.broadcast_to(self.one(self.weights, j), inside.shape)
        channel = np.array([[l for l,_ in self.radii].index(label) for label in i.labels])
        channel=jnp.asarray(channel)
        near = Surroundings(inside, cutoff, channel[j.code], channel[i.code], jnp.ones_like(cutoff), jnp.ones_like(cutoff))
        return near, jnp.swapaxes(d, 0, 1), weight, self.one(self.coefficients, i).T
