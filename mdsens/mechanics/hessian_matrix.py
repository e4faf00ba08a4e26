"""`hessian`: the Hessian of the energy as a sparse matrix, a dense one, or an operator."""

from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from jaxtyping import Array

from mdsens.common.errors import InputError, did_you_mean
from mdsens.common.suggestions import suggest_names
from mdsens.mechanics.force_constants import coupling_numbers, couplings
from mdsens.mechanics.hessian_operator import STORED_LIMIT, stored_size
from mdsens.potentials.base import Potential, gives_stiffness, is_local, sound_stiffness, total_energy
from mdsens.potentials.forms.neighbor_vectors import pair_list
from mdsens.structures.neighbors.neighbor_list import Neighbors
from mdsens.structures.system import System, is_concrete

FORMATS = ("sparse", "dense", "operator")

ASSEMBLED_LIMIT = 5 * 10**8
"""Numbers, at most, that are listed while a matrix is assembled (4 GB)."""


@runtime_checkable
class State(Protocol):
    """A structure with its potential: an equilibrium, whose class stands above."""

    system: System
    potential: Potential


@suggest_names
def hessian(system: System | State, potential: Potential | None = None, format: str = "sparse") -> Any:
    """Return ∂²U/∂x∂x of a structure, relaxed or not, in the order x_0, y_0, z_0, x_1, ... and at a fixed cell [eV/Å²].

    Rows and columns of frozen atoms are there too, as their forces are; no constraint acts.

        eigenvalues = np.linalg.eigvalsh(ms.hessian(eq, format="dense"))

    Args:
        system: a structure, or an equilibrium: `hessian(eq)`.
        potential: not needed for an equilibrium, which has its own.
        format: `"sparse"` gives a `scipy.sparse.bsr_array` with one `(dim, dim)` block for each pair of atoms that acts on each
            other, `"dense"` an array `(N dim, N dim)`, `"operator"` a `scipy.sparse.linalg.LinearOperator` of products
            without a matrix.

    Returns:
        the matrix, symmetric to rounding.

    Raises:
        InputError: an unknown format, traced positions, a system the potential has no parameters for, an energy whose matrix
            cannot be assembled (a wrapped one, charges with long reach) or would be too large.
    """
    if format not in FORMATS:
        raise InputError(f"A Hessian has no format {format!r}.{did_you_mean(str(format), FORMATS)}")
    if isinstance(system, State):
        potential = system.potential if potential is None else potential
        system = system.system
    if not (isinstance(system, System) and isinstance(potential, Potential)):
        raise InputError(
            "A Hessian is that of a system with a potential, hessian(system, potential), or of an equilibrium, hessian(eq)."
        )
    potential.check(system)
    if not is_concrete(system.positions, system.cell, potential):
        raise InputError("A matrix cannot be assembled from traced values: call hessian() outside jit and grad.")
    # A fresh list without a skin: as few pairs as there are.
    system = system.with_neighbors(potential, skin=0.0)
    if format == "operator":
        return _operator(system, potential)
    if not is_local(potential):
        raise InputError(
            f"The energy of {type(potential).__name__} is no sum over listed neighbours, so its matrix cannot be assembled: "
            'ask for format="operator".'
        )
    if (numbers := coupling_numbers(system, potential)) > ASSEMBLED_LIMIT:
        raise InputError(
            f"Assembling this Hessian takes {8e-9 * numbers:.0f} GB, more than the {8e-9 * ASSEMBLED_LIMIT:.0f} GB allowed: "
            'ask for format="operator".'
        )
    matrix = _assembled(system, potential)
    return matrix.toarray() if format == "dense" else matrix


def _assembled(system: System, potential: Potential) -> scipy.sparse.bsr_array:
    row, column, _, block = map(np.asarray, _couplings(system, potential))
    acting = block.any(axis=(1, 2))
    n, dim = len(system), system.dim
    keys, entry = np.unique(row[acting].astype(np.int64) * n + column[acting], return_inverse=True)
    # The blocks of one pair of atoms are added up by a product with ones.
    ones = scipy.sparse.csr_array((np.ones(entry.size), entry, np.arange(entry.size + 1)), shape=(entry.size, keys.size))
    blocks = (ones.T @ block[acting].reshape(-1, dim * dim)).reshape(-1, dim, dim)
    starts = np.searchsorted(keys // n, np.arange(n + 1))
    return scipy.sparse.bsr_array((blocks, keys % n, starts), shape=(n * dim, n * dim))


def _operator(system: System, potential: Potential) -> scipy.sparse.linalg.LinearOperator:
    size, dtype = system.positions.size, system.positions.dtype
    if gives_stiffness(potential) and stored_size(system, potential) <= STORED_LIMIT:
        stiffness = _stiffness(potential, system)
        product = lambda v: _stored_product(stiffness, pair_list(system), v)  # noqa: E731
    else:
        product = lambda v: _linearised_product(system, potential, v)  # noqa: E731

    def matvec(v: np.ndarray) -> np.ndarray:
        return np.asarray(product(jnp.asarray(v, dtype).reshape(system.positions.shape))).ravel()

    return scipy.sparse.linalg.LinearOperator((size, size), matvec=matvec, rmatvec=matvec, dtype=dtype)


_couplings = eqx.filter_jit(couplings)
_stiffness = eqx.filter_jit(sound_stiffness)


@eqx.filter_jit
def _stored_product(stiffness: Any, neighbors: Neighbors, v: Array) -> Array:
    return stiffness.product(v.T, neighbors).T


@eqx.filter_jit
def _linearised_product(system: System, potential: Potential, v: Array) -> Array:
    slope = jax.grad(lambda x: total_energy(potential, system.with_positions(x)))
    return jax.jvp(slope, (system.positions,), (v,))[1]
