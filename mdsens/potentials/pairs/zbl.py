"""The universal screened repulsion of nuclei of Ziegler, Biersack and Littmark."""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mdsens.common.errors import InputError
from mdsens.common.units import COULOMB
from mdsens.potentials.checks import check_positive
from mdsens.potentials.forms.pair import PairPotential
from mdsens.potentials.species import Atom, static
from mdsens.structures.system import System


class ZBL(PairPotential):
    """The pair energy φ(r) = k Z_i Z_j / r Σ_n c_n exp(-d_n r/a) + S(r), a = a₀ / (Z_i^p + Z_j^p); Z from the species.

    Args:
        onset, cutoff: [Å], between which the force is switched off, LAMMPS's `inner` and `outer`; no parameters. By default the
            onset is 0.8 of the cutoff.
        switch: `"force_switch"` (C2), LAMMPS's; or any other of `LennardJones`.
        coulomb: k = e²/4πε₀ [eV Å], CODATA's; 14.399645 is LAMMPS's in units metal. No parameter.
        a0: a₀ [Å]. p: exponent. c, d: four weights and decay rates. All as published, unless given.

    Species must be named by their chemical symbols.

    J. F. Ziegler, J. P. Biersack, U. Littmark, The Stopping and Range of Ions in Matter, Pergamon (1985),
    doi:10.1007/978-1-4615-8103-1_3.
    """

    units: ClassVar = {"a0": "Angstrom", "p": "", "c": "", "d": ""}

    cutoff: float = static()
    onset: float | None = static(None)
    switch: str = static("force_switch")
    coulomb: float = static(COULOMB)
    a0: Float[Any, ""] = 0.46850
    p: Float[Any, ""] = 0.23
    c: Float[Any, " terms"] = (0.18175, 0.50986, 0.28022, 0.02817)
    d: Float[Any, " terms"] = (3.19980, 0.94229, 0.40290, 0.20162)

    def __check_init__(self) -> None:
        if np.ndim(self.c) != 1 or np.shape(self.c) != np.shape(self.d):
            raise InputError(f"ZBL's c and d must have one length, not the shapes {np.shape(self.c)} and {np.shape(self.d)}.")
        check_positive(self, "a0", "p", "d")

    def check(self, system: System) -> None:
        super().check(system)
        _atomic_numbers(system.labels)

    def pair_energy(self, r: Float[Array, ""], i: Atom, j: Atom) -> Float[Array, ""]:
        Z = jnp.asarray(_atomic_numbers(i.labels), r.dtype)
        x = r * (Z[i.code] ** self.p + Z[j.code] ** self.p) / self.a0
        return self.coulomb * Z[i.code] * Z[j.code] / r * jnp.sum(self.c * jnp.exp(-self.d * x))


def _atomic_numbers(labels: Sequence[str]) -> list[int]:
    from ase.data import atomic_numbers

    if unknown := [label for label in labels if not atomic_numbers.get(label)]:
        raise InputError(f"ZBL takes charges from the species' names, and {unknown[0]!r} is no chemical element: name it so.")
    return [atomic_numbers[label] for label in labels]
