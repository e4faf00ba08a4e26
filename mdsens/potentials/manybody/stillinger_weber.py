"""The Stillinger-Weber potential for one or several species."""

from collections.abc import Sequence
from operator import mul
from pathlib import Path
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mdsens.common.errors import InputError
from mdsens.potentials.checks import check_positive, check_sign
from mdsens.potentials.forms.site import SitePotential
from mdsens.potentials.lammps_files import Entry, errors_named, read_sw
from mdsens.potentials.manybody.triplet_parameters import as_exponents, check_species, check_triplets, is_bond, largest_value
from mdsens.potentials.parameters import Parameter
from mdsens.potentials.species import Atom, static
from mdsens.structures.system import System, is_concrete

TWO_BODY = ("sigma", "a", "gamma", "A", "B", "p", "q")
"""Parameters of a bond: for several species, only the entries i-j-j count."""
SAME_FROM_BOTH_SIDES = ("epsilon", "sigma", "a", "A", "B", "p", "q")
"""Parameters whose entries i-j-j and j-i-i are one, since a bond has one energy."""
DIGITS = 1e-6
"""Relative difference up to which two entries of a file count as one number, rounded."""
Exponent = float | tuple[tuple[str, float], ...]


class StillingerWeber(SitePotential):
    """A two-body attraction with a three-body term that prefers one bond angle.

    U = Σ_{i<j} A ε [B (σ/r)^p - (σ/r)^q] exp(σ/(r - aσ))
      + Σ_i Σ_{j<k} λ ε (cos θ_jik - cos θ₀)² exp(γσ/(r_ij - aσ)) exp(γσ/(r_ik - aσ)),   all r < aσ

    Args (LAMMPS's names): numbers for one species; for several, numbers or dicts by the ordered triplet i-j-k
        (`"Ga-N-N"`), the entries of LAMMPS's files. The order of j and k does not matter.
        lam, costheta0: λ, cos θ₀, of i-j-k.
        epsilon: ε [eV], of i-j-k in the angles, of i-j-j in the bonds, where it is that of j-i-i too.
        sigma, a, A, B: σ [Å], cutoff in units of σ, prefactors, of i-j-j and j-i-i, which are one entry. Where σ or a is 0 the
            two do not see each other.
        gamma: γ, of i-j-j, for a leg from i to j.
        p, q: exponents of i-j-j, static; one number, or pairs `(("Ga-N-N", 4.0), ...)`.
        element: what numbers without species are of; others are warned about. Static.

    Smooth to all orders at its cutoff aσ.

    F. H. Stillinger, T. A. Weber, Phys. Rev. B 31, 5262 (1985), doi:10.1103/PhysRevB.31.5262.
    """

    units: ClassVar = {"epsilon": "eV", "sigma": "Angstrom"} | dict.fromkeys(("a", "lam", "gamma", "costheta0", "A", "B"), "")

    epsilon: Parameter
    sigma: Parameter
    a: Parameter
    lam: Parameter
    gamma: Parameter
    costheta0: Parameter
    A: Parameter
    B: Parameter
    p: Exponent = static(4)
    q: Exponent = static(0)
    element: str | None = static(default=None)

    def __post_init__(self) -> None:
        for name, value in self.parameters().items():
            if isinstance(value, dict):
                object.__setattr__(self, name, _as_leaves(name, value))
        for name in ("p", "q"):
            where, leaf = f"StillingerWeber's {name}", lambda key: _leaf("p", key)
            value = as_exponents(getattr(self, name), _exponent, where, "a number", bond=True, leaf=leaf)
            object.__setattr__(self, name, value)
        super().__post_init__()

    def __check_init__(self) -> None:
        self._check()

    def _check(self) -> None:
        check_triplets(self, TWO_BODY)
        check_positive(self, "sigma", "a", or_zero=True)
        if is_concrete(reach := self.range) and not float(reach) > 0.0:
            check_positive(self, "sigma", "a")

    @classmethod
    def silicon(cls) -> "StillingerWeber":
        """Return silicon, with the parameters of the original paper (ε = 50 kcal/mol), doi:10.1103/PhysRevB.31.5262."""
        bonds = {"epsilon": 2.1683, "sigma": 2.0951, "a": 1.80, "A": 7.049556277, "B": 0.6022245584}
        return cls(**bonds, lam=21.0, gamma=1.20, costheta0=-1.0 / 3.0, element="Si")

    @classmethod
    def from_file(cls, path: str | Path, elements: str | Sequence[str] | None = None) -> "StillingerWeber":
        """Read a LAMMPS `.sw` file, `ms.StillingerWeber.from_file("GaN.sw")`; `elements` chooses some of the file's.

        One element gives numbers, several give dicts by triplets. What LAMMPS does not use is left out: all but λ, ε and
        cos θ₀ of i-j-k with j ≠ k, of which in turn only the product λε counts, by the first of i-j-k and i-k-j.

        Raises:
            InputError: no such file, a malformed one, an element or a triplet that is not in it, entries that must be the
                same and are not.
        """
        entries = {"-".join(triplet): entry for triplet, entry in read_sw(path, elements).items()}
        columns: dict[str, Any] = {name: {} for name in next(iter(entries.values()))}
        for key, entry in entries.items():
            for name in ("sigma", "a") if is_bond(key) else ():
                check_sign(f"{str(path)!r}, line {entry.line}: {name} of {key}", entry[name], not_negative=True)
            _check_same(path, key, entries)
            for name in columns:
                if is_bond(key) or name not in TWO_BODY:
                    columns[name].setdefault(_leaf(name, key), entry[name])
        for name, column in columns.items():
            if len(entries) == 1 or (name in ("p", "q") and len(set(column.values())) == 1):
                columns[name] = next(iter(column.values()))
        with errors_named(path):
            return cls(**columns, element=next(iter(entries)).split("-")[0] if len(entries) == 1 else None)

    @property
    def range(self) -> Float[Array, ""]:
        return largest_value(mul, self.a, self.sigma)

    @property
    def smoothness(self) -> float:
        return np.inf

    def check(self, system: System) -> None:
        super().check(system)
        self._check()
        exponents = {name: dict(value) for name, value in (("p", self.p), ("q", self.q)) if isinstance(value, tuple)}
        check_species(self, system.labels, TWO_BODY, exponents, _leaf)

    def site_numbers(self, neighbors: int) -> int:
        return 12 * neighbors

    def site_energy(
        self, d: Float[Array, "neighbors dim"], i: Atom, j: Atom, mask: Bool[Array, " neighbors"]
    ) -> Float[Array, ""]:
        r = jnp.sqrt(jnp.sum(d * d, axis=-1))

        def of_bond(name: str) -> Array:
            return self.triplet(self._by_triplet(name, i.labels), i, j, j)

        sigma = of_bond("sigma")
        reach = of_bond("a") * sigma
        # Rounding may bring a bond at the cutoff onto it, where the exponents have their pole.
        mask = mask & (r < reach)
        reduced = jnp.where(mask, sigma / r, 1.0)  # σ may be 0, whose powers have no derivative
        decay = sigma / jnp.where(mask, r - reach, -1.0)
        attraction = self._power(reduced, self.q, i, j)
        well = of_bond("A") * of_bond("epsilon") * (of_bond("B") * self._power(reduced, self.p, i, j) - attraction)
        leg = jnp.where(mask, jnp.exp(of_bond("gamma") * decay), 0.0)
        # Each pair (the site's half) and each unordered pair of bonds once.
        return 0.5 * jnp.sum(jnp.where(mask, well * jnp.exp(decay), 0.0)) + 0.5 * self._angles(d / r[:, None], leg, i, j)

    def _angles(self, bond: Float[Array, "neighbors dim"], leg: Float[Array, " neighbors"], i: Atom, j: Atom) -> Float[Array, ""]:
        """Return Σ_{j≠k} λ ε (u_j·u_k - cos θ₀)² g_j g_k without a sum over pairs of bonds.

        The square multiplied out leaves Σ_j g_j, Σ_j g_j u_j and Σ_j g_j u_j u_jᵀ, the moments of the legs of each species.
        """
        species = jnp.arange(len(i.labels))
        legs = leg[None] if len(species) == 1 else jnp.where(j.code == species[:, None], leg, 0.0)
        bond = bond.T
        weighted = legs[:, None] * bond
        squares = jnp.sum(weighted[:, :, None] * bond, axis=-1)

        def product(a: Array) -> Array:
            return jnp.sum(a[:, None] * a, axis=tuple(range(2, a.ndim + 1)))

        def of_triplets(name: str, first: Atom, second: Atom) -> Array:
            return self.triplet(self._by_triplet(name, i.labels), i, first, second)

        rows, columns = (Atom(codes, codes, i.labels, i.n_atoms) for codes in (species[:, None], species))
        angle = of_triplets("costheta0", rows, columns)
        terms = product(squares) - 2.0 * angle * product(jnp.sum(weighted, axis=-1)) + angle**2 * product(jnp.sum(legs, axis=-1))
        alone = of_triplets("lam", j, j) * of_triplets("epsilon", j, j) * (1.0 - of_triplets("costheta0", j, j)) ** 2 * leg**2
        return jnp.sum(of_triplets("lam", rows, columns) * of_triplets("epsilon", rows, columns) * terms) - jnp.sum(alone)

    def _by_triplet(self, name: str, labels: Sequence[str]) -> Any:
        """Return a parameter with an entry for each order in which its triplets may be named."""
        parameter = getattr(self, name)
        if not isinstance(parameter, dict):
            return parameter
        keys = [f"{a}-{b}-{c}" for a in labels for b in labels for c in labels]
        return {key: parameter[leaf] for key in keys if (leaf := _leaf(name, key)) in parameter}

    def _power(self, x: Array, exponent: Exponent, i: Atom, j: Atom) -> Array:
        if not isinstance(exponent, tuple):
            return x ** int(exponent) if float(exponent).is_integer() else x**exponent
        table = dict(exponent)
        values = np.array([[table[_leaf("p", f"{a}-{b}-{b}")] for b in i.labels] for a in i.labels])
        return x ** jnp.asarray(values, x.dtype)[i.code, j.code]


def _leaf(name: str, key: str) -> str:
    """Return the key under which a parameter keeps an entry: one for i-j-k and i-k-j, and one for both sides of a bond."""
    if key.count("-") != 2:
        return key
    i, j, k = key.split("-")
    if j != k:
        j, k = sorted((j, k))
    elif name in SAME_FROM_BOTH_SIDES:
        i, j = sorted((i, j))
        k = j
    return f"{i}-{j}-{k}"


def _as_leaves(name: str, table: dict[Any, Any]) -> dict[Any, Any]:
    leaves = {}
    for key, value in table.items():
        leaf = _leaf(name, key) if isinstance(key, str) else key
        if leaf in leaves:
            raise InputError(f"StillingerWeber.{name} has the entry {leaf!r} twice, in both orders: give it once.")
        leaves[leaf] = value
    return leaves


def _exponent(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not np.isfinite(value):
        raise ValueError
    return value.item() if isinstance(value, np.number) else value


def _check_same(path: str | Path, key: str, entries: dict[str, Entry]) -> None:
    """Raise InputError for a file in which the two names of one entry have different numbers."""
    i, j, k = key.split("-")
    twin = f"{j}-{i}-{i}" if j == k else f"{i}-{k}-{j}"
    pair = [entries[key], entries[twin]]
    if j == k:
        numbers = {name: [entry[name] for entry in pair] for name in SAME_FROM_BOTH_SIDES}
    else:
        numbers = {"lam epsilon": [entry["lam"] * entry["epsilon"] for entry in pair]}
        if any(numbers["lam epsilon"]):
            numbers["costheta0"] = [entry["costheta0"] for entry in pair]
    if differing := [name for name, (x, y) in numbers.items() if abs(x - y) > DIGITS * max(abs(x), abs(y))]:
        raise InputError(
            f"{str(path)!r} has entries {key} and {twin} with different {differing[0]}, which must be the same: correct one."
        )
