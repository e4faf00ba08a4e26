"""The energy of a program that JAX cannot see into as a JAX function: U, its gradient by forces, the next by differences.

The calls run inside compiled programs, so nothing in them may use JAX.
"""

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

from mdsens.common.differences import central_difference
from mdsens.common.errors import InputError

CACHE_SIZE = 32
"""Number of calculators that are kept, and of states whose results are."""

NEIGHBORHOOD = 10.0
"""Distance [Å] at which neighbours move by a step, at most, where the cell strains."""

FORCE_TOLERANCE = 1e-2
"""Share by which forces and differences of the energy may differ."""

NO_STRESS = "This calculator gives no stress, so its cell cannot change: ask for a fixed cell."
NO_THIRD_DERIVATIVES = (
    "Third derivatives of a wrapped calculator's energy are not available: it gives forces, and their differences the second."
)

Cached = TypeVar("Cached")


class Structure(NamedTuple):
    """The settings of a compiled program: the atomic number of each code of a species, and the periodicity."""

    numbers: tuple[int, ...]
    pbc: tuple[bool, ...]


class State(NamedTuple):
    """The numbers that an energy is a function of.

    Attributes:
        positions: `(N, 3)` [Å].
        cell: `(3, 3)` [Å].
        theta: the parameters, flat.
        codes: species of the atoms, places in `Structure.numbers`.
    """

    positions: Any
    cell: Any
    theta: Any
    codes: Any


class Evaluation(NamedTuple):
    """Energy [eV], its gradient in the positions `(N, 3)` [eV/Å], and in the cell `(3, 3)` at fixed positions, or None."""

    energy: float
    slope: np.ndarray
    cell_slope: np.ndarray | None

    @property
    def gradient(self) -> np.ndarray:
        """The gradient in the positions, and in the cell where it is known, flat."""
        return self.slope.ravel() if self.cell_slope is None else np.concatenate([self.slope.ravel(), self.cell_slope.ravel()])


class BlackBox:
    """Calculators of all sets of parameters; compared by identity.

    Args:
        make: makes a calculator of the parameters by name.
        shapes: names and shapes of the parameters, in the order in which they lie in a flat vector.
        values: the parameters that it was built with, flat.
    """

    def __init__(
        self, make: Callable[..., Any], shapes: tuple[tuple[str, tuple[int, ...]], ...], values: tuple[float, ...]
    ) -> None:
        self.make, self.shapes, self.values = make, shapes, values
        self._calculators: OrderedDict[Hashable, Any] = OrderedDict()
        self._results: OrderedDict[Hashable, Evaluation] = OrderedDict()
        self._lock = threading.Lock()

    def calculator(self, theta: Any) -> Any:
        """Return a new calculator for these parameters.

        Raises:
            InputError: it cannot be made, is none, or computes with JAX.
        """
        theta, values, start = np.asarray(theta, dtype=float), {}, 0
        for name, shape in self.shapes:
            size = int(np.prod(shape))
            part = theta[start : start + size].reshape(shape)
            values[name] = part.item() if shape == () else part
            start += size
        try:
            calculator = self.make(**values)
        except Exception as error:  # of a user's function
            reason = str(error).splitlines() or [type(error).__name__]
            raise InputError(f"No calculator could be made with {values!r:.80}: {reason[0]:.160}.") from error
        if not hasattr(calculator, "get_potential_energy"):
            raise InputError(
                f"from_ase wants a function that makes calculators of ASE, and this one made {type(calculator).__name__}."
            )
        if _uses_mdsens(calculator):
            raise InputError("This calculator is mdsens's own, which has exact derivatives: use its .potential as it is.")
        return calculator

    def gives_stress(self) -> bool:
        """Return whether the calculators say that they can give a stress."""
        return "stress" in getattr(self.calculator(self.values), "implemented_properties", ())

    def evaluate(self, structure: Structure, state: State, *, strained: bool = False) -> Evaluation:
        """Return the calculator's energy and gradient at a state, with that in the cell if `strained` [host]."""
        positions, cell, theta = (np.ascontiguousarray(part, dtype=float) for part in state[:3])
        state = State(positions, cell, theta, np.asarray(state.codes))
        key = (structure, strained, *(part.tobytes() for part in state))
        with self._lock:
            return _cached(self._results, key, lambda: self._evaluate(structure, state, strained))

    def _evaluate(self, structure: Structure, state: State, strained: bool) -> Evaluation:
        from ase import Atoms

        positions, cell, theta, codes = state

        def new() -> Any:
            atoms = Atoms(np.array(structure.numbers)[codes], positions, cell=cell, pbc=structure.pbc)
            atoms.calc = self.calculator(theta)
            return atoms

        atoms = _cached(self._calculators, (structure, codes.tobytes(), theta.tobytes()), new)
        atoms.set_cell(cell)
        atoms.set_positions(positions)
        # Forces are minus the gradient of the free energy, where there is one beside the energy.
        free = "free_energy" in getattr(atoms.calc, "implemented_properties", ())
        slope = -np.array(atoms.get_forces(), dtype=float)
        value = float(atoms.get_potential_energy(force_consistent=free))
        if not strained:
            return Evaluation(value, slope, None)
        # V σ = Σ x ⊗ ∂U/∂x + hᵀ ∂U/∂h.
        work = atoms.get_volume() * atoms.get_stress(voigt=False) - positions.T @ slope
        return Evaluation(value, slope, np.linalg.solve(cell.T, work))


def _cached(store: OrderedDict[Hashable, Cached], key: Hashable, make: Callable[[], Cached]) -> Cached:
    """Return the entry of a key, made where there is none; the oldest entries go."""
    if key in store:
        store.move_to_end(key)
    else:
        store[key] = make()
        while len(store) > CACHE_SIZE:
            store.popitem(last=False)
    return store[key]


def _uses_mdsens(calculator: Any) -> bool:
    """Return whether a calculator is one of mdsens's own, or a mixture with one."""
    mixture = getattr(getattr(calculator, "mixer", calculator), "calcs", ())
    return type(calculator).__module__.startswith("mdsens.") or any(map(_uses_mdsens, mixture))


def _call_host(function: Callable[..., np.ndarray], shape: tuple[int, ...], *arguments: Any) -> Array:
    return jax.pure_callback(function, jax.ShapeDtypeStruct(shape, jnp.float64), *arguments, vmap_method="sequential")


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def energy(box: BlackBox, structure: Structure, state: State, steps: tuple[Any, Any]) -> Array:
    """Return U [eV], differentiable twice in positions, cell and parameters together, but not twice in the parameters.

    Args:
        steps: steps of displacements [Å], and of the parameters.
    """
    return _call_host(lambda state: np.asarray(box.evaluate(structure, state).energy), (), state)


@functools.partial(energy.defjvp, symbolic_zeros=True)
def _energy_jvp(box: BlackBox, structure: Structure, primals: Any, tangents: Any) -> tuple[Array, Array]:
    state, moved = primals[0], tangents[0]
    strained = _moves(moved.cell)
    value, change = energy(box, structure, *primals), jnp.zeros(())
    if strained and not box.gives_stress():
        raise InputError(NO_STRESS)
    if _moves(moved.positions) or strained:
        slope = _slope(box, structure, strained, *primals)
        change = change + slope @ _flat_tangent(moved, state, strained)
    if _moves(moved.theta):
        change = change + _parameter_slope(box, structure, *primals) @ moved.theta
    return value, change


def _moves(tangent: Any) -> bool:
    return not isinstance(tangent, SymbolicZero)


def _flat_tangent(moved: State, state: State, strained: bool) -> Array:
    parts = [moved.positions if _moves(moved.positions) else jnp.zeros_like(state.positions)]
    if strained:
        parts.append(moved.cell if _moves(moved.cell) else jnp.zeros_like(state.cell))
    return jnp.concatenate([part.ravel() for part in parts])


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _slope(box: BlackBox, structure: Structure, strained: bool, state: State, steps: tuple[Any, Any]) -> Array:
    """Return ∂U/∂(positions, cell), flat."""

    def call(state: State) -> np.ndarray:
        return box.evaluate(structure, state, strained=strained).gradient

    return _call_host(call, (state.positions.size + 9 * strained,), state)


@functools.partial(_slope.defjvp, symbolic_zeros=True)
def _slope_jvp(box: BlackBox, structure: Structure, strained: bool, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (state, steps), moved = primals, tangents[0]
    value = _slope(box, structure, strained, *primals)
    change = jnp.zeros_like(value)
    if _moves(moved.positions) or _moves(moved.cell):
        with_cell = strained or _moves(moved.cell)
        if with_cell and not strained and not box.gives_stress():
            raise InputError(NO_STRESS)
        v = _flat_tangent(moved, state, with_cell)
        image = _product.bind(v, *state, steps[0], box=box, structure=structure, strained=with_cell)
        change = change + image[: value.size]
    if _moves(moved.theta):
        change = change + _mixed(box, structure, strained, *primals) @ moved.theta
    return value, change


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _mixed(box: BlackBox, structure: Structure, strained: bool, state: State, steps: tuple[Any, Any]) -> Array:
    """Return ∂²U/∂(positions, cell)∂θ, one column a parameter."""

    def call(state: State, lengths: Any) -> np.ndarray:
        def slope(theta: np.ndarray) -> np.ndarray:
            return box.evaluate(structure, state._replace(theta=theta), strained=strained).gradient

        return _parameter_columns(slope, state.theta, lengths, shape)

    shape = (state.positions.size + 9 * strained, state.theta.size)
    return _call_host(call, shape, state, steps[1])


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _parameter_slope(box: BlackBox, structure: Structure, state: State, steps: tuple[Any, Any]) -> Array:
    """Return ∂U/∂θ."""

    def call(state: State, lengths: Any) -> np.ndarray:
        def value(theta: np.ndarray) -> np.ndarray:
            return np.array([box.evaluate(structure, state._replace(theta=theta)).energy])

        return _parameter_columns(value, state.theta, lengths, (1, len(lengths)))[0]

    return _call_host(call, state.theta.shape, state, steps[1])


@functools.partial(_parameter_slope.defjvp, symbolic_zeros=True)
def _parameter_slope_jvp(box: BlackBox, structure: Structure, primals: Any, tangents: Any) -> tuple[Array, Array]:
    state, moved = primals[0], tangents[0]
    if _moves(moved.theta):
        raise InputError("A wrapped calculator's second derivatives in its parameters are not available.")
    strained = _moves(moved.cell)
    change = _flat_tangent(moved, state, strained) @ _mixed(box, structure, strained, *primals)
    return _parameter_slope(box, structure, *primals), change


@functools.partial(_mixed.defjvp, symbolic_zeros=True)
def _mixed_jvp(*_: Any) -> Any:
    raise InputError(NO_THIRD_DERIVATIVES)


def _parameter_columns(
    function: Callable[[np.ndarray], np.ndarray], theta: Any, lengths: Any, shape: tuple[int, int]
) -> np.ndarray:
    """Return the derivatives of a function in each parameter, as columns."""
    theta, lengths = np.asarray(theta), np.asarray(lengths)
    directions = zip(np.eye(theta.size), lengths, strict=True)
    columns = [central_difference(lambda t, e=e: function(theta + t * e), h) for e, h in directions]  # type: ignore[misc]
    return np.stack(columns, axis=-1) if columns else np.zeros(shape)


def _host_product(v: Array, *arguments: Any, box: BlackBox, structure: Structure, strained: bool) -> Array:
    """Return the Hessian's product with a displacement, scaled so that no atom and no neighbour moves more than about a step.

    Args:
        arguments: the parts of a `State`, then the step of displacements.
    """

    def call(v: Any, *arguments: Any) -> np.ndarray:
        *parts, step = arguments
        v, state = np.asarray(v), State(*map(np.asarray, parts))
        n = state.positions.size
        size = np.abs(v[:n]).max()
        if strained:
            strain = np.linalg.solve(state.cell, v[n:].reshape(3, 3))
            size = max(size, NEIGHBORHOOD * np.abs(strain).max())
        if not np.isfinite(size) or size == 0.0:
            return size * v
        unit = v / size
        moved, deformed = unit[:n].reshape(state.positions.shape), unit[n:].reshape(3, 3) if strained else np.zeros((3, 3))

        def slope(t: float) -> np.ndarray:
            there = state._replace(positions=state.positions + t * moved, cell=state.cell + t * deformed)
            return box.evaluate(structure, there, strained=strained).gradient

        return size * central_difference(slope, float(step))

    return _call_host(call, v.shape, v, *arguments)


def _product_jvp(primals: Any, tangents: Any, **settings: Any) -> tuple[Any, Any]:
    if any(type(tangent) is not ad.Zero for tangent in tangents[1:]):
        raise InputError(NO_THIRD_DERIVATIVES)
    v = tangents[0]
    change = v if type(v) is ad.Zero else _product.bind(v, *primals[1:], **settings)
    return _product.bind(*primals, **settings), change


def _product_transpose(cotangent: Any, v: Any, *rest: Any, **settings: Any) -> tuple[Any, ...]:
    # Second derivatives are symmetric.
    image = ad.Zero(v.aval) if type(cotangent) is ad.Zero else _product.bind(cotangent, *rest, **settings)
    return image, *[None] * len(rest)


def _product_batch(arguments: Any, axes: Any, **settings: Any) -> tuple[Any, int]:
    # One after the other, as the calls would be anyway; each is still differentiated and transposed.
    batched = [axis is not None for axis in axes]
    rows = [jnp.moveaxis(argument, axis, 0) for argument, axis in zip(arguments, axes, strict=True) if axis is not None]

    def product(row: Any) -> Any:
        row = iter(row)
        return _product.bind(*(next(row) if many else whole for whole, many in zip(arguments, batched, strict=True)), **settings)

    return jax.lax.map(product, rows), 0


_product = Primitive("mdsens_difference_product")
_product.def_impl(lambda *arguments, **settings: _host_product(*arguments, **settings))
_product.def_abstract_eval(lambda v, *_, **__: jax.core.ShapedArray(v.shape, v.dtype))
mlir.register_lowering(_product, mlir.lower_fun(_host_product, multiple_results=False))
ad.primitive_jvps[_product] = _product_jvp
ad.primitive_transposes[_product] = _product_transpose
batching.primitive_batchers[_product] = _product_batch
