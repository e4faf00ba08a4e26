"""Networks written in JAX as potentials: a function and the tree of its parameters, for one site or a graph of all atoms."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mdsens.common.errors import InputError
from mdsens.potentials.base import Potential
from mdsens.potentials.checks import check_cutoff
from mdsens.potentials.forms.neighbor_vectors import bond_vectors, pair_list
from mdsens.potentials.forms.site import SitePotential
from mdsens.potentials.parameters import without_constants
from mdsens.potentials.species import Atom, static
from mdsens.structures.system import System


class NetworkPotential(SitePotential):
    """The energy U = Σ_i apply(params, d_i, species of i, species of its neighbours, mask): any JAX function of one site.

    Args:
        apply: `apply(params, d, i_species, j_species, mask) -> energy` [eV] of one atom, from the vectors `d` `(K, dim)` [Å] to
            its neighbours. Species are numbers, places in `species`; where `mask` `(K,)` is False a harmless vector stands,
            which must not count. It must not depend on the order of neighbours, and go to zero at the cutoff smoothly.
        params: any tree of arrays: an Equinox module, a dict of Flax's. What in it is no array of floating-point numbers (an
            activation function, None) stays what it is; 32-bit numbers become 64-bit ones.
        cutoff: reach of a site [Å].
        species: the labels that have numbers; not needed where there is one species.
        continuous: number of derivatives of the energy that are continuous; -1 where nothing is known.
        width: how many numbers `apply` keeps for each pair of neighbours, roughly; it makes blocks of sites smaller.

    Paths of parameters are those of the tree: `wrt=["params.layers.0.weight"]`.
    """

    keyed: ClassVar[bool] = False

    apply: Callable[..., Any] = static()
    params: Any  # type: ignore[misc]  # no default stands before it
    cutoff: float = static()
    species: tuple[str, ...] = static(())
    continuous: float = static(-1)
    width: int = static(1)

    def __check_init__(self) -> None:
        _check_settings(self)

    @property
    def smoothness(self) -> float:
        return self.continuous

    def site_numbers(self, neighbors: int) -> int:
        return self.width * neighbors**2

    def check(self, system: System) -> None:
        super().check(system)
        _check_labels(self, system)

    def site_energy(
        self, d: Float[Array, "neighbors dim"], i: Atom, j: Atom, mask: Bool[Array, " neighbors"]
    ) -> Float[Array, ""]:
        params = without_constants(self.params)
        energy = jnp.asarray(self.apply(params, d, _numbers(self, i), _numbers(self, j), mask))
        if energy.shape != ():
            raise InputError(f"apply must return the energy of one site, a scalar, not an array of shape {energy.shape}.")
        return energy


class Graph(eqx.Module):
    """All atoms and the vectors between those within the cutoff, for message passing; padded edges have `mask` False.

    Attributes:
        species: `(N,)`, places in the potential's `species`.
        vectors: `(E, dim)`, from the receiver to the sender [Å]; a harmless one where padded.
        senders, receivers: `(E,)`, atoms; receivers are sorted, and each has the same number of edges.
        mask: `(E,)`, whether an edge counts.
    """

    species: Int[Array, " atoms"]
    vectors: Float[Array, "edges dim"]
    senders: Int[Array, " edges"]
    receivers: Int[Array, " edges"]
    mask: Bool[Array, " edges"]

    def sum(self, messages: Float[Array, "edges ..."]) -> Float[Array, "atoms ..."]:
        """Return for each receiver the sum of its messages, padded ones left out."""
        n = len(self.species)
        mask = self.mask.reshape(-1, *[1] * (messages.ndim - 1))
        return jnp.sum(jnp.where(mask, messages, 0.0).reshape(n, -1, *messages.shape[1:]), axis=1)


class GraphPotential(Potential):
    """The energy U = Σ_i apply(params, graph)_i: message passing, or any energy of all atoms within a cutoff of each other.

    Args:
        apply: `apply(params, graph) -> energies` `(N,)` [eV]; see `Graph`.
        params, species, continuous: as for `NetworkPotential`.
        cutoff: length of the edges [Å]; with several layers atoms see each other farther.

    Hessians are products with the linearised forces: no matrix is stored.
    """

    keyed: ClassVar[bool] = False
    local: ClassVar = False

    apply: Callable[..., Any] = static()
    params: Any  # type: ignore[misc]  # no default stands before it
    cutoff: float = static()
    species: tuple[str, ...] = static(())
    continuous: float = static(-1)

    def __check_init__(self) -> None:
        _check_settings(self)

    @property
    def smoothness(self) -> float:
        return self.continuous

    def check(self, system: System) -> None:
        super().check(system)
        _check_labels(self, system)

    def atom_energies(self, system: System) -> Float[Array, " atoms"]:
        d, inside = bond_vectors(system, self.range)
        n, capacity = len(system), len(inside)
        graph = Graph(
            species=_numbers(self, Atom(jnp.arange(n), system.species, system.labels, n)),
            vectors=d.T.reshape(-1, system.dim),
            senders=pair_list(system).index.ravel(),
            receivers=jnp.repeat(jnp.arange(n), capacity),
            mask=inside.T.ravel(),
        )
        energies = jnp.asarray(self.apply(without_constants(self.params), graph))
        if energies.shape != (n,):
            raise InputError(f"apply must return one energy for each of the {n} atoms, not an array of shape {energies.shape}.")
        return energies


AnyNetwork = NetworkPotential | GraphPotential


def _check_settings(potential: AnyNetwork) -> None:
    name = type(potential).__name__
    if not callable(potential.apply):
        raise InputError(f"{name} wants a function, {name}(apply, params, cutoff=...), not {potential.apply!r:.80}.")
    check_cutoff(potential, potential.cutoff)


def _check_labels(potential: AnyNetwork, system: System) -> None:
    if not potential.species and len(system.labels) > 1:
        raise InputError(f"{type(potential).__name__} needs species=(...) to number the species {', '.join(system.labels)}.")
    if missing := [label for label in system.labels if potential.species and label not in potential.species]:
        raise InputError(f"{type(potential).__name__} has no species {missing[0]!r}; it has {', '.join(potential.species)}.")


def _numbers(potential: AnyNetwork, atom: Atom) -> Array:
    if not potential.species:
        return jnp.zeros_like(atom.code)
    return jnp.asarray([potential.species.index(label) for label in atom.labels])[atom.code]
