"""Any jax-md energy as a `Potential`."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mdsens.common.errors import InputError
from mdsens.potentials.species import static
from mdsens.potentials.wrapped.base import WrappedEnergy
from mdsens.structures.system import System


def JaxMD(energy_fn: Callable[..., Any], *, neighbor_fn: Any = None, **values: Any) -> "JaxMDEnergy":
    """Wrap a jax-md energy as it is; its keyword parameters become the potential's.

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
    """A jax-md energy as a potential; built by `JaxMD`.

    `potential.sigma` reads a parameter. There is one energy for the whole system (per-atom energies are equal shares)
    and no stress, since the cell is hidden in the displacement function.
    """

    energy_fn: Callable[..., Any] = static()
    neighbor_fn: Any = static()

    def check(self, system: System) -> None:
        if self.dtype is not None and self.dtype != system.positions.dtype:
            raise InputError(f"The potential is {self.dtype} and the system {system.positions.dtype}.")

    def find_neighbors(self, system: System, *, skin: float | None = None) -> Any:
        if self.neighbor_fn is None:
            return AllPairs()
        cell = system.cell if all(system.pbc) else None
        listed = self.neighbor_fn.allocate(_wrapped(system.positions, cell))
        if bool(listed.cell_size_too_small) or bool(listed.malformed_box):
            raise InputError("jax-md refuses this box for its neighbour list: its cell list is too coarse or the box malformed.")
        return JaxMDNeighbors(listed, cell)

    def atom_energies(self, system: System) -> Float[Array, " atoms"]:
        if self.neighbor_fn is None:
            energy = self.energy_fn(system.positions, **self.values)
        else:
            listed = system.neighbors.updated(system.positions)
            positions = _wrapped(system.positions, system.neighbors.cell)
            energy = self.energy_fn(positions, neighbor=listed, **self.values)
            energy = jnp.where(listed.did_buffer_overflow, jnp.nan, energy)
        return jnp.full(len(system), energy / len(system))

    def check_strain(self, system: System) -> None:
        raise InputError("A wrapped jax-md energy hides its cell, so mdsens cannot strain it: use one of mdsens's own.")


class AllPairs(eqx.Module):
    """No list: the energy looks at all pairs itself."""

    hides_cell: ClassVar = True

    def is_stale(self, positions: Array, interaction_range: Any) -> Any:
        return jnp.asarray(False)

    def reaches(self, interaction_range: Any) -> Any:
        return True


class JaxMDNeighbors(eqx.Module):
    """A jax-md list, updated by jax-md's own rule wherever it is used; what can go wrong silently is its overflow."""

    hides_cell: ClassVar = True

    listed: Any
    cell: Any

    def updated(self, positions: Array) -> Any:
        return self.listed.update(jax.lax.stop_gradient(_wrapped(positions, self.cell)))

    def is_stale(self, positions: Array, interaction_range: Any) -> Any:
        return self.updated(positions).did_buffer_overflow.astype(bool)

    def reaches(self, interaction_range: Any) -> Any:
        return True  # jax-md's list was made for the energy's own range


def _wrapped(positions: Array, cell: Any) -> Array:
    # jax-md's cell lists want positions inside the box.
    return positions if cell is None else positions - jnp.floor(positions @ jnp.linalg.inv(cell)) @ cell
