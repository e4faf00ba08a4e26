"""The Tersoff potential for one or several species."""

from collections.abc import Sequence
from operator import add
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mdsens.potentials.checks import check_positive, check_sign
from mdsens.potentials.forms.site import SitePotential
from mdsens.potentials.lammps_files import errors_named, read_tersoff
from mdsens.potentials.manybody.triplet_parameters import as_exponents, check_species, check_triplets, is_bond, largest_value
from mdsens.potentials.parameters import Parameter
from mdsens.potentials.species import Atom, static
from mdsens.structures.system import System

TWO_BODY = ("n", "beta", "lam2", "B", "lam1", "A")
"""Parameters of a bond: for several species, only the entries i-j-j count."""
LARGEST_EXPONENT = 69.0776
"""The exponent at which exp(λ₃ᵐ (r_ij - r_ik)ᵐ) stops growing, 1e30, as in LAMMPS."""
_POSITIVE = ("d", "n", "R", "D", "lam1", "lam2")
_NOT_NEGATIVE = ("gamma", "c", "beta", "A", "B")


class Tersoff(SitePotential):
    """Bonds that weaken with the number of their neighbours and with the angles to them.

    U = ½ Σ_i Σ_{j≠i} f(r_ij) [A exp(-λ₁ r_ij) - b_ij B exp(-λ₂ r_ij)]
      b_ij = (1 + (β ζ_ij)ⁿ)^(-1/2n)
      ζ_ij = Σ_{k≠i,j} f(r_ik) g(θ_ijk) exp[λ₃ᵐ (r_ij - r_ik)ᵐ]
      g(θ) = γ (1 + c²/d² - c²/(d² + (cos θ - cos θ₀)²))
      f(r) = 1 below R - D, ½ - ½ sin(π (r - R)/2D) between, 0 above R + D

    Args (LAMMPS's names): numbers for one species; for several, numbers or dicts by the ordered triplet i-j-k
        (`"Si-C-C"`), where those of a bond have the entries i-j-j alone.
        gamma: γ. lam3: λ₃ [1/Å]. c, d, costheta0: the angles' c, d, cos θ₀. R, D: the cutoff's middle and half width
        [Å], of i-j-j for the bond ij and of i-j-k for the neighbour k in ζ_ij.
        n, beta: n, β. lam1, lam2: λ₁, λ₂ [1/Å]. A, B: prefactors [eV]. These are of a bond.
        m: 3 or 1, static; also as pairs `(("Si-Si-Si", 3), ...)`.
        element: what numbers without species are of; others are warned about. Static.

    The second derivative jumps where a neighbour passes R - D or R + D.

    J. Tersoff, Phys. Rev. B 39, 5566 (1989), doi:10.1103/PhysRevB.39.5566.
    """

    units: ClassVar = (
        dict.fromkeys(("gamma", "c", "d", "costheta0", "n", "beta"), "")
        | dict.fromkeys(("lam1", "lam2", "lam3"), "Angstrom-1")
        | dict.fromkeys(("R", "D"), "Angstrom")
        | dict.fromkeys(("A", "B"), "eV")
    )

    gamma: Parameter
    lam3: Parameter
    c: Parameter
    d: Parameter
    costheta0: Parameter
    n: Parameter
    beta: Parameter
    lam2: Parameter
    B: Parameter
    R: Parameter
    D: Parameter
    lam1: Parameter
    A: Parameter
    m: int | tuple[tuple[str, int], ...] = static(3)
    element: str | None = static(default=None)

    def __post_init__(self) -> None:
        object.__setattr__(self, "m", as_exponents(self.m, _exponent, "Tersoff's m", "3 or 1", bond=False))
        super().__post_init__()

    def __check_init__(self) -> None:
        check_triplets(self, TWO_BODY)
        check_positive(self, *_POSITIVE)
        check_positive(self, *_NOT_NEGATIVE, or_zero=True)

    @classmethod
    def silicon(cls) -> "Tersoff":
        """Return silicon of the paper of 1989, without λ₃; T3 of 1988 (doi:10.1103/PhysRevB.38.9902) is much the same with it."""
        angles: dict[str, Any] = {"gamma": 1.0, "lam3": 0.0, "c": 1.0039e5, "d": 16.217, "costheta0": -0.59825}
        bonds: dict[str, Any] = {"n": 0.78734, "beta": 1.1e-6, "lam2": 1.7322, "B": 471.18, "lam1": 2.4799, "A": 1830.8}
        return cls(**angles, **bonds, R=2.85, D=0.15, element="Si")

    @classmethod
    def from_file(cls, path: str | Path, elements: str | Sequence[str] | None = None) -> "Tersoff":
        """Read a LAMMPS `.tersoff` file, `ms.Tersoff.from_file("SiC.tersoff")`; `elements` chooses some of the file's.

        One element gives numbers, several give dicts by triplets.

        Raises:
            InputError: no such file, a malformed one, an element or a triplet that is not in it.
        """
        entries = read_tersoff(path, elements)
        for triplet, entry in entries.items():
            for name, value in entry.items():
                if name not in TWO_BODY or triplet[1] == triplet[2]:
                    where = f"{str(path)!r}, line {entry.line}: {name} of {'-'.join(triplet)}"
                    check_sign(where, value, positive=name in _POSITIVE, not_negative=name in _NOT_NEGATIVE)
        names = next(iter(entries.values()))
        columns: dict[str, Any] = {name: {"-".join(t): entry[name] for t, entry in entries.items()} for name in names}
        powers = columns.pop("m")
        m = next(iter(powers.values())) if len(set(powers.values())) == 1 else tuple(powers.items())
        for name in TWO_BODY:
            columns[name] = {key: value for key, value in columns[name].items() if is_bond(key)}
        if len(entries) == 1:
            columns = {name: next(iter(column.values())) for name, column in columns.items()}
            columns["element"] = next(iter(entries))[0]
        with errors_named(path):
            return cls(**columns, m=m)

    @property
    def range(self) -> Float[Array, ""]:
        return largest_value(add, self.R, self.D)

    @property
    def smoothness(self) -> float:
        return 1

    def check(self, system: System) -> None:
        super().check(system)
        check_species(self, system.labels, TWO_BODY, {"m": dict(self.m)} if isinstance(self.m, tuple) else {})

    def site_energy(
        self, d: Float[Array, "neighbors dim"], i: Atom, j: Atom, mask: Bool[Array, " neighbors"]
    ) -> Float[Array, ""]:
        r = jnp.sqrt(jnp.sum(d * d, axis=-1))
        bond = d / r[:, None]
        row, column = (jax.tree.map(lambda x, at=at: jnp.expand_dims(x, at), j) for at in (1, 0))

        def of_bond(parameter: Any) -> Array:
            return self.triplet(parameter, i, j, j)

        def of_pair(parameter: Any) -> Array:
            return self.triplet(parameter, i, row, column)

        # k = j is no neighbour of the bond ij, and masked places are none of any.
        others = mask[:, None] & mask[None, :] & ~jnp.eye(len(r), dtype=bool)
        off_angle = (jnp.sum(bond[:, None] * bond[None, :], axis=-1) - of_pair(self.costheta0)) ** 2
        c2, d2 = of_pair(self.c) ** 2, of_pair(self.d) ** 2
        # c²/d² - c²/(d² + x), without the cancellation.
        g = of_pair(self.gamma) * (1.0 + c2 * off_angle / (d2 * (d2 + off_angle)))
        lag = of_pair(self.lam3) * jnp.where(others, r[:, None] - r[None, :], 0.0)
        exponent = jnp.minimum(jnp.where(self._cubes(i, row, column), lag * lag * lag, lag), LARGEST_EXPONENT)
        weight = _cutoff(r[None, :], of_pair(self.R), of_pair(self.D)) * g * jnp.exp(exponent)
        zeta = jnp.sum(jnp.where(others, weight, 0.0), axis=1)

        order = _bond_order(of_bond(self.beta) * zeta, of_bond(self.n))
        repulsion = of_bond(self.A) * jnp.exp(-of_bond(self.lam1) * r)
        attraction = of_bond(self.B) * jnp.exp(-of_bond(self.lam2) * r)
        energies = _cutoff(r, of_bond(self.R), of_bond(self.D)) * (repulsion - order * attraction)
        return 0.5 * jnp.sum(jnp.where(mask, energies, 0.0))

    def _cubes(self, i: Atom, j: Atom, k: Atom) -> bool | Array:
        """Return where the exponent m is 3 and not 1."""
        if isinstance(self.m, int):
            return self.m == 3
        exponents, names = dict(self.m), i.labels
        table = np.array([[[exponents[f"{a}-{b}-{c}"] == 3 for c in names] for b in names] for a in names])
        return jnp.asarray(table)[i.code, j.code, k.code]


def _cutoff(r: Float[Array, ""], middle: Any, width: Any) -> Array:
    """Return 1 below `middle - width`, 0 above `middle + width`, half a wave of a sine between."""
    falling = (r > middle - width) & (r < middle + width)
    phase = jnp.where(falling, (r - middle) / width, 0.0)
    return jnp.where(falling, 0.5 - 0.5 * jnp.sin(0.5 * jnp.pi * phase), jnp.where(r < middle, 1.0, 0.0))


def _bond_order(x: Array, n: Array) -> Array:
    """Return (1 + xⁿ)^(-1/2n) without overflow; where that is 1 to rounding, the constant 1.

    For n < 2 the second derivative grows without bound towards x = 0, where bonds without neighbours are.
    """
    settled = x <= jax.lax.stop_gradient((2.0 * n * jnp.finfo(x.dtype).eps) ** (1.0 / n))
    x = jnp.where(settled, 1.0, x)
    return jnp.where(settled, 1.0, jnp.exp(-jnp.logaddexp(0.0, n * jnp.log(x)) / (2.0 * n)))


def _exponent(m: Any) -> int:
    if isinstance(m, bool) or not isinstance(m, int | float | np.number) or m not in (1, 3):
        raise ValueError
    return int(m)
