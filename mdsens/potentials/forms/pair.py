"""`PairPotential`: a plain sum over pairs, written as the energy of one pair."""

from dataclasses import MISSING
from numbers import Real
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mdsens.common.errors import InputError, did_you_mean
from mdsens.common.suggestions import get_attribute
from mdsens.potentials.base import Potential
from mdsens.potentials.forms.neighbor_vectors import (
    bond_vectors,
    handles,
    map_pairs,
    mark_squares,
    mask_squares,
    mask_vectors,
    pair_list,
)
from mdsens.potentials.forms.stored_stiffness import PairStiffness, pair_stiffness
from mdsens.potentials.forms.switching import DEFAULT_ONSET, ONSET_SWITCHES, SMOOTHNESS, force_switch, quintic, xplor
from mdsens.potentials.methods import PAIR_ENERGY, MissingMethod, scalar_method
from mdsens.potentials.parameters import canonical_key
from mdsens.potentials.species import Atom
from mdsens.structures.neighbors.sums_over_neighbors import fence
from mdsens.structures.neighbors.vectors import bonds, join_places, over_places, squared_distances
from mdsens.structures.system import System


class PairPotential(Potential):
    """The energy U = ½ Σ_i Σ_{j≠i} φ(r_ij). A subclass gives `pair_energy(r, i, j)` and a static `cutoff` [Å].

    Optional static fields `onset` [Å] and `switch` bring the energy to zero at the cutoff: `"quintic"` (C2) and
    `"xplor"` (C1) multiply it between onset and cutoff, `"force_switch"` (C2) adds a polynomial to its force there,
    `"shifted_force"` (C1) subtracts φ(r_c) + (r - r_c) φ'(r_c), `"truncated"` (the default without such a field) cuts it off.
    An onset of None becomes 0.8 of the cutoff for those that need one.

    `no_interaction=("O-O", "U-U")`, static and by keyword, says which pairs of species have no energy (LAMMPS's `pair_coeff * *
    none`): dicts by pairs leave them out.
    """

    stiffness_form: ClassVar = PairStiffness

    no_interaction: tuple[str, ...] = eqx.field(static=True, kw_only=True, default=())

    def pair_energy(self, r: Float[Array, ""], i: Atom, j: Atom) -> Float[Array, ""]:
        """Return the energy of the pair i, j at distance r [eV] before switching, which is that of j, i."""
        raise MissingMethod(self, PAIR_ENERGY, "the energy of a pair")

    def kinks(self, i: Atom, j: Atom) -> tuple[Float[Array, ""], ...]:
        """Return the distances at which the second derivative of φ jumps [Å]."""
        if self.smoothness >= 2:
            return ()
        edges = (self.cutoff,) if self._switch in ("truncated", "shifted_force") else (self.onset, self.cutoff)
        return tuple(jnp.asarray(edge) for edge in edges)

    @property
    def smoothness(self) -> float:
        return SMOOTHNESS[self._switch]

    @property
    def _switch(self) -> str:
        return get_attribute(self, "switch", "truncated" if get_attribute(self, "onset", MISSING) is MISSING else "quintic")

    def __post_init__(self) -> None:
        object.__setattr__(self, "no_interaction", _pairs_of(self.no_interaction, type(self).__name__))
        cutoff = get_attribute(self, "cutoff")
        if self._switch in ONSET_SWITCHES and get_attribute(self, "onset", MISSING) is None and isinstance(cutoff, Real):
            object.__setattr__(self, "onset", DEFAULT_ONSET * float(cutoff))
        super().__post_init__()

    def __check_init__(self) -> None:
        switch, name = self._switch, type(self).__name__
        onset: float = get_attribute(self, "onset")
        cutoff: float = get_attribute(self, "cutoff")
        for parameter, value in self.parameters().items():
            if isinstance(value, dict) and (entries := [key for key in self.no_interaction if key in value]):
                raise InputError(
                    f"{name}.{parameter} has an entry {entries[0]!r}, and no_interaction says that such a pair has no energy: "
                    "leave out one of them."
                )
        if switch not in SMOOTHNESS:
            raise InputError(f"{name} has no switch {switch!r}.{did_you_mean(str(switch), SMOOTHNESS)}")
        if cutoff is not None and not (isinstance(cutoff, Real) and 0 < cutoff < np.inf):
            raise InputError(f"{name}'s cutoff must be a positive length in Å, not {cutoff!r}.")
        if switch in ONSET_SWITCHES and not (isinstance(onset, Real) and 0 <= onset < cutoff):
            raise InputError(f"{name}'s onset must lie between 0 and the cutoff {cutoff} for the {switch} switch, not {onset!r}.")

    def atom_energies(self, system: System) -> Float[Array, " atoms"]:
        d, inside = bond_vectors(system, self.range)
        if self.no_interaction:
            d, inside = mask_vectors(d, inside & self.interact(*handles(system)), self.range)
        return 0.5 * jnp.sum(self._energies(jnp.sum(d * d, axis=0), inside, *handles(system)), axis=0)

    def total(self, system: System) -> Float[Array, ""]:
        neighbors, components = pair_list(system), tuple(system.positions.T)

        def of_chunk(atom: Array, kind: Array, used: Array) -> Array:
            # These are stored, and so are the slopes on the way back; vectors are cheaper to make again.
            squares = squared_distances(components, system.cell, neighbors, atom, kind)
            used = used & self.interact(*handles(system, atom)) if self.no_interaction else used
            squares, inside = mask_squares(fence(mark_squares(squares, used, self.range), neighbors), self.range)
            return jnp.sum(self._energies(squares, inside, *handles(system, atom)))

        return 0.5 * jnp.sum(over_places(of_chunk, neighbors.atom, neighbors.kind, neighbors.used))

    def interact(self, i: Atom, j: Atom) -> Bool[Array, "..."]:
        """Return whether a pair of atoms has an energy at any distance."""
        pairs = [[canonical_key(f"{a}-{b}") not in self.no_interaction for b in i.labels] for a in i.labels]
        return jnp.asarray(pairs)[i.code, j.code]

    def _pair_entry(self, parameter: dict[str, Any], key: str) -> Any:
        # Where pairs have no energy any number will do, and is used for none.
        known = parameter if key in parameter or key not in self.no_interaction else {key: next(iter(parameter.values()))}
        return self._entry(known, key)

    def _energies(self, squares: Array, inside: Array, i: Atom, j: Atom) -> Array:
        return jnp.where(inside, map_pairs(self._switched_energy, jnp.sqrt(squares), i, j), 0.0)

    def local_stiffness(self, system: System) -> PairStiffness:
        neighbors, reach = pair_list(system), jax.lax.stop_gradient(self.range)

        def of_chunk(atom: Array, used: Array, d: Array) -> PairStiffness:
            used = used & self.interact(*handles(system, atom)) if self.no_interaction else used
            d, inside = mask_vectors(d, used, reach)
            r = jnp.sqrt(jnp.sum(d * d, axis=0))
            slope, curvature = map_pairs(jax.value_and_grad(jax.grad(self._switched_energy)), r, *handles(system, atom))
            return pair_stiffness(d, r, *(0.5 * jnp.where(inside, value, 0.0) for value in (slope, curvature)))

        # Not only sums over all pairs are made of these.
        d = fence(bonds(system.positions, system.cell, neighbors), neighbors)
        return jax.tree.map(join_places, over_places(of_chunk, neighbors.atom, neighbors.used, d))

    def _switched_energy(self, r: Float[Array, ""], i: Atom, j: Atom) -> Float[Array, ""]:
        pair_energy = scalar_method(self, PAIR_ENERGY)
        if self._switch in ("quintic", "xplor"):
            return pair_energy(r, i, j) * (quintic if self._switch == "quintic" else xplor)(r, self.onset, self.cutoff)
        if self._switch == "force_switch":
            return force_switch(lambda r: pair_energy(r, i, j), r, self.onset, self.cutoff)
        if self._switch == "shifted_force":
            edge = jnp.asarray(self.cutoff, r.dtype)
            value, slope = jax.value_and_grad(pair_energy)(edge, i, j)
            return pair_energy(r, i, j) - value - (r - edge) * slope
        return pair_energy(r, i, j)


def _pairs_of(value: Any, name: str) -> tuple[str, ...]:
    """Return pairs of species in alphabetic order, each once."""
    pairs: Any = [value] if isinstance(value, str) else value if isinstance(value, list | tuple | set | frozenset) else [None]
    if bad := [pair for pair in pairs if not (isinstance(pair, str) and pair.count("-") == 1 and all(pair.split("-")))]:
        raise InputError(f'{name}\'s no_interaction names pairs of species, ("O-O", "U-U"), not {bad[0]!r}.')
    return tuple(sorted({canonical_key(pair) for pair in pairs}))
