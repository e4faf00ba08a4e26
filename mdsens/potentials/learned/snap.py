"""The spectral neighbour analysis potential (SNAP): linear, or quadratic, in the bispectrum of each atom's surroundings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mdsens.common.errors import InputError
from mdsens.potentials.base import Potential, constant_range
from mdsens.potentials.forms.neighbor_vectors import bond_vectors, handles, pair_list
from mdsens.potentials.forms.site import in_blocks
from mdsens.potentials.forms.stored_stiffness import SiteStiffness
from mdsens.potentials.learned.bispectrum import Bispectrum, Sites, Surroundings, energies
from mdsens.potentials.learned.snap_files import LISTS, read_snap
from mdsens.potentials.species import static
from mdsens.structures.system import System

CACHE_SIZE = 2**15
"""Number of pairs of neighbours (K² for each atom) that are evaluated together."""

SMALLEST_BLOCK = 32
"""Least number of atoms whose second derivatives are evaluated together."""

LARGEST_TWOJMAX = 10
"""Largest twojmax: beyond, tables of the bispectrum take minutes and gigabytes; published potentials have at most 8."""

Lengths = tuple[tuple[str, float], ...]


class SNAP(Potential):
    """Each atom's energy is linear in the bispectrum components of its neighbours' density on a sphere in four dimensions.

    E_i = c_0 + Σ_k c_k B_k, with `quadraticflag` + Σ_k ½ c_kk B_k² + Σ_{k<l} c_kl B_k B_l
      B = B_{j1 j2 j} = Σ (u_j)* ⊗ (u_j1 u_j2), contracted with two Clebsch-Gordan coefficients, for j2 ≤ j1 ≤ j ≤ twojmax
      u_j = U_j(0) + Σ_k w_k f(r_k) U_j(θ_k, direction of k),   U_j the Wigner matrices of three-dimensional rotations
      θ = rfac0 π (r - rmin0) / (r_c - rmin0),   f(r) = ½ + ½ cos(π (r - rmin0) / (r_c - rmin0)),   r_c = rcutfac (R_i + R_j)

    Args (LAMMPS's names):
        coefficients: by element, c_0, then c_k in LAMMPS's order of components; then, if quadratic, c_11, c_12, ..., c_22,
            c_23, ... [eV].
        weights: w by element.
        radii: R by element [Å], static; a dict, or pairs `(("W", 0.5),)`. With chemflag their order is that of the channels.
        rcutfac, twojmax, rfac0, rmin0 [Å]: as above, static; twojmax is twice the largest angular momentum, at most 10.
        switchflag: whether neighbours fade out by f; without, the energy jumps at r_c. bzeroflag: subtract B of an atom alone.
        quadraticflag: as above. chemflag: a density for each element, and B for each triplet of them. bnormflag: divide B by
            j + 1. wselfallflag: with chemflag, an atom counts in the density of every element, not of its own alone.
        switchinnerflag: neighbours fade out at short distance too, by ½ + ½ sin(π (r - s) / 2d) between s ± d, with s and d the
            means of both elements' sinner and dinner [Å], dicts or pairs.

    Three-dimensional systems only. The second derivative jumps where a neighbour passes r_c. What LAMMPS adds to a SNAP
    potential, such as ZBL's repulsion (`pair_style hybrid/overlay`), is not in its files. Forces are the derivative of the
    energy with chemflag too; LAMMPS's (of 2025) are so only for coefficients that do not depend on the order of elements.

    A. P. Thompson, L. P. Swiler, C. R. Trott, S. M. Foiles, G. J. Tucker, J. Comput. Phys. 285, 316 (2015),
    doi:10.1016/j.jcp.2014.12.018; quadratic: M. A. Wood, A. P. Thompson, J. Chem. Phys. 148, 241721 (2018),
    doi:10.1063/1.5017641; chemflag: M. A. Cusentino, M. A. Wood, A. P. Thompson, J. Phys. Chem. A 124, 5456 (2020),
    doi:10.1021/acs.jpca.0c02450.
    """

    units: ClassVar = {"coefficients": "eV", "weights": ""}
    stiffness_form: ClassVar = SiteStiffness

    coefficients: dict[str, Float[Any, " coefficients"]]
    weights: dict[str, Float[Any, ""]]
    radii: Lengths = static()
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
    sinner: Lengths = static(())
    dinner: Lengths = static(())

    def __post_init__(self) -> None:
        for name in ("radii", *LISTS):
            object.__setattr__(self, name, _by_element(name, getattr(self, name)))
        super().__post_init__()

    def __check_init__(self) -> None:
        self._check_settings()
        for name, parameter in (("coefficients", self.coefficients), ("weights", self.weights)):
            if not isinstance(parameter, dict) or set(parameter) != set(dict(self.radii)):
                raise InputError(f"SNAP's {name} must be a dict of the same elements as radii: {', '.join(dict(self.radii))}.")
        n = self._form.n_coefficients
        for element, values in self.coefficients.items():
            if np.shape(values) != (n,):
                kind = "quadratic" if self.quadraticflag else "linear"
                raise InputError(
                    f"SNAP's coefficients[{element!r}] must be {n} numbers for a {kind} energy with twojmax {self.twojmax} "
                    f"and {self._form.channels} kind(s) of neighbour, not an array of shape {np.shape(values)}."
                )
        for element, value in self.weights.items():
            if np.ndim(value) != 0:
                raise InputError(f"SNAP's weights[{element!r}] must be one number, not an array of shape {np.shape(value)}.")

    def _check_settings(self) -> None:
        top = self.twojmax
        if isinstance(top, bool) or not isinstance(top, int) or not 0 <= top <= LARGEST_TWOJMAX:
            raise InputError(f"SNAP's twojmax must be a whole number from 0 to {LARGEST_TWOJMAX}, not {top!r:.80}.")
        if not self.radii:
            raise InputError("SNAP's radii name no element: give them as a dict, one radius for each element.")
        for element, radius in self.radii:
            if not 0.0 < radius < np.inf:
                raise InputError(f"SNAP's radii[{element!r}] must be positive, not {radius}.")
        if not 0.0 < self.rcutfac < np.inf or not self.rfac0 > 0.0:
            raise InputError(f"SNAP's rcutfac and rfac0 must be positive, not {self.rcutfac} and {self.rfac0}.")
        if not 0.0 <= self.rmin0 < (shortest := 2.0 * self.rcutfac * min(dict(self.radii).values())):
            raise InputError(f"SNAP's rmin0 must not be negative, and less than every cutoff ({shortest} Å), not {self.rmin0}.")
        for name in LISTS if self.switchinnerflag else ():
            values = dict(getattr(self, name))
            if set(values) != set(dict(self.radii)) or not all(0.0 < value < np.inf for value in values.values()):
                raise InputError(f"SNAP's {name} must have a positive length for each element, as switchinnerflag needs them.")

    @classmethod
    def from_files(cls, coefficients: str | Path, parameters: str | Path, elements: str | Sequence[str] | None = None) -> "SNAP":
        """Read LAMMPS's `.snapcoeff` and `.snapparam` files; `elements` chooses some where they have more.

        Raises:
            InputError: no such file, a malformed one, files that do not belong together, an element that is not in them.
        """
        arguments = read_snap(coefficients, parameters, elements)
        try:
            return cls(**arguments)
        except InputError as error:
            raise InputError(f"{str(coefficients)!r} with {str(parameters)!r}: {error}") from None

    @property
    def range(self) -> Float[Array, ""]:
        return constant_range(2.0 * self.rcutfac * max(dict(self.radii).values()))

    @property
    def smoothness(self) -> float:
        return 1 if self.switchflag else -1

    def check(self, system: System) -> None:
        super().check(system)
        if system.dim != 3:
            raise InputError("SNAP is for systems in three dimensions: give each position a third component.")

    def atom_energies(self, system: System) -> Float[Array, " atoms"]:
        form = self._form
        return in_blocks(lambda *sites: energies(form, Sites(*sites)), self._sites(system), self._block(system))

    def local_stiffness(self, system: System) -> SiteStiffness:
        form = self._form
        return SiteStiffness(
            in_blocks(lambda *sites: form.stiffness(Sites(*sites)), self._sites(system), self._block(system), SMALLEST_BLOCK)
        )

    @staticmethod
    def _block(system: System) -> int:
        """Return the number of atoms in a block."""
        return int(CACHE_SIZE // len(pair_list(system).atom) ** 2)

    @property
    def _form(self) -> Bispectrum:
        return Bispectrum(
            **{name: getattr(self, name) for name in ("twojmax", "rfac0", "rmin0", "switchflag", "bzeroflag", "quadraticflag")},
            **{name: getattr(self, name) for name in ("bnormflag", "wselfallflag", "switchinnerflag")},
            channels=len(self.radii) if self.chemflag else 1,
        )

    def _sites(self, system: System) -> Sites:
        d, inside = bond_vectors(system, self.range)
        i, j = handles(system)

        def of_pair(lengths: Lengths) -> Array:
            half = jnp.asarray([0.5 * dict(lengths).get(label, 0.0) for label in i.labels], d.dtype)
            return half[i.code] + half[j.code]

        channel = jnp.asarray([[element for element, _ in self.radii].index(label) for label in i.labels])
        near = Surroundings(
            inside,
            2.0 * self.rcutfac * of_pair(self.radii),
            channel[j.code],
            channel[i.code],
            of_pair(self.sinner),
            of_pair(self.dinner),
        )
        weight = jnp.broadcast_to(self.one(self.weights, j), inside.shape)
        return Sites(near, jnp.swapaxes(d, 0, 1), weight, self.one(self.coefficients, i).T)


def _by_element(name: str, lengths: Any) -> Lengths:
    """Return pairs of elements and lengths in their order, however they were written."""
    try:
        pairs = lengths.items() if isinstance(lengths, Mapping) else lengths
        return tuple((str(element), float(value)) for element, value in pairs)
    except (TypeError, ValueError):
        raise InputError(f'SNAP\'s {name} must be a dict of lengths by element, {{"W": 0.5}}, not {lengths!r:.80}.') from None
