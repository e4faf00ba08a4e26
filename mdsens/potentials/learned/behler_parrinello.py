"""Behler and Parrinello's network potential for any number of species."""

import itertools
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mdsens.common.errors import InputError, did_you_mean
from mdsens.common.paths import data_file
from mdsens.potentials.base import Potential, parameter_paths
from mdsens.potentials.forms.site import SitePotential
from mdsens.potentials.learned import symmetry_functions
from mdsens.potentials.learned.perceptron import (
    Network,
    check_activation,
    check_network,
    evaluate,
    random_network,
    select_by_species,
)
from mdsens.potentials.learned.symmetry_functions import CUTOFFS, check_radial
from mdsens.potentials.parameters import nest
from mdsens.potentials.species import Atom, static
from mdsens.structures.system import System

FILE_LIMIT = 10**9
"""Bytes that a file of weights may unpack to."""


class BehlerParrinello(SitePotential):
    """A network for each species, of symmetry functions of the atom's neighbourhood.

    E_i = N_{s(i)}((G_i - mean) / spread)
      G² = Σ_j exp(-η (r_ij - R_s)²) f_c(r_ij), for each species of j
      G⁴ = 2^(1-ζ) Σ_{j<k} (1 + λ cos θ_jik)^ζ exp(-η (r_ij² + r_ik² + r_jk²)) f_c(r_ij) f_c(r_ik) f_c(r_jk),
           for each pair of species of j and k; or G⁵, the same without the terms of r_jk

    The inputs are G² (all functions of the first species in alphabetic order, then of the next), then G⁴ or G⁵ (A-A, A-B,
    B-B). Each pair j, k counts once, as in n2p2.

    Args:
        network: by species, layers `{"W1": (hidden, inputs), "b1": (hidden,), ..., "W3": (1, hidden), "b3": (1,)}` [eV].
        mean, spread: by species, the scaling of inputs.
        eta: η [1/Å²] and Rs: R_s [Å] of the radial functions.
        angular_eta: η [1/Å²] of the angular functions; zeta: ζ, positive integers, lam: λ, 1 or -1: static.
        cutoff: r_c [Å]. cutoff_function: "tanh3" or "quintic" (two continuous derivatives), "exponential" (all), "cosine" (one).
        angular: "G4" or "G5". activation: of hidden units, "tanh", "softplus", "silu" or "gaussian".

    J. Behler, M. Parrinello, Phys. Rev. Lett. 98, 146401 (2007), doi:10.1103/PhysRevLett.98.146401.
    J. Behler, J. Chem. Phys. 134, 074106 (2011), doi:10.1063/1.3553717.
    """

    units: ClassVar = {"eta": "Angstrom-2", "Rs": "Angstrom", "angular_eta": "Angstrom-2", "mean": "", "spread": ""}

    network: dict[str, Network]
    mean: dict[str, Float[Any, " inputs"]]
    spread: dict[str, Float[Any, " inputs"]]
    eta: Float[Any, " radial"]
    Rs: Float[Any, " radial"]
    angular_eta: Float[Any, " angular"]
    zeta: tuple[int, ...] = static()
    lam: tuple[int, ...] = static()
    cutoff: float = static()
    cutoff_function: str = static("tanh3")
    angular: str = static("G4")
    activation: str = static("tanh")

    def __check_init__(self) -> None:
        check_radial(self)
        if self.angular not in ("G4", "G5"):
            raise InputError(
                f"BehlerParrinello's angular {self.angular!r} is not known.{did_you_mean(str(self.angular), ('G4', 'G5'))}"
            )
        check_activation(self.activation, "BehlerParrinello")
        counts = {"angular_eta": np.size(self.angular_eta), "zeta": len(self.zeta), "lam": len(self.lam)}
        if len(set(counts.values())) > 1:
            raise InputError(f"BehlerParrinello needs as many angular_eta as zeta and lam, not {counts}.")
        if any(not isinstance(z, int) or z < 1 for z in self.zeta) or any(sign not in (1, -1) for sign in self.lam):
            raise InputError(
                f"BehlerParrinello's zeta are positive integers and its lam 1 or -1, not {self.zeta} and {self.lam}."
            )
        if not isinstance(self.network, dict) or not self.network:
            raise InputError("BehlerParrinello's network is a dict of one network for each species.")
        for label in self.network:
            check_network(self.network[label], f"BehlerParrinello.network[{label!r}]", inputs=self.n_inputs, outputs=1)
            for name in ("mean", "spread"):
                if np.shape(getattr(self, name).get(label)) != (self.n_inputs,):
                    raise InputError(f"BehlerParrinello.{name}[{label!r}] must have {self.n_inputs} numbers, one for each input.")

    @classmethod
    def untrained(
        cls,
        species: Sequence[str],
        *,
        cutoff: float,
        eta: Sequence[float],
        Rs: Sequence[float],
        angular_eta: Sequence[float] = (),
        zeta: Sequence[int] = (),
        lam: Sequence[int] = (),
        hidden: Sequence[int] = (16, 16),
        seed: int = 0,
        **settings: Any,
    ) -> "BehlerParrinello":
        """Return random weights, inputs not yet scaled (see `scaled_to`): where a fit begins."""
        rng = np.random.default_rng(seed)
        species = [species] if isinstance(species, str) else sorted(species)
        inputs = _count(len(eta), len(zeta), len(species))
        return cls(
            network={label: random_network([inputs, *hidden, 1], rng) for label in species},
            mean={label: np.zeros(inputs) for label in species},
            spread={label: np.ones(inputs) for label in species},
            eta=eta,
            Rs=Rs,
            angular_eta=np.asarray(angular_eta, dtype=float),
            zeta=tuple(zeta),
            lam=tuple(lam),
            cutoff=cutoff,
            **settings,
        )

    @classmethod
    def silicon(cls) -> "BehlerParrinello":
        """Return silicon, trained by scripts/train_silicon_network.py on Stillinger and Weber's potential: for examples."""
        return cls.from_file(data_file("silicon_network.npz"))

    @classmethod
    def from_file(cls, path: str | Path) -> "BehlerParrinello":
        """Read a file that `to_file` wrote.

        Raises:
            InputError: no such file, a damaged one, one of something else.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(f"There is no file {str(path)!r}.")
        try:
            with zipfile.ZipFile(path) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > FILE_LIMIT:
                    raise InputError(f"{str(path)!r} would unpack to more than {FILE_LIMIT / 1e9:g} GB.")
            with np.load(path, allow_pickle=False) as file:
                settings: dict[str, Any] = {
                    k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(str(file["settings"])).items()
                }
                parameters = nest({name: file[name] for name in set(file.files) - {"settings"}})
            return cls(**parameters, **settings)
        except InputError as error:
            raise InputError(f"{str(path)!r}: {error}") from None
        except (zipfile.BadZipFile, OSError, KeyError, ValueError, TypeError, AttributeError, EOFError) as error:
            raise InputError(f"{str(path)!r} is no file that BehlerParrinello.to_file wrote, or a damaged one.") from error

    def to_file(self, path: str | Path) -> None:
        """Write weights and settings to a `.npz` file of NumPy's, which holds numbers and no code."""
        settings = {name: getattr(self, name) for name in ("zeta", "lam", "cutoff", "cutoff_function", "angular", "activation")}
        leaves = dict(zip(parameter_paths(self), map(np.asarray, jax.tree.leaves(self)), strict=True))
        np.savez_compressed(path, settings=json.dumps(settings), **leaves)  # type: ignore[arg-type]  # no parameter's name

    @property
    def species(self) -> tuple[str, ...]:
        """The labels that it has networks for."""
        return tuple(self.network)

    @property
    def n_inputs(self) -> int:
        """The number of symmetry functions."""
        return _count(len(self.eta), len(self.zeta), len(self.network))

    @property
    def smoothness(self) -> float:
        return CUTOFFS[self.cutoff_function][1]

    def site_numbers(self, neighbors: int) -> int:
        return max(1, len(self.zeta)) * neighbors**2

    def features(
        self, d: Float[Array, "neighbors dim"], i: Atom, j: Atom, mask: Bool[Array, " neighbors"]
    ) -> Float[Array, " inputs"]:
        """Return the symmetry functions of one site, from the arguments of `site_energy`."""
        r = jnp.sqrt(jnp.sum(d * d, axis=-1))
        fc = symmetry_functions.cutoff_function(self.cutoff_function, r, self.cutoff, mask)
        code = np.array([self.species.index(label) for label in j.labels])
        member = [jnp.asarray(code == s)[j.code].astype(r.dtype) for s in range(len(self.species))]
        member = [jnp.ones_like(r)] if len(self.species) == 1 else member
        functions = symmetry_functions.radial(r, fc, self.eta, self.Rs)
        parts = [jnp.sum(functions * share, axis=1) for share in member]
        if self.zeta:
            shape: dict[str, Any] = {"eta": self.angular_eta, "zeta": self.zeta, "lam": self.lam, "cutoff": self.cutoff}
            functions = symmetry_functions.angular(self.angular, d, r, mask, **shape, function=self.cutoff_function)
            for a, b in itertools.combinations_with_replacement(range(len(member)), 2):
                pairs = (0.5 if a == b else 1.0) * member[a][:, None] * member[b][None, :]
                parts.append(jnp.sum(functions * pairs, axis=(1, 2)))
        return jnp.concatenate(parts)

    def site_energy(
        self, d: Float[Array, "neighbors dim"], i: Atom, j: Atom, mask: Bool[Array, " neighbors"]
    ) -> Float[Array, ""]:
        inputs = self.features(d, i, j, mask)

        def energy(label: str) -> Array:
            scaled = (inputs - self.mean[label]) / self.spread[label]
            return evaluate(self.network[label], scaled, self.activation)[0]

        return select_by_species(i, energy)

    def inputs(self, system: System) -> Float[Array, "atoms inputs"]:
        """Return the symmetry functions of all atoms."""
        return _inputs(self, self.prepared(system))

    def scaled_to(self, systems: Sequence[System]) -> "BehlerParrinello":
        """Return the potential with inputs that have mean 0 and spread 1 over these structures."""
        values: dict[str, list[np.ndarray]] = {label: [] for label in self.species}
        for system in systems:
            inputs, symbols = np.asarray(self.inputs(system)), np.array(system.symbols)
            for label in set(symbols):
                values[label].append(inputs[symbols == label])
        mean, spread = dict(self.mean), dict(self.spread)
        for label, parts in values.items():
            if parts:
                rows = np.concatenate(parts)
                mean[label] = jnp.asarray(rows.mean(axis=0))
                spread[label] = jnp.asarray(np.maximum(rows.std(axis=0), 1e-6 * np.abs(rows).max(axis=0) + 1e-12))
        return eqx.tree_at(lambda p: (p.mean, p.spread), self, (mean, spread))


def _count(n_radial: int, n_angular: int, n_species: int) -> int:
    return n_radial * n_species + n_angular * n_species * (n_species + 1) // 2


@eqx.filter_jit
def _inputs(potential: Potential, system: System) -> Array:
    d, i, j, inside = potential._sites(system)
    return jax.vmap(potential.features, in_axes=-1)(d, i, j, inside)
