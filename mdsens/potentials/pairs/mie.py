"""The Mie potential, Lennard-Jones's with any two exponents."""

from typing import ClassVar

import numpy as np
from jaxtyping import Array, Float

from mdsens.common.errors import InputError
from mdsens.potentials.checks import check_positive
from mdsens.potentials.forms.pair import PairPotential
from mdsens.potentials.pairs.mixing_rules import check_mixing, pair_coefficients, pair_exponent
from mdsens.potentials.parameters import PerAtom
from mdsens.potentials.species import Atom, static
from mdsens.structures.system import is_concrete


class Mie(PairPotential):
    """The pair energy φ(r) = C ε [(σ/r)ⁿ - (σ/r)ᵐ] S(r), C = n/(n - m) (n/m)^(m/(n - m)), for one or several species.

    Args: numbers, or dicts `{"A-A": ..., "A-B": ..., "B-B": ...}`.
        epsilon: well depth ε [eV]. sigma: distance σ where φ = 0 [Å].
        n, m: exponents of the repulsion and of the attraction, n > m > 0, any real numbers; parameters too.
        cutoff: [Å], the same for all pairs; no parameter.
        onset, switch: how the energy comes to zero there, as for `LennardJones`.
        mixing: as for `LennardJones`; n and m are mixed as σ is, which is what LAMMPS does.

    G. Mie, Ann. Phys. 316, 657 (1903), doi:10.1002/andp.19033160802.
    """

    units: ClassVar = {"epsilon": "eV", "sigma": "Angstrom", "n": "", "m": ""}

    epsilon: PerAtom
    sigma: PerAtom
    n: PerAtom
    m: PerAtom
    cutoff: float = static()
    onset: float | None = static(None)
    switch: str = static("quintic")
    mixing: str | None = static(None)

    def __check_init__(self) -> None:
        check_mixing(self, "epsilon", "sigma", "n", "m")
        check_positive(self, "sigma", "n", "m")
        exponents = [value if isinstance(value, dict) else {None: value} for value in (self.n, self.m)]
        for key in {**exponents[0], **exponents[1]}:
            n, m = (values.get(key, values.get(None)) for values in exponents)
            if not (n is None or m is None) and is_concrete((n, m)) and not np.all(np.asarray(n) > np.asarray(m)):
                where = "n" if key is None else f"n[{key!r}]"
                raise InputError(f"Mie's {where} must be larger than its m, not {n} against {m}: n is the repulsion's exponent.")

    def pair_energy(self, r: Float[Array, ""], i: Atom, j: Atom) -> Float[Array, ""]:
        epsilon, sigma = pair_coefficients(self, i, j)
        n, m = pair_exponent(self, self.n, i, j), pair_exponent(self, self.m, i, j)
        depth = n / (n - m) * (n / m) ** (m / (n - m))
        return depth * epsilon * ((sigma / r) ** n - (sigma / r) ** m)
