"""The analytic embedded-atom potential of Zhou, Johnson and Wadley."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from mdsens.common.errors import InputError
from mdsens.potentials.checks import check_numbers, check_switch
from mdsens.potentials.forms.embedded import EmbeddedPotential
from mdsens.potentials.forms.switching import quintic
from mdsens.potentials.parameters import Parameter
from mdsens.potentials.species import Atom, static

# The constants of each element in the order of the fields.
# fmt: off
_PUBLISHED = {
    "Ag": (2.891814, 1.106232, 14.604100, 14.604144, 9.132010, 4.870405, 0.277758, 0.419611, 0.339710, 0.750758,
           -1.729364, -0.255882, 0.912050, -0.561432, -1.75, 0.0, 0.744561, -1.150650, 0.783924, -1.748423),
    "Al": (2.863924, 1.403115, 20.418205, 23.195740, 6.613165, 3.527021, 0.314873, 0.365551, 0.379846, 0.759692,
           -2.807602, -0.301435, 1.258562, -1.247604, -2.83, 0.0, 0.622245, -2.488244, 0.785902, -2.824528),
    "Au": (2.885034, 1.529021, 19.991632, 19.991509, 9.516052, 5.075228, 0.229762, 0.356666, 0.356570, 0.748798,
           -2.937772, -0.500288, 1.601954, -0.835530, -2.98, 0.0, 1.706587, -1.134778, 1.021095, -2.978815),
    "Co": (2.505979, 1.975299, 27.206789, 27.206789, 8.679625, 4.629134, 0.421378, 0.640107, 0.5, 1.0,
           -2.541799, -0.219415, 0.733381, -1.589003, -2.56, 0.0, 0.705845, -0.687140, 0.694608, -2.559307),
    "Cu": (2.556162, 1.554485, 21.175871, 21.175395, 8.127620, 4.334731, 0.396620, 0.548085, 0.308782, 0.756515,
           -2.170269, -0.263788, 1.088878, -0.817603, -2.19, 0.0, 0.561830, -2.100595, 0.310490, -2.186568),
    "Fe": (2.481987, 1.885957, 20.041463, 20.041463, 9.818270, 5.236411, 0.392811, 0.646243, 0.170306, 0.340613,
           -2.534992, -0.059605, 0.193065, -2.282322, -2.54, 0.0, 0.200269, -0.148770, 0.391750, -2.539945),
    "Mg": (3.196291, 0.544323, 7.132600, 7.132600, 10.228708, 5.455311, 0.137518, 0.225930, 0.5, 1.0,
           -0.896473, -0.044291, 0.162232, -0.689950, -0.90, 0.0, 0.122838, -0.226010, 0.431425, -0.899702),
    "Mo": (2.728100, 2.723710, 29.354065, 29.354065, 8.393531, 4.476550, 0.708787, 1.120373, 0.137640, 0.275280,
           -3.692913, -0.178812, 0.380450, -3.133650, -3.71, 0.0, 0.875874, 0.776222, 0.790879, -3.712093),
    "Ni": (2.488746, 2.007018, 27.562015, 27.562031, 8.383453, 4.471175, 0.429046, 0.633531, 0.443599, 0.820658,
           -2.693513, -0.076445, 0.241442, -2.375626, -2.70, 0.0, 0.265390, -0.152856, 0.445470, -2.7),
    "Pb": (3.499723, 0.647872, 8.450154, 8.450063, 9.121799, 5.212457, 0.161219, 0.236884, 0.250805, 0.764955,
           -1.422370, -0.210107, 0.682886, -0.529378, -1.44, 0.0, 0.702726, -0.538766, 0.935380, -1.439436),
    "Pd": (2.750897, 1.595417, 21.335246, 21.940073, 8.697397, 4.638612, 0.406763, 0.598880, 0.397263, 0.754799,
           -2.321006, -0.473983, 1.615343, -0.231681, -2.36, 0.0, 1.481742, -1.675615, 1.130000, -2.352753),
    "Ta": (2.860082, 3.086341, 33.787168, 33.787168, 8.489528, 4.527748, 0.611679, 1.032101, 0.176977, 0.353954,
           -5.103845, -0.405524, 1.112997, -3.585325, -5.14, 0.0, 1.640098, 0.221375, 0.848843, -5.141526),
    "Ti": (2.933872, 1.863200, 25.565138, 25.565138, 8.775431, 4.680230, 0.373601, 0.570968, 0.5, 1.0,
           -3.203773, -0.198262, 0.683779, -2.321732, -3.22, 0.0, 0.608587, -0.750710, 0.558572, -3.219176),
    "W": (2.740840, 3.487340, 37.234847, 37.234847, 8.900114, 4.746728, 0.882435, 1.394592, 0.139209, 0.278417,
           -4.946281, -0.148818, 0.365057, -4.432406, -4.96, 0.0, 0.661935, 0.348147, 0.582714, -4.961306),
    "Zr": (3.199978, 2.230909, 30.879991, 30.879991, 8.559190, 4.564902, 0.424667, 0.640054, 0.5, 1.0,
           -4.485793, -0.293129, 0.990148, -3.202516, -4.51, 0.0, 0.928602, -0.981870, 0.597133, -4.509025),
}
# fmt: on


class ZhouJohnsonWadley(EmbeddedPotential):
    """An embedded-atom model of metals in closed form, with one rule for their alloys.

    φ(r) = A exp(-α(x - 1)) / (1 + (x - κ)²⁰) - B exp(-β(x - 1)) / (1 + (x - λ)²⁰),   x = r/rₑ
    f(r) = fₑ exp(-β(x - 1)) / (1 + (x - λ)²⁰),   φ_ab = ½ (f_b/f_a φ_aa + f_a/f_b φ_bb)

    F(ρ) = Σ_{k≤3} Fnₖ (ρ/ρₙ - 1)^k for ρ < ρₙ = 0.85 ρₑ,   Σ_{k≤3} Fₖ (ρ/ρₑ - 1)^k for ρₙ ≤ ρ < 1.15 ρₑ,
           Fₑ (1 - η ln(ρ/ρₛ)) (ρ/ρₛ)^η beyond

    Args: one number each for one species, otherwise dicts by label.
        re: rₑ [Å]. fe, rhoe, rhos: fₑ, ρₑ, ρₛ. alpha, beta, kappa, lam, eta: α, β, κ, λ, η. A, B [eV].
        Fn0, ..., Fn3, F0, ..., F3, Fe [eV].
        onset, cutoff: φ and f, which the paper does not cut off, times `switching.quintic` between them [Å]; static.

    The pieces of F meet with one continuous derivative as far as the published digits go, and not for other parameters.

    X. W. Zhou, R. A. Johnson, H. N. G. Wadley, Phys. Rev. B 69, 144113 (2004), doi:10.1103/PhysRevB.69.144113.
    """

    units: ClassVar = dict.fromkeys(("fe", "rhoe", "rhos", "alpha", "beta", "kappa", "lam", "eta"), "") | {
        "re": "Angstrom",
        **dict.fromkeys(("A", "B", "Fn0", "Fn1", "Fn2", "Fn3", "F0", "F1", "F2", "F3", "Fe"), "eV"),
    }

    re: Parameter
    fe: Parameter
    rhoe: Parameter
    rhos: Parameter
    alpha: Parameter
    beta: Parameter
    A: Parameter
    B: Parameter
    kappa: Parameter
    lam: Parameter
    Fn0: Parameter
    Fn1: Parameter
    Fn2: Parameter
    Fn3: Parameter
    F0: Parameter
    F1: Parameter
    F2: Parameter
    F3: Parameter
    eta: Parameter
    Fe: Parameter
    onset: float = static(6.0)
    cutoff: float = static(7.0)

    def __check_init__(self) -> None:
        check_numbers(self, positive=("re", "fe", "rhoe", "rhos"))
        check_switch(self, self.onset, self.cutoff)

    @classmethod
    def published(cls, *elements: str, onset: float = 6.0, cutoff: float = 7.0) -> "ZhouJohnsonWadley":
        """Return the potential with the paper's constants, `ms.ZhouJohnsonWadley.published("Cu", "Ni")`.

        There are Ag, Al, Au, Co, Cu, Fe, Mg, Mo, Ni, Pb, Pd, Ta, Ti, W and Zr; not Pt, whose pieces of F meet at ¼ ρₑ.

        Raises:
            InputError: no element, or one that is not here.
        """
        if not elements or (unknown := [element for element in elements if element not in _PUBLISHED]):
            name = repr(unknown[0]) if elements else "no element"
            raise InputError(f"ZhouJohnsonWadley.published has no constants for {name}; it has {', '.join(_PUBLISHED)}.")
        columns = zip(*(_PUBLISHED[element] for element in elements), strict=True)
        values: list[Any] = [dict(zip(elements, column, strict=True)) if len(elements) > 1 else column[0] for column in columns]
        return cls(*[*values, onset, cutoff])

    @property
    def smoothness(self) -> float:
        return 1

    def pair_energy(self, r: Float[Array, ""], i: Atom, j: Atom) -> Float[Array, ""]:
        switch = quintic(r, self.onset, self.cutoff)
        if not isinstance(self.re, dict):
            return self._pair(r, i) * switch
        ratio = self._density(r, j) / self._density(r, i)
        return 0.5 * (ratio * self._pair(r, i) + self._pair(r, j) / ratio) * switch

    def density(self, r: Float[Array, ""], i: Atom, j: Atom) -> Float[Array, ""]:
        return self._density(r, j) * quintic(r, self.onset, self.cutoff)

    def embedding(self, rho: Float[Array, ""], i: Atom) -> Float[Array, ""]:
        value = self._values(i)
        rhoe, rhos = value("rhoe"), value("rhos")
        low = _cubic(rho / (0.85 * rhoe) - 1.0, *(value(f"Fn{k}") for k in range(4)))
        middle = _cubic(rho / rhoe - 1.0, *(value(f"F{k}") for k in range(4)))
        dense = rho >= 1.15 * rhoe
        grown = (jnp.where(dense, rho, rhoe) / rhos) ** value("eta")
        high = value("Fe") * (1.0 - jnp.log(grown)) * grown
        return jnp.where(rho < 0.85 * rhoe, low, jnp.where(dense, high, middle))

    def _pair(self, r: Float[Array, ""], i: Atom) -> Array:
        value = self._values(i)
        x = r / value("re")
        return value("A") * _decay(x, value("alpha"), value("kappa")) - value("B") * _decay(x, value("beta"), value("lam"))

    def _density(self, r: Float[Array, ""], i: Atom) -> Array:
        value = self._values(i)
        return value("fe") * _decay(r / value("re"), value("beta"), value("lam"))

    def _values(self, i: Atom) -> Callable[[str], Array]:
        return lambda name: self.one(getattr(self, name), i)


def _decay(x: Array, rate: Any, shift: Any) -> Array:
    return jnp.exp(-rate * (x - 1.0)) / (1.0 + (x - shift) ** 20)


def _cubic(x: Array, c0: Any, c1: Any, c2: Any, c3: Any) -> Array:
    return c0 + x * (c1 + x * (c2 + x * c3))
