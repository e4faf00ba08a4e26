"""Values of atoms carried to their neighbours, and back: linear maps that are each other's transposes, without a scatter.

A full list names each pair from both sides, so the sum over all places that name an atom is a gather through the list of
opposite places. JAX cannot know that: the transpose of a gather is a scatter to it, many times slower on every machine.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

if TYPE_CHECKING:
    from mdsens.structures.neighbors.neighbor_list import Neighbors

IN_BOUNDS: dict[str, Any] = {"mode": "promise_in_bounds", "wrap_negative_indices": False}
"""What is true of indices in a list."""

MAX_UNROLLED_ROWS = 12
"""Rows up to which each has its own instructions; more share them, lest compilation take longer than what is compiled."""


def at_neighbors(values: Float[Array, "*lead atoms"], neighbors: "Neighbors") -> Float[Array, "*lead capacity atoms"]:
    """Each atom's neighbours' values, zero in unused places; linear in `values`, and differentiable without a scatter."""
    return _spread.bind(values, neighbors.atom, neighbors.opposite)


def from_neighbors(values: Float[Array, "*lead capacity atoms"], neighbors: "Neighbors") -> Float[Array, "*lead atoms"]:
    """For each atom the sum of the values in all places that name it: the transpose of `at_neighbors`."""
    return _collect.bind(values, neighbors.atom, neighbors.opposite)


def differences(values: Float[Array, "*lead atoms"], atom: Array) -> Float[Array, "*lead places atoms"]:
    """Each neighbour's value less the atom's own.

    Its transpose takes what changes sign with the direction in which a pair is seen, as everything does that derives from a
    sum over all pairs: then the sum over the places that name an atom is minus the sum over its own, and nothing is gathered.
    Not for functions of some pairs only.
    """
    return _difference.bind(values, atom)


def from_differences(values: Float[Array, "*lead places atoms"], atom: Array) -> Float[Array, "*lead atoms"]:
    """The transpose of `differences`: minus twice the sum over each atom's places, where values change sign with direction."""
    return _balance.bind(values, atom)


def from_both_sides(values: Float[Array, "*lead capacity atoms"], neighbors: "Neighbors") -> Float[Array, "*lead capacity atoms"]:
    """Values of pairs that are the same from both sides, as they are; what comes back to them is made the same as well.

    Before something of which each side has a part of its own, so that `differences` may be behind it.
    """
    return _pair.bind(values, neighbors.atom, neighbors.opposite)


def mean_of_sides(values: Float[Array, "*lead capacity atoms"], neighbors: "Neighbors") -> Float[Array, "*lead capacity atoms"]:
    """The mean of the values that a pair has from both sides; zero in unused places."""
    return _mean.bind(values, neighbors.atom, neighbors.opposite)


def lattice_vectors(
    columns: Float[Array, "*lead dim"], kind: Array, neighbors: "Neighbors"
) -> Float[Array, "*lead places atoms"]:
    """Components of the lattice vectors of the images in some places of a list, from columns of the cell.

    Linear in these, and differentiable without a scatter.
    """
    return _shift.bind(columns, kind, neighbors.images, neighbors.alive)


def fence(values: Any, neighbors: Any) -> Any:
    """The same values, computed once and stored.

    A compiler that fuses a cheap-looking producer into a gather computes it again for each element gathered. A branch that
    depends on data, if only to the eye, is what it does not fuse across.
    """
    return _fenced(values, neighbors.alive)


def _fenced(values: Any, alive: Array) -> Any:
    return jax.lax.cond(alive >= 0, lambda v: v, lambda v: jax.tree.map(jnp.zeros_like, v), values)


def _spread_values(values: Array, atom: Array, opposite: Array) -> Array:
    spread = lambda row: jnp.where(opposite >= 0, row.at[atom].get(**IN_BOUNDS), 0.0)  # noqa: E731
    return _by_rows(spread, values, values.shape[:-1])


def _collected_values(values: Array, atom: Array, opposite: Array) -> Array:
    place = jnp.maximum(opposite, 0)

    def collect(row: Array) -> Array:
        return jnp.sum(jnp.where(opposite >= 0, row.ravel().at[place].get(**IN_BOUNDS), 0.0), axis=0)

    return _by_rows(collect, values, values.shape[:-2])


def _differing_values(values: Array, atom: Array) -> Array:
    return _by_rows(lambda row: row.at[atom].get(**IN_BOUNDS) - row, values, values.shape[:-1])


def _same(values: Array, atom: Array, opposite: Array) -> Array:
    return values


def _mean_of_sides(values: Array, atom: Array, opposite: Array) -> Array:
    place = jnp.maximum(opposite, 0)

    def mean(row: Array) -> Array:
        return jnp.where(opposite >= 0, 0.5 * (row + row.ravel().at[place].get(**IN_BOUNDS)), 0.0)

    return _by_rows(mean, values, values.shape[:-2])


def _lattice_values(columns: Array, kind: Array, images: Array, alive: Array) -> Array:
    # A table of all images, from which one is taken for each place: cheaper than their products with the cell.
    table = sum(columns[..., k, None] * row.astype(columns.dtype) for k, row in enumerate(images))
    return _by_rows(lambda row: row.at[kind].get(**IN_BOUNDS), _fenced(table, alive), columns.shape[:-1])


def _summed_images(values: Array, kind: Array, images: Array, alive: Array) -> Array:
    image = [row.astype(values.dtype).at[kind].get(**IN_BOUNDS) for row in images]
    return jnp.stack([jnp.sum(values * one, axis=(-2, -1)) for one in image], axis=-1)


def _by_rows(function: Callable[..., Any], values: Array, lead: tuple[int, ...]) -> Array:
    """One row at a time: one gather of all rows together is many times slower on the CPU."""
    rows = values.reshape(-1, *values.shape[len(lead) :])
    images = jnp.stack([function(row) for row in rows]) if len(rows) <= MAX_UNROLLED_ROWS else jax.lax.map(function, rows)
    return images.reshape(*lead, *images.shape[1:])


def _balanced_values(values: Array, atom: Array) -> Array:
    return -2.0 * jnp.sum(values, axis=-2)


def _define(primitive: Primitive, implementation: Callable[..., Any], shape: Any, transposed: Primitive) -> None:
    primitive.def_impl(jax.jit(implementation))
    primitive.def_abstract_eval(lambda values, *lists: jax.core.ShapedArray(shape(values, *lists), values.dtype))
    mlir.register_lowering(primitive, mlir.lower_fun(implementation, multiple_results=False))
    # Linear in the values; lists have no derivative.
    ad.primitive_jvps[primitive] = lambda primals, tangents: (
        primitive.bind(*primals),
        tangents[0] if type(tangents[0]) is ad.Zero else primitive.bind(tangents[0], *primals[1:]),
    )

    def transpose(cotangent: Any, values: Array, *lists: Any) -> Any:
        nothing = [None] * len(lists)
        if type(cotangent) is ad.Zero:
            return ad.Zero(values.aval), *nothing
        return transposed.bind(cotangent, *lists), *nothing

    ad.primitive_transposes[primitive] = transpose

    def batch(arguments: Any, axes: Any) -> Any:
        values, *lists = arguments
        if all(axis is None for axis in axes[1:]):
            return primitive.bind(jnp.moveaxis(values, axes[0], 0), *lists), 0
        # Each member has a list of its own: here JAX's transposes have to do.
        return jax.vmap(implementation, in_axes=axes)(*arguments), 0

    batching.primitive_batchers[primitive] = batch


def _at_places(values: Array, atom: Array, *_: Any) -> tuple[int, ...]:
    return (*values.shape[:-1], *atom.shape)


def _as_it_is(values: Array, *_: Any) -> tuple[int, ...]:
    return values.shape


def _at_atoms(values: Array, atom: Array, *_: Any) -> tuple[int, ...]:
    return (*values.shape[:-2], atom.shape[-1])


def _in_columns(values: Array, kind: Array, images: Array, alive: Array) -> tuple[int, ...]:
    return (*values.shape[:-2], images.shape[0])


_spread, _collect = Primitive("mdsens_at_neighbors"), Primitive("mdsens_from_neighbors")
_define(_spread, _spread_values, _at_places, _collect)
_define(_collect, _collected_values, _at_atoms, _spread)
_difference, _balance = Primitive("mdsens_differences"), Primitive("mdsens_differences_transposed")
_define(_difference, _differing_values, _at_places, _balance)
_define(_balance, _balanced_values, _at_atoms, _difference)
_shift, _virial = Primitive("mdsens_lattice_vectors"), Primitive("mdsens_lattice_vectors_transposed")
_define(_shift, _lattice_values, _at_places, _virial)
_define(_virial, _summed_images, _in_columns, _shift)
_pair, _mean = Primitive("mdsens_from_both_sides"), Primitive("mdsens_from_both_sides_transposed")
_define(_pair, _same, _as_it_is, _mean)
_define(_mean, _mean_of_sides, _as_it_is, _mean)
