"""Checks before a derivative is computed: of closures over traced values, of a solver's answer, of arguments."""

import contextlib
import functools
import types
from collections.abc import Iterator, Sequence
from operator import index as operator_index
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from mdsens.common.errors import ConvergenceError, InputError
from mdsens.implicit.trees import PyTree

DEPTH = 12
"""Levels to which closures and their parts are searched."""

_LIBRARIES = frozenset(
    ["builtins", "jax", "jaxlib", "equinox", "mdsens", "jax_md", "optax", "lineax", "numpy", "scipy", "functools", "typing"]
)
"""Packages whose functions hold no traced values of a user's."""

_OPAQUE = (types.ModuleType, types.BuiltinFunctionType, str, bytes, int, float, np.ndarray, np.generic, jax.Array)


def check_closures(**functions: Any) -> None:
    """Raise InputError, with the variable, for a function that uses traced values that are not among its arguments.

    The rule of differentiation knows arguments only: such a value would leak out of its transformation, or have its
    derivative left out.
    """
    for role, function in functions.items():
        if function is not None and (name := _traced_variable(function, set())):
            raise InputError(
                f"The {role} uses the variable {name!r}, which is being traced by JAX (by jit, grad or vmap), without getting "
                f"it as an argument: make it one, solve(z0, ..., {name}), so that its derivative is known."
            )


def _traced_variable(value: Any, seen: set[int], name: str = "", depth: int = 0) -> str | None:
    """Return the name under which a tracer is reached from a closure, defaults, bound arguments or attributes."""
    if isinstance(value, jax.core.Tracer):
        return name or "<unnamed>"
    if depth > DEPTH or id(value) in seen or isinstance(value, _OPAQUE) or (isinstance(value, type) and _is_of_a_library(value)):
        return None
    seen.add(id(value))
    for inner, part in _parts(value, name):
        if variable := _traced_variable(part, seen, inner, depth + 1):
            return variable
    return None


def _parts(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a value, with the names that its user knows."""
    contents = {}
    if isinstance(value, types.FunctionType):
        yield from _variables(value)
        defaults = value.__defaults__ or ()
        names = value.__code__.co_varnames[: value.__code__.co_argcount]
        contents = dict(zip(names[len(names) - len(defaults) :], defaults, strict=True)) | (value.__kwdefaults__ or {})
    elif isinstance(value, types.MethodType):
        yield from ((name, part) for part in (value.__self__, value.__func__))
    elif isinstance(value, functools.partial):
        yield from ((name, part) for part in (value.func, *value.args))
        contents = value.keywords
    elif isinstance(value, dict):
        yield from ((key if isinstance(key, str) else name, part) for key, part in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((name, part) for part in value)
    else:
        attributes = dict(getattr(value, "__dict__", {}))
        attributes |= {
            slot: getattr(value, slot, None) for kind in type(value).__mro__ for slot in getattr(kind, "__slots__", ())
        }
        if isinstance(value, type) or not _is_of_a_library(type(value)):
            contents = attributes
            yield name, type(value)
        else:  # the wrapper of a function has no name that its user knows
            yield from ((name, part) for part in attributes.values())
        yield name, getattr(value, "__wrapped__", None)
    yield from contents.items()


def _variables(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield the variables of a function that are not its own: from its closure, and globals of its user's modules."""
    code = function.__code__
    for variable, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # a variable that is not bound yet
            yield variable, cell.cell_contents
    if not _is_of_a_library(function):
        codes = [code, *(constant for constant in code.co_consts if isinstance(constant, types.CodeType))]
        for variable in {variable for inner in codes for variable in inner.co_names}:
            yield variable, function.__globals__.get(variable)


def _is_of_a_library(thing: Any) -> bool:
    """Return whether a thing is a library's: these keep no tracers in their globals, and they are large."""
    return (getattr(thing, "__module__", None) or "").split(".")[0] in _LIBRARIES


def check_answer(answer: Any, has_aux: bool) -> tuple[PyTree, PyTree]:
    """Return `(z, aux)` as arrays; raise InputError for an answer that is no pair of trees of arrays, z floating-point."""
    if has_aux:
        if not (isinstance(answer, tuple) and len(answer) == 2):
            raise InputError(
                f"With has_aux=True the solver must return a pair (answer, auxiliary output), not {_kind_text(answer)}."
            )
        z, aux = answer
    else:
        z, aux = answer, ()
    leaves = jax.tree.leaves(z)
    if not leaves:
        raise InputError("The solver returned no unknown: it must return the root as a pytree of floating-point arrays.")
    if all(_is_array(leaf) and jnp.size(leaf) == 0 for leaf in leaves):
        raise InputError("The solver's answer is empty: an unknown has at least one component.")
    for leaf in leaves:
        if not _is_array(leaf) or not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise InputError(
                f"The solver's answer holds {_kind_text(leaf)}: every leaf of the unknown must be a real floating-point array "
                "(has_aux=True is for what is returned beside it)."
            )
        if jnp.result_type(leaf).itemsize < 4:
            raise InputError(f"The solver's answer is {jnp.result_type(leaf)}: linear solves need float32 or float64.")
    for leaf in jax.tree.leaves(aux):
        if not _is_array(leaf):
            raise InputError(f"The solver's auxiliary output holds {_kind_text(leaf)}: only arrays and numbers can leave it.")
    return jax.tree.map(jnp.asarray, z), jax.tree.map(jnp.asarray, aux)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float)


def _kind_text(value: Any) -> str:
    if hasattr(value, "dtype"):
        return f"an array of {value.dtype}"
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else f"a {type(value).__name__}"


def outline(tree: PyTree) -> PyTree:
    """Return precision and shape of each leaf, in words."""
    return jax.tree.map(lambda leaf: f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}", tree)


def check_condition(condition: PyTree, z: PyTree) -> None:
    """Raise InputError for a condition (its value, or its shapes by `jax.eval_shape`) that is not shaped like the unknown."""
    unknown, value = outline(z), outline(condition)
    if jax.tree.structure(condition) != jax.tree.structure(z) or value != unknown:  # type: ignore[operator]  # of jax's stubs
        raise InputError(
            f"The optimality condition must return what the unknown looks like: the unknown is {unknown}, the condition {value}."
        )


def check_static(tree: PyTree) -> None:
    """Raise InputError for arguments that are no arrays and have no hash by which to tell them apart."""
    for leaf in jax.tree.leaves(tree):
        try:
            hash(leaf)
        except TypeError:
            if not isinstance(leaf, np.ndarray):
                raise InputError(
                    f"An argument holds a {type(leaf).__name__}, which is no array and has no hash: give arrays, numbers, "
                    "strings, or containers of them."
                ) from None


def check_root(error: float, scale: float, tolerance: float) -> None:
    """Raise ConvergenceError, with the size of the condition, for what is no root; arguments as for `is_root`."""
    if not np.isfinite(error):
        raise ConvergenceError(
            "The optimality condition is not finite at the solver's answer, so there is nothing to differentiate: "
            "look at the answer, and at the condition's value there."
        )
    if not is_root(error, scale, tolerance):
        raise ConvergenceError(
            f"The solver's answer is no root: the condition has norm {error:.1e} beside terms of size {scale:.1e}. Let the "
            "solver converge, check that the condition is that of this solver, or allow it with root_tol=None."
        )


def is_root(error: Any, scale: Any, tolerance: float) -> Any:
    """Return whether a condition of norm `error` counts as zero beside terms of size `scale`."""
    return error <= tolerance * scale


def check_args(args: object) -> None:
    """Raise InputError for arguments that are no tuple."""
    if not isinstance(args, tuple):
        raise InputError(f"args must be the tuple of the condition's arguments behind the unknown, not a {type(args).__name__}.")


def chosen_arguments(argnums: int | Sequence[int] | None, args: tuple[Any, ...]) -> list[int]:
    """Return the positions in argnums, counted from 0; raise InputError for one that is not there or has no derivative."""
    count = len(args)
    try:
        numbers = range(count) if argnums is None else [operator_index(n) for n in np.atleast_1d(argnums).tolist()]
    except TypeError:
        raise InputError(f"argnums must be an integer or several, not {argnums!r}.") from None
    for number in numbers:
        if not -count <= number < count:
            raise InputError(f"argnums has {number}, but the condition has {count} argument(s) behind the unknown, from 0.")
        if argnums is not None and not any(eqx.is_inexact_array(leaf) for leaf in jax.tree.leaves(args[number])):
            raise InputError(f"argnums has {number}, but that argument has no floating-point array to differentiate in.")
    return [number % count for number in numbers]
