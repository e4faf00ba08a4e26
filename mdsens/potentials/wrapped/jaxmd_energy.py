"""`JaxMD`: an energy function of jax-md as a potential."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mdsens.common.errors import InputError
from mdsens.potentials.species import static
from mdsens.potentials.wrapped.base import WrappedEnergy
from mdsens.structures.neighbors.preparation import Preparation
from mdsens.structures.system import System


def JaxMD(energy_fn: Callable[..., Any], *, neighbor_fn: Any = None, **values: Any) -> "JaxMDEnergy":
    """Wrap a jax-md energy as it is, `ms.JaxMD(energy_fn, sigma=1.0)`; its keyword parameters become the potential's.

    Args:
        energy_fn: `energy_fn(R, **values)`, or `energy_fn(R, neighbor=list, **values)` with `neighbor_fn`. It carries its
            own geometry (jax-md's displacement function, for real-space positions); of the system's cell mdsens
            knows nothing more than that positions are wrapped into it before jax-md's cell lists see them. Numbers that
            were given to jax-md and not here may be rounded to 32 bits by it.
        neighbor_fn: jax-md's neighbour-list functions, if the energy wants a list.
        values: the parameters, numbers or arrays that `energy_fn` takes by keyword: `sigma=...`, `epsilon=...`.

    Raises:
        InputError: `energy_fn` is no function, or a value is no number.

    S. S. Schoenholz, E. D. Cubuk, NeurIPS 33 (2020).
    """
    if not callable(energy_fn):
        raise InputError(
            "JaxMD wants an energy function; jax-md's *_neighbor_list functions return (neighbor_fn, energy_fn): "
            "give JaxMD(energy_fn, neighbor_fn=neighbor_fn, ...)."
        )
    return JaxMDEnergy(values, energy_fn, neighbor_fn)


class JaxMDEnergy(WrappedEnergy):
    """A jax-md energy as a potential, built by `JaxMD`.

    There is one energy for the whole system (per-atom energies are equal shares) and no stress, since the cell is hidden in
    the displacement function.
    """

    energy_fn: Callable[..., Any] = static()
    neighbor_fn: Any = static()

    def check(self, system: System) -> None:
        if self.dtype is not None and self.dtype != system.positions.dtype:
            raise InputError(f"The potential is {self.dtype} and the system {system.positions.dtype}.")

    def find_neighbors(self, system: System, *, skin: float | None = None) -> Preparation:
        if self.neighbor_fn is None:
            return AllPairs()
        cell = system.cell if all(system.pbc) else None
        listed = self.neighbor_fn.allocate(_wrap(system.positions, cell))
        if bool(listed.cell_size_too_small) or bool(listed.malformed_box):
            raise InputError("jax-md refuses this box for its neighbour list: its cell list is too coarse or the box malformed.")
        return JaxMDNeighbors(listed, cell)

    def atom_energies(self, system: System) -> Float[Array, " atoms"]:
        neighbors = system.neighbors
        if isinstance(neighbors, JaxMDNeighbors):
            listed = neighbors.updated(system.positions)
            energy = self.energy_fn(_wrap(system.positions, neighbors.cell), neighbor=listed, **self.values)
            energy = jnp.where(listed.did_buffer_overflow, jnp.nan, energy)
        else:
            energy = self.energy_fn(system.positions, **self.values)
        return jnp.full(len(system), energy / len(system))

    def check_strain(self, system: System) -> None:
        raise InputError("A wrapped jax-md energy hides its cell, so mdsens cannot strain it: use one of mdsens's own.")


class AllPairs(Preparation):
    """No list, for an energy that looks at all pairs itself."""

    @property
    def hides_cell(self) -> bool:
        return True


class JaxMDNeighbors(AllPairs):
    """A jax-md list, made for the energy's own range and updated by jax-md's own rule wherever it is used.

    Attributes:
        listed: jax-md's list; the only thing that can go wrong silently is its overflow.
        cell: the periodic cell, None without one.
    """

    listed: Any
    cell: Float[Array, "dim dim"] | None

    def updated(self, positions: Float[Array, "atoms dim"]) -> Any:
        """Return jax-md's list at these positions."""
        return self.listed.update(jax.lax.stop_gradient(_wrap(positions, self.cell)))

    def is_stale(self, positions: Float[Array, "atoms dim"], interaction_range: Any) -> Bool[Array, ""]:
        return self.updated(positions).did_buffer_overflow.astype(bool)


def _wrap(positions: Array, cell: Array | None) -> Array:
    """Return positions inside the cell, where jax-md's cell lists want them."""
    return positions if cell is None else positions - jnp.floor(positions @ jnp.linalg.inv(cell)) @ cell
