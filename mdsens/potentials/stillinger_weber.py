"""The Stillinger-Weber potential for one species."""

from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mdsens.errors import InputError
from mdsens.potentials.base import static
from mdsens.potentials.files import read_sw
from mdsens.potentials.site import SitePotential
from mdsens.system import is_concrete


class StillingerWeber(SitePotential):
    """Two-body attraction with a three-body term that prefers one bond angle.

    U = Σ_{i<j} A ε [B (σ/r)^p - (σ/r)^q] exp(σ/(r - aσ))
      + Σ_i Σ_{j<k} λ ε (cos θ_jik - cos θ₀)² exp(γσ/(r_ij - aσ)) exp(γσ/(r_ik - aσ)),   all r < aσ

    Args (LAMMPS's names):
        epsilon: ε [eV]. sigma: σ [Å]. a: cutoff in units of σ. lam: λ. gamma: γ. costheta0: cos θ₀. A, B: prefactors.
        p, q: exponents, static.

    Smooth to all orders at its cutoff aσ. One species.

    F. H. Stillinger, T. A. Weber, Phys. Rev. B 31, 5262 (1985), doi:10.1103/PhysRevB.31.5262.
    """

    units: ClassVar = {"epsilon": "eV", "sigma": "Angstrom"} | dict.fromkeys(("a", "lam", "gamma", "costheta0", "A", "B"), "")

    epsilon: Float[Array, ""]
    sigma: Float[Array, ""]
    a: Float[Array, ""]
    lam: Float[Array, ""]
    gamma: Float[Array, ""]
    costheta0: Float[Array, ""]
    A: Float[Array, ""]
    B: Float[Array, ""]
    p: float = static(4)
    q: float = static(0)

    def __check_init__(self):
        self._check_scalars()
        for name in ("sigma", "a"):
            if is_concrete(value := getattr(self, name)) and not value > 0:
                raise InputError(f"StillingerWeber's {name} must be positive, not {value}.")

    def _check_scalars(self):
        for name, value in self.parameters().items():
            if np.ndim(value) != 0:
                raise InputError(f"StillingerWeber's {name} must be one number, not an array of shape {np.shape(value)}.")

    @classmethod
    def silicon(cls) -> "StillingerWeber":
        """Silicon, the parameters of the original paper (ε = 50 kcal/mol), doi:10.1103/PhysRevB.31.5262."""
        return cls(
            epsilon=2.1683,
            sigma=2.0951,
            a=1.80,
            lam=21.0,
            gamma=1.20,
            costheta0=-1.0 / 3.0,
            A=7.049556277,
            B=0.6022245584,
        )

    @classmethod
    def from_file(cls, path, element: str | None = None) -> "StillingerWeber":
        """From a LAMMPS `.sw` file; `element` chooses one where the file has several.

        Raises:
            InputError: no such file, a malformed one, or an element that is not in it.
        """
        return cls(**read_sw(path, element))

    @property
    def range(self):
        return self.a * self.sigma

    @property
    def smoothness(self) -> float:
        return np.inf

    def check(self, system):
        super().check(system)
        self._check_scalars()
        if len(system.labels) > 1:
            raise InputError(
                f"StillingerWeber is for one species, but the system has {', '.join(system.labels)}: use a system of one species."
            )

    def site_energy(self, d, i, j, mask):
        r = jnp.sqrt(jnp.sum(d * d, axis=-1))
        # Rounding may bring a bond at the cutoff onto it, where the exponents have their pole.
        mask = mask & (r < self.range)
        reduced = self.sigma / r
        decay = self.sigma / jnp.where(mask, r - self.range, -1.0)
        two_body = self.A * self.epsilon * (self.B * _power(reduced, self.p) - _power(reduced, self.q)) * jnp.exp(decay)
        leg = jnp.where(mask, jnp.exp(self.gamma * decay), 0.0)
        bond = d / r[:, None]
        off_angle = (bond @ bond.T - self.costheta0) ** 2
        pairs = leg[:, None] * leg[None, :] * (1.0 - jnp.eye(len(r), dtype=r.dtype))
        # Each pair (the site's half) and each unordered pair of bonds once.
        return 0.5 * jnp.sum(jnp.where(mask, two_body, 0.0)) + 0.5 * self.lam * self.epsilon * jnp.sum(off_angle * pairs)


def _power(x, exponent):
    return x ** int(exponent) if float(exponent).is_integer() else x**exponent
