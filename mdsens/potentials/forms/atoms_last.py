"""`map_last_axis` evaluates one atom's function for all atoms, with these along the last axis of every intermediate.

`jax.vmap` leaves the batch at the front wherever it builds or contracts a small array, so that the innermost loops of the
compiled code run over three components or four neighbours, and nothing is vectorised. Here each primitive of the function
is applied with the batch last: the innermost loop runs over atoms. For the energy of a site with a few neighbours that is
five times faster on the CPU. What is not listed below goes through `jax.vmap`, and so do products with a matrix that all
members share, a network's weights: they are one product of matrices.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jaxtyping import Array

ELEMENTWISE_PRIMITIVES = frozenset(
    (
        *("abs", "add", "add_any", "and", "atan2", "cbrt", "ceil", "clamp", "convert_element_type", "copy", "cos", "cosh", "div"),
        *("eq", "erf", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow", "is_finite", "le", "log", "log1p"),
        *("logistic", "lt", "max", "min", "mul", "ne", "neg", "not", "or", "pow", "rem", "round", "rsqrt", "select_n", "sign"),
        *("sin", "sinh", "sqrt", "square", "sub", "tan", "tanh", "xor"),
    )
)

REDUCTION_PRIMITIVES = frozenset(("reduce_sum", "reduce_prod", "reduce_max", "reduce_min", "reduce_and", "reduce_or"))

CALL_PRIMITIVES = frozenset(("jit", "pjit"))


def map_last_axis(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return `function` of each member of a batch, which is the last axis of all arrays in `arguments` and of all results.

    `map_last_axis(lambda d: jnp.sum(d * d), d)` of `d` `(3, N)` is `jnp.sum(d * d, axis=0)`.
    """
    leaves, structure = jax.tree.flatten(arguments)
    size = leaves[0].shape[-1]
    members = [jax.ShapeDtypeStruct(leaf.shape[:-1], leaf.dtype) for leaf in leaves]
    traced, shape = jax.make_jaxpr(lambda *flat: function(*jax.tree.unflatten(structure, flat)), return_shape=True)(*members)
    values = _evaluate(traced.jaxpr, traced.consts, [Value(leaf, True) for leaf in leaves], size)
    return jax.tree.unflatten(jax.tree.structure(shape), [_with_batch(value, size) for value in values])


class Value(NamedTuple):
    """An intermediate of the function, and whether its last axis is the batch."""

    array: Any
    has_batch: bool


def _with_batch(value: Value, size: int, rank: int | None = None) -> Array:
    """Return the array of a value, broadcast to the batch and to a rank (without the batch)."""
    array = jnp.asarray(value.array)
    if not value.has_batch:
        array = jnp.broadcast_to(array[..., None], (*array.shape, size))
    missing = 0 if rank is None else rank + 1 - array.ndim
    return array.reshape((1,) * missing + array.shape) if missing else array


def _evaluate(jaxpr: core.Jaxpr, constants: Sequence[Any], arguments: Sequence[Value], size: int) -> list[Value]:
    known = dict(zip(jaxpr.constvars, [Value(constant, False) for constant in constants], strict=True))
    known |= dict(zip(jaxpr.invars, arguments, strict=True))

    def read(variable: Any) -> Value:
        return Value(variable.val, False) if isinstance(variable, core.Literal) else known[variable]

    for equation in jaxpr.eqns:
        known |= zip(equation.outvars, _apply(jaxpr, equation, [read(v) for v in equation.invars], size), strict=True)
    return [read(variable) for variable in jaxpr.outvars]


def _apply(jaxpr: core.Jaxpr, equation: core.JaxprEqn, values: list[Value], size: int) -> list[Value]:
    name, settings = equation.primitive.name, equation.params
    if name in CALL_PRIMITIVES:
        return _evaluate(settings["jaxpr"].jaxpr, settings["jaxpr"].consts, values, size)
    if not any(value.has_batch for value in values):
        return [Value(result, False) for result in _function_of(jaxpr, equation)(*[value.array for value in values])]
    if name in ELEMENTWISE_PRIMITIVES:
        shape = (*equation.outvars[0].aval.shape, size)  # type: ignore[attr-defined]  # an array's
        arrays = [jnp.broadcast_to(_with_batch(value, size, len(shape) - 1), shape) for value in values]
        return [Value(equation.primitive.bind(*arrays, **settings), True)]
    if name in _RULES and (name != "dot_general" or all(value.has_batch for value in values)):
        return [Value(_RULES[name]([_with_batch(value, size) for value in values], size, **settings), True)]
    if name in REDUCTION_PRIMITIVES:
        return [Value(equation.primitive.bind(values[0].array, **settings), True)]
    axes = [-1 if value.has_batch else None for value in values]
    results = jax.vmap(_function_of(jaxpr, equation), in_axes=axes, out_axes=-1)(*[value.array for value in values])
    return [Value(result, True) for result in results]


def _function_of(jaxpr: core.Jaxpr, equation: core.JaxprEqn) -> Callable[..., Any]:
    """Return an equation of a jaxpr as a function of all its inputs."""
    named = list(dict.fromkeys(v for v in equation.invars if not isinstance(v, core.Literal)))
    names = jaxpr.debug_info.with_unknown_names()
    alone = jaxpr.replace(constvars=[], invars=named, outvars=equation.outvars, eqns=[equation], debug_info=names)
    alone = core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))

    def function(*inputs: Any) -> Any:
        values = {v: x for v, x in zip(equation.invars, inputs, strict=True) if not isinstance(v, core.Literal)}
        return alone(*[values[v] for v in named])

    return function


def _broadcast(arrays: list[Array], size: int, shape: Any, broadcast_dimensions: Any, **_: Any) -> Array:
    return lax.broadcast_in_dim(arrays[0], (*shape, size), (*broadcast_dimensions, len(shape)))


def _contract(arrays: list[Array], size: int, dimension_numbers: Any, **_: Any) -> Array:
    """Return the product of small matrices as a sum of products of numbers."""
    a, b = arrays
    (a_sum, b_sum), (a_batch, b_batch) = dimension_numbers
    a_free = [k for k in range(a.ndim - 1) if k not in (*a_sum, *a_batch)]
    b_free = [k for k in range(b.ndim - 1) if k not in (*b_sum, *b_batch)]
    a = lax.transpose(a, (*a_batch, *a_free, *a_sum, a.ndim - 1))
    b = lax.transpose(b, (*b_batch, *b_free, *b_sum, b.ndim - 1))
    first = len(a_batch) + len(a_free)
    a = jnp.expand_dims(a, tuple(range(first, first + len(b_free))))
    b = jnp.expand_dims(b, tuple(range(len(b_batch), first)))
    first += len(b_free)
    return jnp.sum(a * b, axis=tuple(range(first, first + len(a_sum))))


_RULES: dict[str, Callable[..., Any]] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": lambda arrays, size, dimension, **_: lax.concatenate(arrays, dimension),
    "dot_general": _contract,
    "reshape": lambda arrays, size, new_sizes, **_: lax.reshape(arrays[0], (*new_sizes, size)),
    "slice": lambda arrays, size, start_indices, limit_indices, strides, **_: lax.slice(
        arrays[0], (*start_indices, 0), (*limit_indices, size), None if strides is None else (*strides, 1)
    ),
    "squeeze": lambda arrays, size, dimensions, **_: lax.squeeze(arrays[0], dimensions),
    "transpose": lambda arrays, size, permutation, **_: lax.transpose(arrays[0], (*permutation, len(permutation))),
}
"""Rules for primitives that build or contract small arrays: with elementwise ones, all that a site's energy consists of."""
