"""`Hessian`: the derivative A = ∂F/∂z of an equilibrium's condition at one state, which all its derivatives ask.

It is made once, with all that depends on the state: how a product is made, the null space, the spectrum, factors where they help,
and the solver of linear systems. Motions that cost no energy are projected out
(`mdsens.mechanics.rigid_motions`).
"""

import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mdsens.common.hidden_value import HiddenValue
from mdsens.implicit import CG, GMRES, MINRES, Direct, linear_solve
from mdsens.implicit.bound import ROUNDING
from mdsens.implicit.linear import DIRECT_LIMIT
from mdsens.implicit.linear_system import LinearSolver, NullSpace
from mdsens.mechanics import hessian_operator
from mdsens.mechanics.assembly import assemble
from mdsens.mechanics.dense_system import FACTOR_MARGIN, DenseSystem
from mdsens.mechanics.factors import DenseFactor, DenseMatrix, SparseFactor, dense_factor, sparse_factor
from mdsens.mechanics.forces import gradient
from mdsens.mechanics.hessian_operator import Operator, PreconditionedOperator, StoredOperator, is_stored, stored_size
from mdsens.mechanics.landscape import Landscape
from mdsens.mechanics.null_space import known_null_space
from mdsens.mechanics.scales import spacing
from mdsens.mechanics.softest_modes import Columns, MatrixColumns, columns_at
from mdsens.mechanics.spectrum import Examination, Spectrum, examine_hessian
from mdsens.mechanics.unknown import Reference, Unknown, raveled
from mdsens.potentials.base import Approximation, Potential

OPERATOR_LIMIT = 2 * 10**7
"""Numbers, at most, in an operator that is kept with its state."""

MAX_RTOL = 1e-4
"""Loosest relative residual that is asked for where the operator is approximate."""

BATCHED_SIZE = 3000
"""Unknowns up to which linear systems are solved together; beyond, one fills the cache, and each takes its own time."""

GMRES_RESTART = 300
"""Size of GMRES's space, for stresses that are not hydrostatic."""


@dataclasses.dataclass
class Aside:
    """What belongs to a Hessian and compiled programs never see.

    Attributes:
        spectrum: its ends.
        slopes: ∂F/∂θ for all parameters, `(k, n)`; None before they are computed.
        systems: the linear systems; None before they are asked for.
    """

    spectrum: Spectrum
    slopes: np.ndarray | None = None
    systems: "LinearSystems | None" = None


class Hessian(eqx.Module):
    """The derivative A = ∂F/∂z of the condition F(z, θ) = 0 of an equilibrium, at one state.

    Attributes:
        reference: of the unknown.
        z: the unknown.
        potential: θ.
        null_space: motions that cost no energy.
        operator: v ↦ A v on flat vectors, where it is kept; None where each product is made of the potential.
        factor: r ↦ A⁻¹ r, nearly; None without.
        solver: of the linear systems.
        aside: what compiled code does not see: its spectrum, and the slopes ∂F/∂θ once they are known.
        is_stored: whether it is made of stored second derivatives, of which all that first derivatives need is algebra.
    """

    reference: Reference
    z: Unknown | Array
    potential: Potential
    null_space: NullSpace
    operator: StoredOperator | PreconditionedOperator | DenseMatrix | None
    factor: DenseFactor | SparseFactor | None
    solver: LinearSolver = eqx.field(static=True)
    aside: HiddenValue[Aside] = eqx.field(static=True)
    is_stored: bool = eqx.field(static=True)

    @property
    def spectrum(self) -> Spectrum:
        """The ends of its spectrum."""
        return self.aside.value.spectrum

    @property
    def size(self) -> int:
        """The count of numbers in the unknown."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.z))

    @property
    def dtype(self) -> np.dtype[Any]:
        """The precision of its numbers."""
        return self.reference.system.positions.dtype

    @property
    def landscape(self) -> Landscape:
        """The energy landscape that it belongs to."""
        return Landscape(self.reference, self.potential)

    def condition(self, z: Unknown | Array, potential: Potential) -> Unknown | Array:
        """Return F(z, θ); pure JAX."""
        return gradient(z, Landscape(self.reference, potential))

    def product_at(self, z: Unknown | Array, potential: Potential) -> Operator:
        """Return v ↦ ∂F/∂z v at any z and θ, made of the potential; pure JAX, differentiable in both."""
        return self._preconditioned(hessian_operator.hessian_operator(z, Landscape(self.reference, potential)))

    def product(self, z: Unknown | Array | None = None, potential: Potential | None = None) -> Operator:
        """Return v ↦ A v; an operator that is kept has no derivative in z and θ.

        Args:
            z, potential: its own, where an outer program differentiates in them.
        """
        if self.operator is not None:
            return self._preconditioned(self.operator)
        return self.product_at(self.z if z is None else z, self.potential if potential is None else potential)

    def _preconditioned(self, operator: Operator) -> Operator:
        return operator if self.factor is None else PreconditionedOperator(operator, jax.lax.stop_gradient(self.factor))

    def solve(
        self, b: Float[Array, " n"], goal: Array | None = None, *, product: Operator | None = None
    ) -> tuple[Float[Array, " n"], Array]:
        """Return `(A⁻¹ b, its relative residual)` outside the null space; pure JAX.

        Args:
            goal: ‖b - A u‖ that is good enough; None for the solver's own.
            product: what `product()` or `product_at` returned, for several right-hand sides or another state.
        """
        product = self.product() if product is None else product
        return linear_solve(product, b, solver=self.solver, atol=goal, throw=False, **self.options)

    @property
    def systems(self) -> "LinearSystems":
        """The linear systems A u = b for NumPy's right-hand sides, made once [host]."""
        aside = self.aside.value
        if aside.systems is None:
            aside.systems = LinearSystems(self)
        return aside.systems

    @property
    def options(self) -> dict[str, Any]:
        """The options of `mdsens.implicit` that describe A."""
        return {"symmetric": self.reference.symmetric, "null_space": self.null_space}

    @property
    def fail_rtol(self) -> float:
        """The relative residual beyond which a solve has failed."""
        return self.solver.tolerances(self.dtype)[1]

    def solved_by(self, solver: LinearSolver) -> "Hessian":
        """Return the Hessian with another solver and without a factor."""
        return dataclasses.replace(
            self, solver=solver, factor=None, aside=HiddenValue(Aside(self.spectrum, self.aside.value.slopes))
        )

    @property
    def method(self) -> str:
        """The way its linear systems are solved, in words."""
        if isinstance(self.factor, DenseFactor):
            return self.factor.description
        preconditioner = ""
        if self.factor is not None:
            preconditioner = self.factor.description
        elif self.reference.grid is not None and self.solver.iterative and self.is_stored:
            preconditioner = "a coarse grid"
        return f"{self.solver!r}, preconditioned by {preconditioner}" if preconditioner else repr(self.solver)

    @property
    def rounding(self) -> float:
        """The size that rounding leaves of a θ ∂F/∂θ that vanishes, by symmetry or because nothing depends on θ [eV/Å]."""
        return float(ROUNDING * jnp.finfo(self.dtype).eps) * self.spectrum.highest * spacing(self.reference.system)

    @property
    def is_definite(self) -> bool:
        """Whether it is positive outside its null space, clearly enough to be factorised."""
        return _is_definite(self.spectrum, self.reference)


class LinearSystems:
    """The linear systems A u = b of a Hessian, for rows of right-hand sides [host].

    A factor comes as near as it can, and is asked twice; other systems go to the Hessian's solver, compiled.
    """

    def __init__(self, hessian: Hessian) -> None:
        self._hessian, self._dtype = hessian, hessian.dtype
        self._active = np.asarray(hessian.null_space.active)
        basis = np.asarray(hessian.null_space.basis, float)
        self._basis = basis[:, basis.any(axis=0)]
        self._factor = None if hessian.factor is None else hessian.factor.on_host(hessian.operator)
        self._rtol = hessian.solver.tolerances(self._dtype)[0]

    @property
    def is_factorised(self) -> bool:
        """Whether a factor solves them."""
        return self._factor is not None

    def outside(self, rows: Float[np.ndarray, "k n"]) -> Float[np.ndarray, "k n"]:
        """Return the parts of rows outside the null space."""
        rows = np.where(self._active, rows, 0.0)
        for _ in range(2 if self._basis.size else 0):
            rows = rows - (rows @ self._basis) @ self._basis.T
        return rows

    def solve(self, rows: Float[np.ndarray, "k n"], aims: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return `(A⁻¹ of each row outside the null space, ‖row - A u‖ of each)`.

        Args:
            aims: residuals that are good enough; None for the solver's own.
        """
        sides = self.outside(rows)
        if self._factor is None:
            sizes = np.linalg.norm(sides, axis=1)
            aims = self._rtol * sizes if aims is None else aims
            solved, residuals = _solve_columns(self._hessian, sides.astype(self._dtype), np.asarray(aims, self._dtype))
            return np.asarray(solved, float), np.asarray(residuals, float) * sizes
        solve, product = self._factor
        answers = self.outside(solve(sides))
        answers = self.outside(answers + solve(sides - self.outside(product(answers))))
        return answers, np.linalg.norm(sides - self.outside(product(answers)), axis=1)


@eqx.filter_jit
def _solve_columns(hessian: Hessian, columns: np.ndarray, aims: np.ndarray) -> tuple[Array, Array]:
    """Return `(A⁻¹ of each column, relative residuals)`, each solved to its own aim."""
    solve = functools.partial(hessian.solve, product=hessian.product())
    if hessian.solver.iterative and hessian.size > BATCHED_SIZE:
        return jax.lax.map(lambda both: solve(*both), (columns, aims))
    return jax.vmap(solve)(jnp.asarray(columns), jnp.asarray(aims))


def hessian_at(z: Unknown | Array, reference: Reference, potential: Potential) -> Hessian:
    """Return the Hessian at a state, with its spectrum [host].

    Raises:
        InputError: as `mdsens.mechanics.spectrum.examine_hessian`.
    """
    return _build_hessian(z, reference, potential, examine_hessian(z, reference, potential))


def known_hessian(z: Unknown | Array, reference: Reference, potential: Potential, spectrum: Spectrum) -> Hessian:
    """Return the Hessian at a state whose spectrum is known already [host]."""
    stored = is_stored(reference, potential) and stored_size(reference.system, potential) <= OPERATOR_LIMIT
    needed = stored or _has_factor(spectrum, reference, potential)
    columns = columns_at(z, Landscape(reference, potential)) if needed else None
    return _build_hessian(z, reference, potential, Examination(spectrum, columns, None))


def dense_hessian(
    z: Unknown | Array, reference: Reference, potential: Potential, spectrum: Spectrum, dense: DenseSystem
) -> Hessian:
    """Return the Hessian at a minimum of few unknowns, whose matrix and factor are known [host]."""
    null_space = known_null_space(z, reference, spectrum.rattlers)
    # Arrays of NumPy, which compiled programs take as well: few equilibria are ever asked for more than the host's algebra.
    arrays: Any = (dense.matrix, dense.lower, dense.free)
    operator, factor = DenseMatrix(arrays[0], arrays[2]), DenseFactor(arrays[1], arrays[2])
    solver = _default_solver(reference, spectrum, raveled(z).size)
    return Hessian(reference, z, potential, null_space, operator, factor, solver, HiddenValue(Aside(spectrum)), True)


def _build_hessian(z: Unknown | Array, reference: Reference, potential: Potential, examination: Examination) -> Hessian:
    spectrum, columns, matrix = examination
    null_space = known_null_space(z, reference, spectrum.rattlers)
    operator: StoredOperator | PreconditionedOperator | DenseMatrix | None = None if columns is None else _small_operator(columns)
    factor: DenseFactor | SparseFactor | None = None
    if columns is not None and _has_factor(spectrum, reference, potential):
        free = np.flatnonzero(np.asarray(null_space.active))
        null, dtype = np.asarray(null_space.basis)[free], reference.system.positions.dtype
        try:
            if not spectrum.exact:
                factor = sparse_factor(assemble(z, Landscape(reference, potential)).matrix, null, free)
            else:
                whole = columns.submatrix(free) if matrix is None else matrix
                whole = 0.5 * (whole + whole.T)
                factor = dense_factor(whole, null, free, dtype)
                operator = DenseMatrix(*jax.device_put((whole.astype(dtype), free)))
        except (np.linalg.LinAlgError, RuntimeError):  # not positive, or singular, to working precision
            factor = None
    solver = _default_solver(reference, spectrum, raveled(z).size)
    approximation = potential.approximation(reference.system)
    if approximation is not None:
        solver = _with_reachable_rtol(approximation, spectrum, solver, reference.system.positions.dtype)
    return Hessian(
        reference,
        z,
        potential,
        null_space,
        operator,
        factor,
        solver,
        HiddenValue(Aside(spectrum)),
        is_stored(reference, potential),
    )


def _is_definite(spectrum: Spectrum, reference: Reference) -> bool:
    rounding = np.finfo(reference.system.positions.dtype).eps * spectrum.highest
    return bool(reference.symmetric and reference.constraints is None and FACTOR_MARGIN * rounding < spectrum.lowest < np.inf)


def _has_factor(spectrum: Spectrum, reference: Reference, potential: Potential) -> bool:
    """Return whether the matrix is definite, and small or, in the plane, sparse."""
    if not _is_definite(spectrum, reference):
        return False
    return spectrum.exact or (reference.freedom is None and reference.system.dim == 2 and is_stored(reference, potential))


def _small_operator(columns: Columns) -> StoredOperator | PreconditionedOperator | DenseMatrix | None:
    """Return the operator if its numbers are few enough to be kept, else None."""
    if isinstance(columns, MatrixColumns):
        return columns.dense()
    operator = columns.function
    if not isinstance(operator, StoredOperator) or sum(np.size(leaf) for leaf in jax.tree.leaves(operator)) > OPERATOR_LIMIT:
        return None
    return operator if columns.preconditioner is None else PreconditionedOperator(operator, columns.preconditioner)


def _default_solver(reference: Reference, spectrum: Spectrum, size: int) -> LinearSolver:
    if not reference.symmetric:
        return Direct() if size <= DIRECT_LIMIT else GMRES(restart=GMRES_RESTART)
    multiplied = reference.constraints is not None and reference.constraints.count
    return MINRES() if spectrum.index or multiplied else CG()


def _with_reachable_rtol(approximation: Approximation, spectrum: Spectrum, solver: LinearSolver, dtype: Any) -> LinearSolver:
    """Return the solver with a relative residual no smaller than the error of the operator allows."""
    rtol, fail_rtol = solver.tolerances(dtype)
    reachable = min(approximation.hessian / spectrum.nearest_zero, MAX_RTOL)
    if not reachable > rtol:
        return solver
    # In whole powers, so that compiled code is found again.
    reachable = float(10.0 ** np.ceil(np.log10(reachable)))
    return dataclasses.replace(solver, rtol=reachable, fail_rtol=max(fail_rtol, 10.0 * reachable))
