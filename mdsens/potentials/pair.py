"""`PairPotential`: a plain sum over pairs, written as the energy of one pair."""

from collections.abc import Callable
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mdsens.errors import InputError, did_you_mean
from mdsens.neighbor_sums import fence
from mdsens.neighbors import bonds, in_chunks, pair_bonds
from mdsens.potentials.base import Atom, Potential
from mdsens.potentials.bonds import bond_vectors, handles, of_pairs, within
from mdsens.potentials.local_stiffness import CACHED, PairStiffness, pair_stiffness
from mdsens.potentials.switching import SMOOTHNESS, force_switch, quintic, xplor
from mdsens.system import System


class PairPotential(Potential):
    """U = ½ Σ_i Σ_{j≠i} φ(r_ij). A subclass gives `pair_energy(r, i, j)` and a static `cutoff` [Å].

    Optional static fields `onset` [Å] and `switch` bring the energy to zero at the cutoff: `"quintic"` (C2) and
    `"xplor"` (C1) multiply it between onset and cutoff, `"force_switch"` (C2) adds a polynomial to its force there,
    `"shifted_force"` (C1) subtracts φ(r_c) + (r - r_c) φ'(r_c), `"truncated"` (the default without such a field) cuts it off.
    """

    def pair_energy(self, r: Float[Array, ""], i: Atom, j: Atom) -> Float[Array, ""]:
        """Energy of the pair i, j at distance r [eV], before switching; the same for i, j and j, i."""
        raise NotImplementedError

    def kinks(self, i: Atom, j: Atom) -> tuple[Float[Array, ""], ...]:
        """Distances at which the second derivative of φ jumps [Å]."""
        if self.smoothness >= 2:
            return ()
        edges = (self.cutoff,) if self._switch in ("truncated", "shifted_force") else (self.onset, self.cutoff)
        return tuple(jnp.asarray(edge) for edge in edges)

    @property
    def smoothness(self) -> float:
        return SMOOTHNESS[self._switch]

    @property
    def _switch(self) -> str:
        return getattr(self, "switch", "quintic" if hasattr(self, "onset") else "truncated")

    def __check_init__(self) -> None:
        switch: str = self._switch
        onset: float | None = getattr(self, "onset", None)
        cutoff: float | None = getattr(self, "cutoff", None)
        name = type(self).__name__
        if switch not in SMOOTHNESS:
            raise InputError(f"{name} has no switch {switch!r}.{did_you_mean(str(switch), SMOOTHNESS)}")
        if cutoff is not None and not (isinstance(cutoff, Real) and 0 < cutoff < np.inf):
            raise InputError(f"{name}'s cutoff must be a positive length in Å, not {cutoff!r}.")
        ends = isinstance(onset, Real) and isinstance(cutoff, Real) and 0 <= onset < cutoff
        if switch in ("quintic", "xplor", "force_switch") and not ends:
            raise InputError(f"{name}'s onset must lie between 0 and the cutoff {cutoff} for the {switch} switch, not {onset!r}.")

    def atom_energies(self, system: System) -> Float[Array, " atoms"]:
        return 0.5 * jnp.sum(self._energies(*bond_vectors(system, self.range), *handles(system)), axis=0)

    def total(self, system: System) -> Float[Array, ""]:
        parts = self._in_chunks(system, lambda d, inside, i, j: jnp.sum(self._energies(d, inside, i, j)))
        return 0.5 * jnp.sum(parts)

    def _energies(self, d: Array, inside: Array, i: Atom, j: Atom) -> Array:
        return jnp.where(inside, of_pairs(self._switched_energy, jnp.sqrt(jnp.sum(d * d, axis=0)), i, j), 0.0)

    def local_stiffness(self, system: System) -> PairStiffness:
        def of_chunk(d: Array, inside: Array, i: Atom, j: Atom) -> Any:
            r = jnp.sqrt(jnp.sum(d * d, axis=0))
            slope, curvature = of_pairs(jax.value_and_grad(jax.grad(self._switched_energy)), r, i, j)
            return pair_stiffness(d, r, *(0.5 * jnp.where(inside, value, 0.0) for value in (slope, curvature)))

        # Not only sums over all pairs are made of these.
        d = fence(bonds(system.positions, system.cell, system.neighbors), system.neighbors)
        stiffness, capacity = self._in_chunks(system, of_chunk, d), len(system.neighbors.atom)
        join = lambda leaf: jnp.moveaxis(leaf, 0, -3).reshape(*leaf.shape[1:-2], capacity, -1)  # noqa: E731
        return jax.tree.map(join, stiffness)

    def _in_chunks(self, system: System, function: Callable[..., Any], vectors: Any = None) -> Any:
        """`function(d, inside, i, j)` of some places of all atoms at a time, so that they stay in the cache.

        Without `vectors`, those to the neighbours are taken in each chunk: for sums over all pairs.
        """
        neighbors, reach = system.neighbors, jax.lax.stop_gradient(self.range)

        def of_chunk(chunk: Any) -> Any:
            atom, image, used, d = chunk
            d = fence(pair_bonds(system.positions, system.cell, atom, image), neighbors) if d is None else d
            d, inside = within(d, used, reach)
            return function(d, inside, *handles(system, atom))

        if neighbors.atom.size <= CACHED:
            whole = of_chunk((neighbors.atom, neighbors.image, neighbors.used, vectors))
            return jax.tree.map(lambda leaf: leaf[None], whole)
        # Evaluated again for a derivative rather than kept.
        parts = (in_chunks(leaf) for leaf in (neighbors.atom, neighbors.image, neighbors.used))
        return jax.lax.map(jax.checkpoint(of_chunk), (*parts, None if vectors is None else in_chunks(vectors)))

    def _switched_energy(self, r: Float[Array, ""], i: Atom, j: Atom) -> Float[Array, ""]:
        if self._switch == "quintic":
            return self.pair_energy(r, i, j) * quintic(r, self.onset, self.cutoff)
        if self._switch == "xplor":
            return self.pair_energy(r, i, j) * xplor(r, self.onset, self.cutoff)
        if self._switch == "force_switch":
            return force_switch(lambda r: self.pair_energy(r, i, j), r, self.onset, self.cutoff)
        if self._switch == "shifted_force":
            edge = jnp.asarray(self.cutoff, r.dtype)
            value, slope = jax.value_and_grad(self.pair_energy)(edge, i, j)
            return self.pair_energy(r, i, j) - value - (r - edge) * slope
        return self.pair_energy(r, i, j)
