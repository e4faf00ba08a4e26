"""Sensitivities to hundreds of parameters, by one dense factor of the Hessian and few products for ∂F/∂θ.

A parameter of one atom acts on the forces nearby only. So parameters of atoms far from each other share a product, as columns of
a sparse Jacobian do: A. R. Curtis, M. J. D. Powell, J. K. Reid, IMA J. Appl. Math. 13, 117 (1974).
"""

import jax
import numpy as np
import scipy.linalg
import scipy.sparse
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from mdsens.derivatives.linear_response import BATCH, Response, batch_size, changes, keep_slopes
from mdsens.derivatives.selection import Selection
from mdsens.mechanics import hessian_matrix
from mdsens.mechanics.assembly import assemble
from mdsens.mechanics.factors import dense_description
from mdsens.mechanics.hessian import Hessian
from mdsens.mechanics.unknown import Unknown
from mdsens.potentials.base import Potential, is_local
from mdsens.potentials.forms.neighbor_vectors import pair_list
from mdsens.structures.neighbors.neighbor_list import Neighbors

FACTOR_LIMIT = 6000
"""Unknowns up to which a dense matrix is factorised for many right-hand sides (300 MB)."""

SHARE = 8
"""Unknowns, at most, for each right-hand side: with more, an iterative solver is quicker."""

GROUPED_SHARE = 0.5
"""Products of groups of parameters, as a share of one for each parameter, up to which they are used."""

AGREEMENT_SHARE = 1e-10
"""Difference between a product and that of the matrix from grouped products, as a share of the summands, that is rounding."""


def is_worthwhile(hessian: Hessian, count: int) -> bool:
    """Return whether a factor for all right-hand sides is quicker, and the state has one."""
    reference = hessian.reference
    if not (hessian.is_definite and reference.freedom is None):
        return False
    if hessian.potential.approximation(reference.system) is not None or not is_local(hessian.potential):
        return False
    if not isinstance(reference.system.neighbors, Neighbors) or hessian.dtype != np.float64:
        return False
    return count > BATCH and hessian.size <= min(FACTOR_LIMIT, SHARE * count)


class DenseSystems:
    """The linear systems of an equilibrium for all parameters together [host].

    Attributes:
        groups: `(k,)`, the product that each parameter shares; parameters of one group act on different atoms' forces.
        reach: `(N, N)`, sparse: the atoms on whose forces the parameters of an atom act.
        atoms: `(k,)`, the atom that each parameter belongs to, or -1: it acts on all.
    """

    def __init__(self, hessian: Hessian, selection: Selection) -> None:
        self.hessian, self.selection = hessian, selection
        active, basis = np.asarray(hessian.null_space.active), np.asarray(hessian.null_space.basis)
        self.free, self.held, self.basis = np.flatnonzero(active), np.flatnonzero(~active), basis[:, basis.any(axis=0)]
        self.count = ravel_pytree(selection.parameters)[0].size
        self.atoms = _atoms(selection.parameters, len(hessian.reference.system))
        near = _near(pair_list(hessian.reference.system))
        for reach in (near, near @ near):
            self.reach = reach
            self.groups = _group(self.atoms, reach)
            if self.groups.max() + 1 > GROUPED_SHARE * self.count:
                break
            if self._agrees():
                return
        self.atoms, self.groups = np.full(self.count, -1), np.arange(self.count)

    def outside(self, rows: np.ndarray) -> np.ndarray:
        """Remove from rows, in their place, what lies in the null space; derivatives of forces have only rounding there."""
        if self.held.size:
            rows[:, self.held] = 0.0
        if self.basis.size:
            rows -= (rows @ self.basis) @ self.basis.T
        return rows

    def matrix(self, z: Unknown | Array) -> scipy.sparse.csr_array:
        """Return A at some z, sparse."""
        if self.hessian.is_stored:
            return assemble(z, self.hessian.landscape).matrix
        return hessian_matrix.hessian(self.hessian.reference.place(z), self.hessian.potential).tocsr()

    @property
    def method(self) -> str:
        """The way the linear systems are solved, in words."""
        return dense_description(self.hessian.size)

    def response(self, weights: np.ndarray) -> Response:
        """Return the response to all parameters; see `linear_response.solutions`.

        Args:
            weights: the parameters' own sizes.

        Raises:
            LinAlgError: A is not positive to working precision.
        """
        slopes = self.slopes(self.hessian.z)
        keep_slopes(self.hessian, self.selection, slopes[:-1])
        sides = self.outside(slopes)
        matrix, free, null = self.matrix(self.hessian.z), self.free, self.basis[self.free]
        # In LAPACK's own order, each step in the place of the one before.
        between = (matrix if not self.held.size else matrix[free][:, free]).toarray().T
        stiff = np.abs(np.diag(between)).max()
        between = scipy.linalg.blas.dsyrk(stiff, null, 1.0, between, lower=True, overwrite_c=True)
        factor = scipy.linalg.cho_factor(between, lower=True, overwrite_a=True, check_finite=False)

        def solved(rows: np.ndarray) -> np.ndarray:
            """Solve in the place of rows."""
            if not self.held.size:
                return self.outside(scipy.linalg.cho_solve(factor, rows.T, overwrite_b=True, check_finite=False).T)
            rows[:, free] = scipy.linalg.cho_solve(factor, rows[:, free].T, overwrite_b=True, check_finite=False).T
            return self.outside(rows)

        def left(answers: np.ndarray, sides: np.ndarray) -> np.ndarray:
            return self.outside(answers @ matrix) + sides

        answers = solved(-sides)
        rest, sizes = left(answers, sides), _lengths(sides)
        errors = _lengths(rest)
        if (rough := errors > self.hessian.solver.tolerances(np.float64)[0] * sizes).any():
            answers[rough] -= solved(rest[rough])
            errors[rough] = _lengths(left(answers[rough], sides[rough]))
        # If a right-hand side is rounding, its residual is relative to the size of rounding.
        scales = np.maximum(sizes, self.hessian.rounding / np.append(weights, 1.0))
        residuals = np.divide(errors, scales, out=np.zeros_like(errors), where=errors > 0.0)
        return Response(answers[:-1], answers[-1], residuals[:-1], float(sizes[-1]))

    def defects(self, z: Unknown | Array, columns: np.ndarray) -> tuple[np.ndarray, float]:
        """Return `(‖A dz/dθ + ∂F/∂θ‖ of each column, ‖F‖)` at some z, outside the null space."""
        rows = self.slopes(z)
        rows[:-1] += columns @ self.matrix(z)
        sizes = _lengths(self.outside(rows))
        return sizes[:-1], float(sizes[-1])

    def slopes(self, z: Unknown | Array) -> np.ndarray:
        """Return ∂F/∂θ for each θ, and F as the last row, at some z."""
        products, rest = self._products(z, np.eye(self.groups.max() + 1)[:, self.groups])
        n, dim = len(self.hessian.reference.system), self.hessian.reference.system.dim
        b = np.zeros((self.count + 1, n, dim))
        b[-1] = rest.reshape(n, dim)
        whole, single = np.flatnonzero(self.atoms < 0), np.flatnonzero(self.atoms >= 0)
        products = products.reshape(-1, n, dim)
        b[whole] = products[self.groups[whole]]
        of, near = self.reach[self.atoms[single]].nonzero()
        b[single[of], near] = products[self.groups[single[of]], near]
        return b.reshape(-1, n * dim)

    def _agrees(self) -> bool:
        """Return whether parameters of atoms act no farther than supposed, by one product with all of them."""
        b = self.slopes(self.hessian.z)[:-1]
        direction = np.random.default_rng(0).normal(size=(1, self.count))
        product, scale = self._products(self.hessian.z, direction)[0][0], np.abs(direction[0]) @ np.abs(b)
        return bool((np.abs(direction[0] @ b - product) <= AGREEMENT_SHARE * scale + np.finfo(float).eps * scale.max()).all())

    def _products(self, z: Unknown | Array, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return `(∂F/∂θ along each direction, F)` at some z."""
        products, rest = [], None
        batch = batch_size(len(directions))
        for start in range(0, len(directions), batch):
            some = directions[start : start + batch]
            filled = np.pad(some, ((0, batch - len(some)), (0, 0)))
            product, rest = changes(self.hessian, z, self.selection, filled, None)
            products.append(product[: len(some)])
        return np.concatenate(products), np.array(rest)


def _lengths(rows: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("ij,ij->i", rows, rows))


def _atoms(parameters: Potential, n: int) -> np.ndarray:
    """Return the atom of each parameter, where its field has as many numbers as there are atoms; otherwise -1."""
    leaves = jax.tree.leaves(parameters)
    return np.concatenate([np.arange(n) if leaf.shape == (n,) else np.full(leaf.size, -1) for leaf in leaves])


def _near(neighbors: Neighbors) -> scipy.sparse.csr_array:
    """Return a sparse mask `(N, N)` of atoms that are listed neighbours, or the same."""
    used = np.asarray(neighbors.used)
    n = used.shape[1]
    pairs = np.broadcast_to(np.arange(n), used.shape)[used], np.asarray(neighbors.atom)[used]
    near = scipy.sparse.coo_array((np.ones(len(pairs[0])), pairs), shape=(n, n))
    return ((near + near.T).tocsr() + scipy.sparse.eye_array(n, format="csr")) != 0.0


def _group(atoms: np.ndarray, reach: scipy.sparse.csr_array) -> np.ndarray:
    """Return the group of each parameter: a single one, or parameters of one field that act on different atoms."""
    shared = reach @ reach.T
    color = np.full(reach.shape[0], -1)
    for atom in range(len(color)):
        taken = set(color[shared.indices[shared.indptr[atom] : shared.indptr[atom + 1]]].tolist())
        color[atom] = next(k for k in range(len(color)) if k not in taken)
    groups, count = np.empty(len(atoms), dtype=int), 0
    place = 0
    while place < len(atoms):
        if atoms[place] < 0:
            groups[place], count, place = count, count + 1, place + 1
        else:
            groups[place : place + len(color)] = count + color
            count, place = count + color.max() + 1, place + len(color)
    return groups
