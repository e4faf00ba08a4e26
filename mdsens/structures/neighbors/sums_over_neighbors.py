"""Linear maps of values from atoms to their neighbours and back, each other's transposes, without a scatter.

A full list names each pair from both sides, so the sum over all places that name an atom is a gather through the list of
opposite places. JAX cannot know that: the transpose of a gather is a scatter to it, many times slower on every machine.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

if TYPE_CHECKING:
    from mdsens.structures.neighbors.neighbor_list import Neighbors


class HasAlive(Protocol):
    """An object with a number that compilers do not know, such as a list of neighbours."""

    @property
    def alive(self) -> Array: ...


Values = TypeVar("Values")
"""An array, or a tree of them."""

IN_BOUNDS: dict[str, Any] = {"mode": "promise_in_bounds", "wrap_negative_indices": False}
"""Options of a gather by indices of a list, which are never out of bounds."""

MAX_UNROLLED_ROWS = 12
"""Rows up to which each has its own instructions; more share them, lest compilation take longer than what is compiled."""


def at_neighbors(values: Float[Array, "*lead atoms"], neighbors: "Neighbors") -> Float[Array, "*lead capacity atoms"]:
    """Return the values of each atom's neighbours, zero in unused places; linear, and differentiable without a scatter."""
    return _spread.bind(values, neighbors.atom, neighbors.opposite)


def from_neighbors(values: Float[Array, "*lead capacity atoms"], neighbors: "Neighbors") -> Float[Array, "*lead atoms"]:
    """Sum, for each atom, the values in all places that name it: the transpose of `at_neighbors`."""
    return _collect.bind(values, neighbors.atom, neighbors.opposite)


def differences(values: Float[Array, "*lead atoms"], atom: Array) -> Float[Array, "*lead places atoms"]:
    """Return each neighbour's value less the atom's own.

    The transpose assumes values that change sign with the direction of a pair, as every derivative of a sum over all pairs
    does: then the sum over the places that name an atom is minus the sum over its own, and nothing is gathered. So it is not
    for functions of some pairs only.
    """
    return _difference.bind(values, atom)


def from_differences(values: Float[Array, "*lead places atoms"], atom: Array) -> Float[Array, "*lead atoms"]:
    """Apply the transpose of `differences`: minus twice the sum over each atom's places, for values that change sign."""
    return _balance.bind(values, atom)


def from_both_sides(values: Float[Array, "*lead capacity atoms"], neighbors: "Neighbors") -> Float[Array, "*lead capacity atoms"]:
    """Return values of pairs, which are the same from both sides, as they are; make their cotangent the same too.

    It stands before a function of which each side has a part of its own, so that `differences` may stand behind it.
    """
    return _pair.bind(values, neighbors.atom, neighbors.opposite)


def mean_of_sides(values: Float[Array, "*lead capacity atoms"], neighbors: "Neighbors") -> Float[Array, "*lead capacity atoms"]:
    """Return the mean of the values that a pair has from both sides; zero in unused places."""
    return _mean.bind(values, neighbors.atom, neighbors.opposite)


def sum_over_atoms(values: Float[Array, " atoms"], neighbors: Any) -> Float[Array, ""]:
    """Return the sum of values of atoms, without those that only fill up a structure."""
    count = getattr(neighbors, "count", None)
    return jnp.sum(values if count is None else jnp.where(jnp.arange(values.size) < count, values, 0.0))


def lattice_vectors(
    columns: Float[Array, "*lead dim"], kind: Array, neighbors: "Neighbors"
) -> Float[Array, "*lead places atoms"]:
    """Return components of the lattice vectors of the images in some places of a list, from columns of the cell.

    It is linear in these, and differentiable without a scatter.
    """
    return _shift.bind(columns, kind, neighbors.images, neighbors.alive)


def fence(values: Values, neighbors: HasAlive) -> Values:
    """Return the values, computed once and stored.

    A compiler that fuses a cheap-looking producer into a gather computes it again for each element gathered. A branch that
    depends on data, if only to the eye, is what it does not fuse across.
    """
    return _fenced(values, neighbors.alive)


def _fenced(values: Values, alive: Array) -> Values:
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
    columns = [row.astype(values.dtype).at[kind].get(**IN_BOUNDS) for row in images]
    return jnp.stack([jnp.sum(values * image, axis=(-2, -1)) for image in columns], axis=-1)


def _by_rows(function: Callable[..., Any], values: Array, lead: tuple[int, ...]) -> Array:
    """Apply a function to one row at a time: one gather of all rows together is many times slower on the CPU."""
    rows = values.reshape(-1, *values.shape[len(lead) :])
    images = jnp.stack([function(row) for row in rows]) if len(rows) <= MAX_UNROLLED_ROWS else jax.lax.map(function, rows)
    return images.reshape(*lead, *images.shape[1:])


def _define(
    primitive: Primitive, implementation: Callable[..., Any], shape: Callable[..., tuple[int, ...]], transposed: Primitive
) -> None:
    """Define a linear map of its first argument, by its values, their shape, and the primitive that is its transpose."""
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
        # Each member has a list of its own: JAX's own transposes serve here.
        return jax.vmap(implementation, in_axes=axes)(*arguments), 0

    batching.primitive_batchers[primitive] = batch


SHAPES: dict[str, Callable[..., tuple[int, ...]]] = {
    "places": lambda values, atom, *_: (*values.shape[:-1], *atom.shape),
    "atoms": lambda values, atom, *_: (*values.shape[:-2], atom.shape[-1]),
    "columns": lambda values, kind, images, alive: (*values.shape[:-2], images.shape[0]),
    "values": lambda values, *_: values.shape,
}
"""Shapes of results by what they are for."""

_spread, _collect = Primitive("mdsens_at_neighbors"), Primitive("mdsens_from_neighbors")
_define(_spread, _spread_values, SHAPES["places"], _collect)
_define(_collect, _collected_values, SHAPES["atoms"], _spread)
_difference, _balance = Primitive("mdsens_differences"), Primitive("mdsens_differences_transposed")
_define(_difference, _differing_values, SHAPES["places"], _balance)
_define(_balance, lambda values, atom: -2.0 * jnp.sum(values, axis=-2), SHAPES["atoms"], _difference)
_shift, _virial = Primitive("mdsens_lattice_vectors"), Primitive("mdsens_lattice_vectors_transposed")
_define(_shift, _lattice_values, SHAPES["places"], _virial)
_define(_virial, _summed_images, SHAPES["columns"], _shift)
_pair, _mean = Primitive("mdsens_from_both_sides"), Primitive("mdsens_from_both_sides_transposed")
_define(_pair, lambda values, *_: values, SHAPES["values"], _mean)
_define(_mean, _mean_of_sides, SHAPES["values"], _mean)
