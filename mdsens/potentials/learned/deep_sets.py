"""`DeepSets`: a network of a site that treats its neighbours as a set."""

import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mdsens.common.errors import InputError
from mdsens.potentials.forms.site import SitePotential
from mdsens.potentials.learned.perceptron import (
    Network,
    check_activation,
    check_network,
    evaluate,
    random_network,
    select_by_species,
)
from mdsens.potentials.learned.symmetry_functions import CUTOFFS, check_radial, cutoff_function, radial
from mdsens.potentials.species import Atom, static
from mdsens.structures.system import System


class DeepSets(SitePotential):
    """A sum over neighbours, and one over pairs of neighbours, of what networks make of them, goes into a network.

    E_i = ρ(Σ_j f_c(r_ij) φ(v_ij), Σ_{j<k} f_c(r_ij) f_c(r_ik) ψ(v_ij + v_ik, v_ij v_ik, cos θ_jik))
      v_ij = exp(-η (r_ij - R_s)²) for each η, R_s; then, of several species, 1 at the neighbour's and 0 at the others

    ρ, φ, ψ are those of the centre's species. Sums make it blind to the order of neighbours, lengths and angles to rotations.

    Args:
        rho, phi, psi: by species, layers `{"W1": (hidden, inputs), "b1": (hidden,), "W2": ...}`; psi may be left out: no angles.
        eta: η [1/Å²] and Rs: R_s [Å].
        cutoff: of f_c [Å]. cutoff_function: "tanh3", "quintic", "exponential", "cosine".
        activation: of hidden units, "tanh", "softplus", "silu" or "gaussian".

    M. Zaheer et al., Deep Sets, NeurIPS 30 (2017), arXiv:1703.06114.
    """

    units: ClassVar = {"eta": "Angstrom-2", "Rs": "Angstrom"}
    keyed: ClassVar[bool] = False

    rho: dict[str, Network]
    phi: dict[str, Network]
    eta: Float[Any, " radial"]
    Rs: Float[Any, " radial"]
    cutoff: float = static()
    cutoff_function: str = static("tanh3")
    activation: str = static("tanh")
    psi: dict[str, Network] = eqx.field(default_factory=dict)

    def __check_init__(self) -> None:
        check_radial(self)
        check_activation(self.activation, "DeepSets")
        if not self.rho or set(self.phi) != set(self.rho) or (self.psi and set(self.psi) != set(self.rho)):
            raise InputError("DeepSets' rho, phi and psi are dicts of one network for each species, the same in all of them.")
        for label in self.rho:
            outputs = check_network(self.phi[label], f"DeepSets.phi[{label!r}]", inputs=self._n_values)
            if self.psi:
                outputs += check_network(self.psi[label], f"DeepSets.psi[{label!r}]", inputs=2 * self._n_values + 1)
            check_network(self.rho[label], f"DeepSets.rho[{label!r}]", inputs=outputs, outputs=1)

    @classmethod
    def untrained(
        cls,
        species: Sequence[str],
        *,
        cutoff: float,
        n_radial: int = 8,
        hidden: Sequence[int] = (16, 16),
        angles: bool = True,
        seed: int = 0,
        **settings: Any,
    ) -> "DeepSets":
        """Return random weights, where a fit begins. All networks have the same hidden layers; the last is φ's and ψ's output."""
        rng = np.random.default_rng(seed)
        species = [species] if isinstance(species, str) else sorted(species)
        values = n_radial + (len(species) if len(species) > 1 else 0)
        Rs = np.linspace(0.3, 1.0, n_radial) * cutoff
        sizes = {"phi": [values, *hidden], "rho": [hidden[-1] * (2 if angles else 1), *hidden, 1]}
        if angles:
            sizes["psi"] = [2 * values + 1, *hidden]
        networks: dict[str, Any] = {name: {label: random_network(size, rng) for label in species} for name, size in sizes.items()}
        eta = np.full(n_radial, 0.5 * (n_radial / cutoff) ** 2)
        return cls(**networks, eta=eta, Rs=Rs, cutoff=cutoff, **settings)

    @property
    def species(self) -> tuple[str, ...]:
        """The labels that it has networks for."""
        return tuple(sorted(self.rho))

    @property
    def _n_values(self) -> int:
        return len(self.eta) + (len(self.rho) if len(self.rho) > 1 else 0)

    @property
    def smoothness(self) -> float:
        return CUTOFFS[self.cutoff_function][1]

    def site_numbers(self, neighbors: int) -> int:
        widths = [len(value) for network in self.psi.values() for name, value in network.items() if name[0] == "b"]
        return max(widths, default=1) * neighbors**2

    def check(self, system: System) -> None:
        super().check(system)
        if missing := [label for label in system.labels if label not in self.rho]:
            raise InputError(f"DeepSets has no networks for the species {missing[0]!r}; it has {', '.join(self.rho)}.")

    def site_energy(
        self, d: Float[Array, "neighbors dim"], i: Atom, j: Atom, mask: Bool[Array, " neighbors"]
    ) -> Float[Array, ""]:
        r = jnp.sqrt(jnp.sum(d * d, axis=-1))
        fc = cutoff_function(self.cutoff_function, r, self.cutoff, mask)
        v = radial(r, jnp.ones_like(r), self.eta, self.Rs)
        if len(self.species) > 1:
            codes = jnp.asarray([self.species.index(label) for label in j.labels])[j.code]
            v = jnp.concatenate([v, (codes == jnp.arange(len(self.species))[:, None]).astype(v.dtype)])
        unit = d / r[:, None]
        # Each unordered pair of neighbours once.
        first, second = np.array(list(itertools.combinations(range(len(r)), 2)), dtype=int).T
        a, b = v[:, first], v[:, second]
        cosine = jnp.sum(unit[first] * unit[second], axis=-1)
        pairs = jnp.concatenate([a + b, a * b, cosine[None]])

        def energy(label: str) -> Array:
            sums = jnp.sum(evaluate(self.phi[label], v, self.activation) * fc, axis=1)
            if self.psi:
                values = evaluate(self.psi[label], pairs, self.activation) * (fc[first] * fc[second])
                sums = jnp.concatenate([sums, jnp.sum(values, axis=1)])
            return evaluate(self.rho[label], sums, self.activation)[0]

        return select_by_species(i, energy)
