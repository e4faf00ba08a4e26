"""`PairPotential`: a plain sum over pairs, written as the energy of one pair."""

from numbers import Real

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mdsens.errors import InputError, did_you_mean
from mdsens.potentials.base import Atom, Potential, handles, neighbor_vectors
from mdsens.potentials.switching import SMOOTHNESS, quintic, xplor


class PairPotential(Potential):
    """U = ½ Σ_i Σ_{j≠i} φ(r_ij). A subclass gives `pair_energy(r, i, j)` and a static `cutoff` [Å].

    Optional static fields `onset` [Å] and `switch` bring the energy to zero at the cutoff: `"quintic"` (C2) and
    `"xplor"` (C1) multiply it between onset and cutoff, `"shifted_force"` (C1) subtracts φ(r_c) + (r - r_c) φ'(r_c),
    `"truncated"` (the default without such a field) cuts it off.
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

    def __check_init__(self):
        switch, onset, cutoff = self._switch, getattr(self, "onset", None), getattr(self, "cutoff", None)
        name = type(self).__name__
        if switch not in SMOOTHNESS:
            raise InputError(f"{name} has no switch {switch!r}.{did_you_mean(str(switch), SMOOTHNESS)}")
        if cutoff is not None and not (isinstance(cutoff, Real) and 0 < cutoff < np.inf):
            raise InputError(f"{name}'s cutoff must be a positive length in Å, not {cutoff!r}.")
        if switch in ("quintic", "xplor") and not (isinstance(onset, Real) and 0 <= onset < cutoff):
            raise InputError(f"{name}'s onset must lie between 0 and the cutoff {cutoff} for the {switch} switch, not {onset!r}.")

    def atom_energies(self, system):
        d, inside = neighbor_vectors(system, self.range)
        r = jnp.sqrt(jnp.sum(d * d, axis=-1))
        i, j = handles(system)
        per_neighbor = jax.vmap(self._switched_energy, in_axes=(0, None, 0))
        energies = jax.vmap(per_neighbor)(r, i, j)
        return 0.5 * jnp.sum(jnp.where(inside, energies, 0.0), axis=1)

    def pair_stiffness(self, system) -> Float[Array, "atoms capacity dim dim"]:
        """∂²φ/∂d∂d = φ'' n nᵀ + φ'/r (1 - n nᵀ) of each listed pair [eV/Å²], n = d/r, from `system.neighbors`; pure JAX."""
        d, inside = neighbor_vectors(system, self.range)
        r = jnp.sqrt(jnp.sum(d * d, axis=-1))
        i, j = handles(system)

        def derivatives(r, i, j):
            slope = jax.grad(self._switched_energy)
            return jax.value_and_grad(slope)(r, i, j)

        slope, curvature = jax.vmap(jax.vmap(derivatives, in_axes=(0, None, 0)))(r, i, j)
        n = d / r[..., None]
        along = n[..., :, None] * n[..., None, :]
        tension = (slope / r)[..., None, None]
        stiffness = curvature[..., None, None] * along + tension * (jnp.eye(system.dim, dtype=d.dtype) - along)
        return jnp.where(inside[..., None, None], stiffness, 0.0)

    def _switched_energy(self, r, i, j):
        if self._switch == "quintic":
            return self.pair_energy(r, i, j) * quintic(r, self.onset, self.cutoff)
        if self._switch == "xplor":
            return self.pair_energy(r, i, j) * xplor(r, self.onset, self.cutoff)
        if self._switch == "shifted_force":
            edge = jnp.asarray(self.cutoff, r.dtype)
            value, slope = jax.value_and_grad(self.pair_energy)(edge, i, j)
            return self.pair_energy(r, i, j) - value - (r - edge) * slope
        return self.pair_energy(r, i, j)
