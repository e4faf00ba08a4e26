"""`Ewald`: the energy of fixed point charges in a crystal, summed over all images."""

import dataclasses
import itertools
import math
from numbers import Real
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erfc
from jaxtyping import Array, Float, Int

from mdsens.common.errors import InputError
from mdsens.common.units import COULOMB
from mdsens.potentials.base import Potential
from mdsens.potentials.electrostatics.coulomb import check_charges
from mdsens.potentials.forms.neighbor_vectors import bond_vectors, handles, map_pairs
from mdsens.potentials.forms.stored_stiffness import PairStiffness, pair_stiffness
from mdsens.potentials.parameters import PerAtom
from mdsens.potentials.species import Atom, static
from mdsens.structures.neighbors.neighbor_list import Neighbors
from mdsens.structures.system import System, is_concrete

WAVES = 64
"""Waves in a block; lists of waves consist of whole blocks."""

STORAGE_LIMIT = 2**20
"""Number of phases that are stored all at once; more are computed block by block."""

NET_CHARGE = 1e-8
"""Net charge per atom [e] above which a cell is not neutral."""

MARGIN = 0.05
"""Share by which the sphere of waves is larger than it must be, for cells that strain until the next list."""


class Ewald(Potential):
    """U = k [½ Σ q_i q_j erfc(α r)/r + (2π/V) Σ_{G≠0} e^(-G²/4α²)/G² |Σ_i q_i e^(iG·x_i)|² - (α/√π) Σ q_i² - π Q²/(2Vα²)].

    k = 1/(4π ε₀); the first sum runs over all pairs nearer than the cutoff r_c, images included, the second over the
    reciprocal lattice; Q = Σ q_i. The surroundings conduct (no dipole term). α = s/r_c and |G| < 2αs, with s such that
    erfc(s) is the accuracy: what is left out on both sides. Any cell that is periodic in three directions.

    Forces reach everywhere: no matrix is assembled, linear systems are solved by products.

    Args:
        charge: q [e]: a number, `{"Na": 1.0, "Cl": -1.0}`, or one value per atom, shape `(N,)`.
        cutoff: r_c [Å], static. It moves work between the sums and changes no energy.
        accuracy: the share of a pair's energy that is left out, static.
        background: whether to accept a net charge Q, which a uniform background makes neutral (the last term); static.
        coulomb: k [eV Å/e²], static.

    P. P. Ewald, Ann. Phys. 369, 253 (1921), doi:10.1002/andp.19213690304; the background: M. Leslie, M. J. Gillan, J. Phys. C
    18, 973 (1985), doi:10.1088/0022-3719/18/5/005.
    """

    units: ClassVar = {"charge": "e"}
    local: ClassVar = False

    charge: PerAtom
    cutoff: float = static(10.0)
    accuracy: float = static(1e-13)
    background: bool = static(False)
    coulomb: float = static(COULOMB)

    def __check_init__(self) -> None:
        check_charges(self)
        if not (isinstance(self.accuracy, Real) and 1e-16 <= self.accuracy <= 1e-2):
            raise InputError(f"Ewald's accuracy must be a number between 1e-16 and 1e-2, not {self.accuracy!r}.")

    @property
    def smoothness(self) -> float:
        return np.inf  # what is cut off is below the accuracy

    @property
    def _reach(self) -> float:
        """The number s at which erfc(s) is the accuracy."""
        # Imported here: every session would pay for it.
        from scipy.special import erfcinv

        return float(erfcinv(self.accuracy))

    @property
    def alpha(self) -> float:
        """The damping α [1/Å]."""
        return self._reach / self.cutoff

    def check(self, system: System) -> None:
        super().check(system)
        if system.dim != 3 or not all(system.pbc):
            raise InputError(
                "Ewald sums over a crystal, periodic in three directions, and this system is not: use Coulomb(...), or give a "
                "slab or cluster a large cell with pbc=True."
            )
        if not self.background and is_concrete(self.charge, system.species):
            with jax.ensure_compile_time_eval():
                net = float(jnp.sum(self.charges(system)))
            if abs(net) > NET_CHARGE * len(system):
                raise InputError(
                    f"The cell has a net charge of {net:.3g} e, whose energy is infinite in a crystal: correct the charges, or "
                    "take a uniform background with Ewald(..., background=True)."
                )

    def find_neighbors(self, system: System, *, skin: float | None = None) -> "NeighborsAndWaves":
        listed = super().find_neighbors(system, skin=skin)
        assert isinstance(listed, Neighbors)
        parts = {field.name: getattr(listed, field.name) for field in dataclasses.fields(listed)}
        # The waves of a phonon are around its own wave vector, which is somewhere between eight lattice vectors.
        corners = np.array(list(itertools.product((-math.pi, math.pi), repeat=3))) @ np.linalg.inv(np.asarray(system.cell)).T
        largest = (1.0 + MARGIN) * 2.0 * self.alpha * self._reach + np.linalg.norm(corners, axis=1).max()
        return NeighborsAndWaves(**parts, waves=jnp.asarray(_waves(np.asarray(system.cell), largest)))

    def atom_energies(self, system: System) -> Float[Array, " atoms"]:
        charges = self.charges(system)
        near = 0.5 * jnp.sum(self._pairs(system), axis=0)
        own = -self.alpha / math.sqrt(math.pi) * charges**2
        net = jnp.sum(charges)
        spread = -0.5 * math.pi / self.alpha**2 * charges * net / reciprocal_rows(system.cell)[1]
        return self.coulomb * (near + own + spread + charges * self._far_potentials(charges, system))

    def charges(self, system: System) -> Float[Array, " atoms"]:
        """Return the charge q of each atom [e]."""
        n = len(system)
        atom = handles(system, jnp.arange(n))[0]
        return jnp.broadcast_to(self.one(self.charge, atom), (n,)).astype(system.positions.dtype)

    def _pairs(self, system: System) -> Array:
        """Return q_i q_j erfc(α r)/r of all listed pairs."""
        d, inside = bond_vectors(system, self.range)

        def energy(r: Float[Array, ""], i: Atom, j: Atom) -> Array:
            return self.one(self.charge, i) * self.one(self.charge, j) * erfc(self.alpha * r) / r

        return jnp.where(inside, map_pairs(energy, jnp.sqrt(jnp.sum(d * d, axis=0)), *handles(system)), 0.0)

    def near_stiffness(self, system: System) -> PairStiffness:
        """Return the second derivatives of the listed pairs' energies, half a pair's at each atom, without those of the waves."""
        d, inside = bond_vectors(system, self.range)
        r = jnp.sqrt(jnp.sum(d * d, axis=0))

        def energy(r: Float[Array, ""], i: Atom, j: Atom) -> Array:
            return 0.5 * self.coulomb * self.one(self.charge, i) * self.one(self.charge, j) * erfc(self.alpha * r) / r

        slope, curvature = map_pairs(jax.value_and_grad(jax.grad(energy)), r, *handles(system))
        return pair_stiffness(d, r, *(jnp.where(inside, value, 0.0) for value in (slope, curvature)))

    def _far_potentials(self, charges: Float[Array, " atoms"], system: System) -> Array:
        """Return half the potential of the reciprocal sum at each atom, in units of k."""
        reciprocal, volume = reciprocal_rows(system.cell)
        fractions = system.positions @ reciprocal.T

        def of_block(waves: Array) -> Array:
            squares = (2.0 * math.pi) ** 2 * jnp.sum((waves @ reciprocal) ** 2, axis=1)
            real = squares > 0.0  # places that are not used hold no wave
            squares = jnp.where(real, squares, 1.0)
            # Each wave stands for its opposite too.
            weights = jnp.where(real, 4.0 * math.pi / volume * jnp.exp(-squares / (4.0 * self.alpha**2)) / squares, 0.0)
            phases = 2.0 * math.pi * waves @ fractions.T
            cosines, sines = jnp.cos(phases), jnp.sin(phases)
            return (weights * (cosines @ charges)) @ cosines + (weights * (sines @ charges)) @ sines

        waves = waves_of(system).astype(fractions.dtype)
        if len(waves) * len(charges) <= STORAGE_LIMIT:
            return of_block(waves)
        blocks = waves.reshape(-1, WAVES, 3)
        # Evaluated again for a derivative rather than kept.
        return jnp.sum(jax.lax.map(jax.checkpoint(of_block), blocks), axis=0)


def reciprocal_rows(cell: Any) -> tuple[Array, Array]:
    """Return `(rows of the reciprocal lattice without 2π, volume)`, by products, which compile faster than a factorisation."""
    products = jnp.stack([jnp.cross(cell[1], cell[2]), jnp.cross(cell[2], cell[0]), jnp.cross(cell[0], cell[1])])
    volume = cell[0] @ products[0]
    return products / volume, volume


class NeighborsAndWaves(Neighbors):
    """A neighbour list, and the waves of the reciprocal sum.

    Attributes:
        waves: integer coordinates in the reciprocal lattice, one of each wave and its opposite; zero in unused places.
    """

    waves: Int[Array, "waves dim"] = eqx.field(kw_only=True)


def waves_of(system: System) -> Int[Array, "waves dim"]:
    """Return the waves of the reciprocal sum that were listed for a system."""
    assert isinstance(system.neighbors, NeighborsAndWaves)
    return system.neighbors.waves


def _waves(cell: np.ndarray, largest: float) -> np.ndarray:
    """Return the reciprocal lattice vectors with |G| <= largest, without their opposites, in whole blocks [host]."""
    most = np.floor(largest * np.linalg.norm(cell, axis=1) / (2.0 * math.pi)).astype(int)
    grid = np.stack(np.meshgrid(*(np.arange(-m, m + 1) for m in most), indexing="ij"), axis=-1).reshape(-1, 3)
    grid = grid[len(grid) // 2 + 1 :]
    waves = grid[np.linalg.norm(2.0 * math.pi * grid @ np.linalg.inv(cell).T, axis=1) <= largest]
    return np.pad(waves, ((0, -len(waves) % WAVES if len(waves) else WAVES), (0, 0))).astype(np.int32)
