"""The Hessian of an equilibrium as a matrix, by NumPy's algebra of the stored second derivatives of its atoms' energies [host].

An energy sees the vectors d between atoms only, which are linear in positions and strain: d = (x_k - x_i) F(s). So the columns
of the strain follow from the same second derivatives, and from the forces that turn with it.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.sparse
from jaxtyping import Array, Float, Inexact

from mdsens.common.modules import with_fields
from mdsens.mechanics.evaluation import deformation_at, place
from mdsens.mechanics.landscape import LandscapeLike
from mdsens.mechanics.programs import energy_and_slopes, second_derivatives
from mdsens.mechanics.unknown import CellFreedom, Reference, Unknown
from mdsens.potentials.forms.stored_stiffness import (
    EmbeddedStiffness,
    LocalStiffness,
    PairStiffness,
    SiteStiffness,
    terms_of,
)
from mdsens.structures.neighbors.neighbor_list import Neighbors
from mdsens.structures.system import System

Bonds = Inexact[np.ndarray, "dim capacity atoms"]


class Listed(NamedTuple):
    """Stored second derivatives, with the list that they belong to."""

    stiffness: LocalStiffness
    neighbors: Neighbors


class Assembly(NamedTuple):
    """A Hessian as a matrix.

    Attributes:
        matrix: `(n, n)`, its rows zero for held components.
        stored: what it was made of.
    """

    matrix: scipy.sparse.csr_array
    stored: Listed


def assemble(z: Unknown | Array, landscape: LandscapeLike) -> Assembly:
    """Return ∂F/∂z at z in the order of z raveled.

    The load must be a pressure alone, the potential must store its second derivatives, and no constraint have a multiplier.
    """
    reference, potential = landscape.reference, landscape.potential
    system = place(z, reference)
    stored = Listed(*second_derivatives(system, potential))
    slope = None if reference.freedom is None else energy_and_slopes(system, potential, deforms=True).positions
    return Assembly(assembled(z, reference, system, stored, slope), stored)


def assembled(
    z: Unknown | Array, reference: Reference, system: System, stored: Listed, slope: Float[np.ndarray, "atoms dim"] | None
) -> scipy.sparse.csr_array:
    """Return ∂F/∂z at z from stored second derivatives.

    Args:
        system: the structure at z.
        slope: ∂U/∂x there; only a free cell needs it.
    """
    freedom = reference.freedom
    matrix = _among_positions(list(terms_of(*stored)), system)
    moving = ~np.asarray(reference.held).ravel()
    if freedom is not None:
        assert slope is not None
        turn = scipy.sparse.kron(scipy.sparse.eye_array(len(system)), deformation_at(z, freedom), format="csr")
        columns, corner = (scipy.sparse.csr_array(part) for part in strain_columns(z, reference, system, stored, slope))
        matrix = scipy.sparse.block_array([[turn @ matrix @ turn.T, columns.T], [columns, corner]], format="csr")
        moving = np.concatenate([moving, np.ones(len(freedom.directions), bool)])
    return (scipy.sparse.diags_array(moving.astype(float)) @ matrix).tocsr()


def with_strain(
    matrix: Float[np.ndarray, "n n"], z: Unknown | Array, reference: Reference, system: System, stored: Listed, slope: Any
) -> Float[np.ndarray, "m m"]:
    """Return ∂F/∂z as a dense matrix, from that among positions, as `assembled` does; rows are zero where held."""
    size, freedom, held = system.positions.size, reference.freedom, np.asarray(reference.held).ravel()
    if freedom is not None:
        n, deformation = len(held) // system.dim, deformation_at(z, freedom)
        blocks = matrix.reshape(n, system.dim, n, system.dim)
        matrix = np.einsum("ab,ibjc,dc->iajd", deformation, blocks, deformation, optimize=True).reshape(size, size)
        strained, corner = strain_columns(z, reference, system, stored, slope)
        matrix = np.block([[matrix, strained.T], [strained, corner]])
    if held.any():
        matrix[:size][held] = 0.0
    return matrix


def dense_blocks(stored: Listed) -> Float[np.ndarray, "k n n"]:
    """Return ∂²U/∂x∂x of several structures as dense matrices.

    Args:
        stored: the second derivatives `(k, ..., atoms)` and lists `(k, capacity, atoms)` of structures of one shape.
    """
    count, _, n = np.shape(stored.neighbors.atom)
    matrices: Any = 0.0
    for stiffness, neighbors in terms_of(*_side_by_side(stored)):
        rows, columns, values = _entries(stiffness, neighbors)
        if isinstance(stiffness, EmbeddedStiffness):
            slopes = _density_slopes(stiffness, neighbors)
            more = (slopes.T @ (scipy.sparse.diags_array(np.asarray(stiffness.weight)) @ slopes)).tocoo()
            rows, columns, values = (
                np.concatenate(both) for both in ((rows, more.coords[0]), (columns, more.coords[1]), (values, more.data))
            )
        size = len(_components(stiffness)) * n
        where = rows.astype(np.int64) * size + columns % size
        matrices = matrices + np.bincount(where, values, count * size * size).reshape(count, size, size)
    return matrices  # type: ignore[no-any-return]


def _components(stiffness: LocalStiffness) -> np.ndarray:
    blocks = stiffness.blocks if isinstance(stiffness, SiteStiffness) else _pairs(stiffness).direction
    return np.asarray(blocks[0] if isinstance(stiffness, SiteStiffness) else blocks)


def _side_by_side(stored: Listed) -> Listed:
    """Return several structures as one of which no part sees another."""

    def joined(leaf: np.ndarray) -> np.ndarray:
        moved = np.moveaxis(leaf, 0, -2)
        return moved.reshape(*moved.shape[:-2], -1)

    def listed(neighbors: Neighbors) -> Neighbors:
        atom = np.asarray(neighbors.atom)
        atom = atom + np.arange(len(atom), dtype=atom.dtype)[:, None, None] * atom.dtype.type(atom.shape[2])
        shorter = tuple(other and listed(other) for other in neighbors.shorter)
        return with_fields(neighbors, atom=joined(atom), opposite=joined(np.asarray(neighbors.opposite)), shorter=shorter)

    return Listed(jax.tree.map(joined, stored.stiffness), listed(stored.neighbors))


def strain_columns(
    z: Unknown | Array, reference: Reference, system: System, stored: Listed, slope: Float[np.ndarray, "atoms dim"]
) -> tuple[Float[np.ndarray, "m n"], Float[np.ndarray, "m m"]]:
    """Return the derivatives of F in the strain, `(of positions (m, N dim), of the strain itself (m, m))`; as `assembled`."""
    freedom = reference.freedom
    assert freedom is not None
    deformation = deformation_at(z, freedom)
    columns, strains = _of_strain(list(terms_of(*stored)), system, freedom, deformation, slope)
    return columns, strains + float(freedom.pressure) * _second_derivatives_of_volume(reference, deformation)


def _among_positions(terms: list[Any], system: System) -> scipy.sparse.csr_array:
    size = system.positions.size
    rows: list[np.ndarray] = []
    columns: list[np.ndarray] = []
    values: list[np.ndarray] = []
    more = scipy.sparse.csr_array((size, size))
    for stiffness, neighbors in terms:
        for kept, new in zip((rows, columns, values), _entries(stiffness, neighbors), strict=True):
            kept.append(new)
        if isinstance(stiffness, EmbeddedStiffness):
            slopes = _density_slopes(stiffness, neighbors)
            more = more + slopes.T @ (scipy.sparse.diags_array(np.asarray(stiffness.weight)) @ slopes)
    where = np.concatenate(rows), np.concatenate(columns)
    return scipy.sparse.coo_array((np.concatenate(values), where), shape=(size, size)).tocsr() + more


def _entries(stiffness: LocalStiffness, neighbors: Neighbors) -> tuple[np.ndarray, ...]:
    """Return `(rows, columns, values)`, which add up; without what a function of the density adds."""
    if isinstance(stiffness, SiteStiffness):
        return _site_entries(np.asarray(stiffness.blocks), neighbors)
    return _pair_entries(np.asarray(_pairs(stiffness).blocks()), neighbors)


def _pairs(stiffness: LocalStiffness) -> PairStiffness:
    pairs = stiffness.pairs if isinstance(stiffness, EmbeddedStiffness) else stiffness
    assert isinstance(pairs, PairStiffness)
    return pairs


def _site_entries(blocks: Float[np.ndarray, "capacity dim capacity dim atoms"], neighbors: Neighbors) -> tuple[np.ndarray, ...]:
    """Return `(rows, columns, values)` of sites; moving a centre moves all its neighbours the other way."""
    dim, n = blocks.shape[1], blocks.shape[-1]
    used = np.asarray(neighbors.used)
    deepest = int(np.flatnonzero(used.any(axis=1)).max(initial=-1)) + 1
    blocks, atom, used = blocks[:deepest, :, :deepest], np.asarray(neighbors.atom)[:deepest], used[:deepest]
    blocks = np.concatenate([-blocks.sum(axis=0, keepdims=True), blocks], axis=0)
    blocks = np.concatenate([-blocks.sum(axis=2, keepdims=True), blocks], axis=2)
    atom = np.concatenate([np.arange(n, dtype=np.int64)[None], atom])
    component = dim * atom[:, None] + np.arange(dim)[:, None]
    rows = np.broadcast_to(component[:, :, None, None], blocks.shape)
    columns = np.broadcast_to(component, blocks.shape)
    listed = np.concatenate([np.ones((1, n), bool), used])
    acting = np.broadcast_to((listed[:, None] & listed)[:, None, :, None], blocks.shape)
    return rows[acting], columns[acting], blocks[acting]


def _pair_entries(blocks: Float[np.ndarray, "dim dim capacity atoms"], neighbors: Neighbors) -> tuple[np.ndarray, ...]:
    """Return `(rows, columns, values)` of pairs, of whose stiffness each side has a half."""
    dim, n = len(blocks), blocks.shape[-1]
    used = np.asarray(neighbors.used)
    place, i = np.nonzero(used)
    pairs = 2.0 * np.moveaxis(blocks[:, :, place, i], -1, 0)
    whole = 2.0 * np.moveaxis(blocks.sum(axis=2), -1, 0)
    first, second = np.concatenate([np.arange(n), i]), np.concatenate([np.arange(n), np.asarray(neighbors.atom)[place, i]])
    values = np.concatenate([whole, -pairs])
    rows = np.broadcast_to(dim * first[:, None, None] + np.arange(dim)[:, None], values.shape)
    columns = np.broadcast_to(dim * second[:, None, None] + np.arange(dim), values.shape)
    return rows.ravel(), columns.ravel(), values.ravel()


def _density_slopes(stiffness: EmbeddedStiffness, neighbors: Neighbors) -> scipy.sparse.csr_array:
    """Return ∂ρ/∂x, sparse `(N, N dim)`."""
    vectors = np.asarray(stiffness.slope) * np.asarray(stiffness.pairs.direction)
    dim, n = len(vectors), vectors.shape[-1]
    place, i = np.nonzero(np.asarray(neighbors.used))
    values = np.concatenate([-vectors.sum(axis=1).T, vectors[:, place, i].T])
    atom = np.concatenate([np.arange(n), np.asarray(neighbors.atom)[place, i]])
    rows = np.broadcast_to(np.concatenate([np.arange(n), i])[:, None], values.shape)
    columns = dim * atom[:, None] + np.arange(dim)
    return scipy.sparse.coo_array((values.ravel(), (rows.ravel(), columns.ravel())), shape=(n, n * dim)).tocsr()


def _of_strain(
    terms: list[Any], system: System, freedom: CellFreedom, deformation: np.ndarray, slope: Float[np.ndarray, "atoms dim"]
) -> tuple[np.ndarray, np.ndarray]:
    """Return `(∂F/∂strain of positions (m, N dim), that of the energy's strain slopes (m, m))`."""
    directions, length = np.asarray(freedom.directions), float(freedom.length)
    columns = np.einsum("ia,kab->kib", slope, directions) / length
    strains = np.zeros((len(directions), len(directions)))
    inverse = np.linalg.inv(deformation)
    for stiffness, neighbors in terms:
        d = bond_vectors(np.asarray(system.positions), None if system.cell is None else np.asarray(system.cell), neighbors)
        moved = [np.einsum("cki,cd->dki", d, inverse @ direction) / length for direction in directions]
        answers = [np.asarray(stiffness.response(bonds)) for bonds in moved]
        strains += [[np.vdot(bonds, answer) for answer in answers] for bonds in moved]
        columns += np.stack([onto_atoms(answer, neighbors) for answer in answers]) @ deformation.T
    return columns.reshape(len(directions), -1), strains


def bond_vectors(positions: np.ndarray, cell: np.ndarray | None, neighbors: Neighbors) -> Bonds:
    """Return the vectors from atoms to their neighbours, or their changes by those of atoms and cell; zero in unused places."""
    x, atom = positions.T, np.asarray(neighbors.atom)
    d = x[:, atom] - x[:, None]
    if cell is not None:
        d = d + (cell.T @ np.asarray(neighbors.images))[:, np.asarray(neighbors.kind)]
    return np.where(np.asarray(neighbors.used), d, 0.0)


def onto_atoms(bonds: Bonds, neighbors: Neighbors) -> Float[np.ndarray, "atoms dim"]:
    """Return the slopes of atoms' positions from those of the vectors between them."""
    place, i = np.nonzero(np.asarray(neighbors.used))
    image = -bonds.sum(axis=1).T
    atom = np.asarray(neighbors.atom)[place, i]
    for component, values in zip(image.T, bonds[:, place, i], strict=True):
        component += np.bincount(atom, values, minlength=len(image))
    return image


def _second_derivatives_of_volume(reference: Reference, deformation: np.ndarray) -> np.ndarray:
    freedom = reference.freedom
    assert freedom is not None
    turned = np.linalg.inv(deformation) @ np.asarray(freedom.directions) / float(freedom.length)
    traces = np.trace(turned, axis1=1, axis2=2)
    volume = abs(np.linalg.det(np.asarray(reference.system.cell))) * np.linalg.det(deformation)
    return volume * (np.outer(traces, traces) - np.einsum("kab,lba->kl", turned, turned))
