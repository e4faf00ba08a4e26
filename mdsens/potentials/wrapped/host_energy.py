"""The energy of a program that JAX cannot see into as a JAX function: U, its gradient by forces, the next by differences.

The calls run inside compiled programs, so nothing in them may use JAX.
"""

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

from mdsens.common.errors import InputError
from mdsens.potentials.wrapped.finite_differences import central

KEPT = 32
"""Calculators that are kept, and states of which results are."""

NEIGHBORHOOD = 10.0
"""Distance [Å] at which neighbours move by a step, at most, where the cell strains."""

CONSISTENT = 1e-2
"""Share by which forces and differences of the energy may differ."""

THIRD = "Third derivatives of a wrapped calculator's energy are not available: it gives forces, and their differences the second."


class Structure(NamedTuple):
    """What of a structure is fixed while a program is compiled: the atomic number of each code, and the periodicity."""

    numbers: tuple[int, ...]
    pbc: tuple[bool, ...]


class Evaluation(NamedTuple):
    """Energy [eV], its gradient in the positions `(N, 3)` [eV/Å], and in the cell `(3, 3)` at fixed positions, or None."""

    energy: float
    slope: np.ndarray
    cell_slope: np.ndarray | None


class BlackBox:
    """Calculators of all sets of parameters; compared by identity.

    Args:
        make: makes a calculator of the parameters by name.
        shapes: names and shapes of the parameters, in the order in which they lie in a flat vector.
        values: those that it was built with, flat.
    """

    def __init__(self, make: Callable[..., Any], shapes: tuple[Any, ...], values: tuple[Any, ...]) -> None:
        self.make, self.shapes, self.values = make, shapes, values
        self._calculators: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        self._results: OrderedDict[tuple[Any, ...], Evaluation] = OrderedDict()
        self._lock = threading.Lock()

    def calculator(self, theta: Any) -> Any:
        """A new calculator.

        Raises:
            InputError: it cannot be made, is none, or computes with JAX.
        """
        theta, given, start = np.asarray(theta, dtype=float), {}, 0
        for name, shape in self.shapes:
            size = int(np.prod(shape))
            part = theta[start : start + size].reshape(shape)
            given[name] = part.item() if shape == () else part
            start += size
        try:
            calculator = self.make(**given)
        except Exception as error:  # of a user's function
            reason = str(error).splitlines() or [type(error).__name__]
            raise InputError(f"No calculator could be made with {given!r:.80}: {reason[0]:.160}.") from error
        if not hasattr(calculator, "get_potential_energy"):
            raise InputError(
                f"from_ase wants a function that makes calculators of ASE, and this one made {type(calculator).__name__}."
            )
        if _uses_mdsens(calculator):
            raise InputError("This calculator is mdsens's own, which has exact derivatives: use its .potential as it is.")
        return calculator

    def gives_stress(self) -> bool:
        return "stress" in getattr(self.calculator(self.values), "implemented_properties", ())

    def evaluate(self, structure: Structure, positions: Any, cell: Any, codes: Any, theta: Any, strained: bool) -> Evaluation:
        """What the calculator says of a state [host]."""
        positions, cell, theta = (np.ascontiguousarray(part, dtype=float) for part in (positions, cell, theta))
        codes = np.asarray(codes)
        key = (structure, strained, codes.tobytes(), *(part.tobytes() for part in (positions, cell, theta)))
        with self._lock:
            return _kept(self._results, key, lambda: self._evaluated(structure, positions, cell, theta, codes, strained))

    def _evaluated(
        self, structure: Structure, positions: np.ndarray, cell: np.ndarray, theta: np.ndarray, codes: np.ndarray, strained: bool
    ) -> Evaluation:
        from ase import Atoms

        def new() -> Any:
            atoms = Atoms(np.array(structure.numbers)[codes], positions, cell=cell, pbc=structure.pbc)
            atoms.calc = self.calculator(theta)
            return atoms

        atoms = _kept(self._calculators, (structure, codes.tobytes(), theta.tobytes()), new)
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


def _kept(store: OrderedDict[Any, Any], key: Any, make: Callable[..., Any]) -> Any:
    """The entry of a key, made where it is not there; the oldest entries go."""
    if key in store:
        store.move_to_end(key)
    else:
        store[key] = make()
        while len(store) > KEPT:
            store.popitem(last=False)
    return store[key]


def _uses_mdsens(calculator: Any) -> bool:
    """Whether it is one of ours, or a mixture with one."""
    if type(calculator).__module__.startswith("mdsens."):
        return True
    mixed = getattr(getattr(calculator, "mixer", calculator), "calcs", ())
    return any(_uses_mdsens(part) for part in mixed)


def _on_host(function: Callable[..., Any], shape: Any, *arguments: Any) -> Any:
    return jax.pure_callback(function, jax.ShapeDtypeStruct(shape, jnp.float64), *arguments, vmap_method="sequential")


def _whole(found: Evaluation, strained: bool) -> np.ndarray:
    """Positions' and, where asked for, the cell's part of the gradient, flat."""
    if found.cell_slope is None or not strained:
        return found.slope.ravel()
    return np.concatenate([found.slope.ravel(), found.cell_slope.ravel()])


def _moved(v: Any, positions: Any, strained: bool) -> tuple[Any, Any]:
    """A flat displacement as those of positions and cell."""
    size = positions.size
    return v[:size].reshape(positions.shape), v[size:].reshape(3, 3) if strained else np.zeros((3, 3))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def energy(box: BlackBox, structure: Structure, positions: Array, cell: Any, theta: Array, codes: Array, steps: Any) -> Array:
    """U [eV]; differentiable twice in positions, cell and parameters together, but not twice in the parameters.

    Args:
        theta: the parameters, flat.
        steps: of displacements [Å], and of the parameters.
    """

    def call(positions: Any, cell: Any, theta: Any, codes: Any) -> np.ndarray:
        return np.asarray(box.evaluate(structure, positions, cell, codes, theta, False).energy)

    return _on_host(call, (), positions, cell, theta, codes)


@functools.partial(energy.defjvp, symbolic_zeros=True)
def _energy_jvp(box: BlackBox, structure: Structure, primals: Any, tangents: Any) -> tuple[Array, Array]:
    positions, cell, _, _, _ = primals
    strained = _moves(tangents[1])
    value, change = energy(box, structure, *primals), jnp.zeros(())
    if strained and not box.gives_stress():
        raise InputError("This calculator gives no stress, so its cell cannot change: ask for a fixed cell.")
    if _moves(tangents[0]) or strained:
        slope = _slope(box, structure, strained, *primals)
        change = change + slope @ _flat_tangent(tangents, positions, cell, strained)
    if _moves(tangents[2]):
        change = change + _parameter_slope(box, structure, *primals) @ tangents[2]
    return value, change


def _moves(tangent: Any) -> bool:
    return not isinstance(tangent, SymbolicZero)


def _flat_tangent(tangents: Any, positions: Array, cell: Any, strained: bool) -> Array:
    parts = [tangents[0] if _moves(tangents[0]) else jnp.zeros_like(positions)]
    if strained:
        parts.append(tangents[1] if _moves(tangents[1]) else jnp.zeros_like(cell))
    return jnp.concatenate([part.ravel() for part in parts])


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _slope(
    box: BlackBox, structure: Structure, strained: bool, positions: Array, cell: Any, theta: Array, codes: Array, steps: Any
) -> Array:
    """∂U/∂(positions, cell), flat."""

    def call(positions: Any, cell: Any, theta: Any, codes: Any) -> np.ndarray:
        return _whole(box.evaluate(structure, positions, cell, codes, theta, strained), strained)

    return _on_host(call, (positions.size + 9 * strained,), positions, cell, theta, codes)


@functools.partial(_slope.defjvp, symbolic_zeros=True)
def _slope_jvp(box: BlackBox, structure: Structure, strained: bool, primals: Any, tangents: Any) -> tuple[Array, Array]:
    positions, cell, theta, codes, steps = primals
    value = _slope(box, structure, strained, *primals)
    change = jnp.zeros_like(value)
    if _moves(tangents[0]) or _moves(tangents[1]):
        both = strained or _moves(tangents[1])
        if both and not strained and not box.gives_stress():
            raise InputError("This calculator gives no stress, so its cell cannot change: ask for a fixed cell.")
        v = _flat_tangent(tangents, positions, cell, both)
        image = _product.bind(v, positions, cell, theta, codes, steps[0], box=box, structure=structure, strained=both)
        change = change + image[: value.size]
    if _moves(tangents[2]):
        change = change + _mixed(box, structure, strained, *primals) @ tangents[2]
    return value, change


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _mixed(
    box: BlackBox, structure: Structure, strained: bool, positions: Array, cell: Any, theta: Array, codes: Array, steps: Any
) -> Array:
    """∂²U/∂(positions, cell)∂θ, one column a parameter."""

    def call(positions: Any, cell: Any, theta: Any, codes: Any, lengths: Any) -> np.ndarray:
        def slope(changed: Any) -> np.ndarray:
            return _whole(box.evaluate(structure, positions, cell, codes, changed, strained), strained)

        return _by_parameters(slope, theta, lengths, positions.size + 9 * strained)

    shape = (positions.size + 9 * strained, theta.size)
    return _on_host(call, shape, positions, cell, theta, codes, steps[1])


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _parameter_slope(
    box: BlackBox, structure: Structure, positions: Array, cell: Any, theta: Array, codes: Array, steps: Any
) -> Array:
    """∂U/∂θ."""

    def call(positions: Any, cell: Any, theta: Any, codes: Any, lengths: Any) -> np.ndarray:
        def value(changed: Any) -> np.ndarray:
            return np.array([box.evaluate(structure, positions, cell, codes, changed, False).energy])

        return _by_parameters(value, theta, lengths, 1)[0]

    return _on_host(call, theta.shape, positions, cell, theta, codes, steps[1])


@functools.partial(_parameter_slope.defjvp, symbolic_zeros=True)
def _parameter_slope_jvp(box: BlackBox, structure: Structure, primals: Any, tangents: Any) -> tuple[Array, Array]:
    if _moves(tangents[2]):
        raise InputError("A wrapped calculator's second derivatives in its parameters are not available.")
    positions, cell, *_ = primals
    strained = _moves(tangents[1])
    change = _flat_tangent(tangents, positions, cell, strained) @ _mixed(box, structure, strained, *primals)
    return _parameter_slope(box, structure, *primals), change


@functools.partial(_mixed.defjvp, symbolic_zeros=True)
def _mixed_jvp(*_: Any) -> Any:
    raise InputError(THIRD)


def _by_parameters(function: Callable[..., Any], theta: np.ndarray, lengths: Any, size: int) -> np.ndarray:
    theta, lengths = np.asarray(theta), np.asarray(lengths)
    units = zip(np.eye(theta.size), lengths, strict=True)
    columns = [central(lambda t, e=e: function(theta + t * e), h) for e, h in units]  # type: ignore[misc]
    return np.stack(columns, axis=-1) if columns else np.zeros((size, 0))


def _host_product(
    v: Array,
    positions: Array,
    cell: Any,
    theta: Array,
    codes: Array,
    step: Any,
    *,
    box: BlackBox,
    structure: Structure,
    strained: bool,
) -> Array:
    """The Hessian's product with a displacement, made so long that no atom and no neighbour moves more than about a step."""

    def call(v: Any, positions: Any, cell: Any, theta: Any, codes: Any, step: Any) -> np.ndarray:
        v, positions, cell = np.asarray(v), np.asarray(positions), np.asarray(cell)
        size = np.abs(v[: positions.size]).max()
        if strained:
            strain = np.linalg.solve(cell, v[positions.size :].reshape(3, 3))
            size = max(size, NEIGHBORHOOD * np.abs(strain).max())
        if not np.isfinite(size) or size == 0.0:
            return size * v
        moved, deformed = _moved(v / size, positions, strained)

        def slope(t: Any) -> np.ndarray:
            there = (positions + t * moved, cell + t * deformed)
            return _whole(box.evaluate(structure, *there, codes, theta, strained), strained)

        return size * central(slope, float(step))

    return _on_host(call, v.shape, v, positions, cell, theta, codes, step)


def _linear(primals: Any, tangents: Any, **settings: Any) -> tuple[Any, Any]:
    if any(type(tangent) is not ad.Zero for tangent in tangents[1:]):
        raise InputError(THIRD)
    v = tangents[0]
    change = v if type(v) is ad.Zero else _product.bind(v, *primals[1:], **settings)
    return _product.bind(*primals, **settings), change


def _transposed(cotangent: Any, v: Array, *rest: Any, **settings: Any) -> tuple[Any, ...]:
    """Second derivatives are symmetric."""
    nothing = [None] * len(rest)
    if type(cotangent) is ad.Zero:
        return ad.Zero(v.aval), *nothing
    return _product.bind(cotangent, *rest, **settings), *nothing


def _batched(arguments: Any, axes: Any, **settings: Any) -> tuple[Any, int]:
    """One after the other, as the calls would be anyway; a vector at a time is still differentiated and transposed."""
    mapped = [axis is not None for axis in axes]
    rows = [jnp.moveaxis(argument, axis, 0) for argument, axis, kept in zip(arguments, axes, mapped, strict=True) if kept]

    def one(row: Any) -> Any:
        row = iter(row)
        return _product.bind(*(next(row) if kept else whole for whole, kept in zip(arguments, mapped, strict=True)), **settings)

    return jax.lax.map(one, rows), 0


_product = Primitive("mdsens_difference_product")
_product.def_impl(lambda *arguments, **settings: _host_product(*arguments, **settings))
_product.def_abstract_eval(lambda v, *_, **__: jax.core.ShapedArray(v.shape, v.dtype))
mlir.register_lowering(_product, mlir.lower_fun(_host_product, multiple_results=False))
ad.primitive_jvps[_product] = _linear
ad.primitive_transposes[_product] = _transposed
batching.primitive_batchers[_product] = _batched
