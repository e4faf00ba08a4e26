"""`same_function`: one function for all that have the same code and see the same values, so that compiled code is found again.

A `lambda` in a loop, or in a cell of a notebook that runs again, is a new object each time, and JAX would compile it each time.
"""

import dataclasses
import dis
import functools
import types
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import equinox as eqx
import jax
import numpy as np

MAX_FUNCTIONS = 256
"""Functions that are remembered; the one that was not asked for longest is forgotten."""

MAX_NUMBERS = 10**6
"""Numbers in an array that are compared; functions that see a larger one are left as they are."""

MUTATING = {"append", "extend", "insert", "remove", "pop", "clear", "sort", "reverse", "update", "setdefault", "popitem", "fill"}
"""Methods that change a container; functions that have one, or write to an entry, are left as they are if they see containers."""

READING = {"LOAD_GLOBAL", "LOAD_NAME"}
WRITING = {"STORE_GLOBAL", "DELETE_GLOBAL", "STORE_DEREF", "DELETE_DEREF"}

_known: "OrderedDict[Hashable, Callable[..., Any]]" = OrderedDict()


class _Unknown(Exception):
    """A value that cannot be told from another one."""


@dataclasses.dataclass(frozen=True)
class _Seen:
    """A value that a function sees: its key, and a copy that nobody else changes."""

    key: Hashable
    copy: Any


class _Identity:
    """An object that is equal to itself only, whatever its class says."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.value is other.value


def same_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return an earlier function with the same code that sees the same values, else a copy of this one that sees them for good.

        same_function(lambda x: x + shift) is same_function(lambda x: x + shift)  # in one line of a loop, for equal shifts

    Values are those of its closure, its defaults and the global variables that it reads: numbers, texts, arrays, mdsens's
    objects, containers of these, and functions likewise; what is imported counts as unchanging. A function that sees anything
    else, or writes to its surroundings, is returned as it is.
    """
    if not isinstance(function, types.FunctionType | functools.partial):
        return function
    try:
        seen = _see(function, ())
    except _Unknown:
        return function
    if seen.copy is function:
        return function
    if seen.key in _known:
        _known.move_to_end(seen.key)
        return _known[seen.key]
    _known[seen.key] = seen.copy
    if len(_known) > MAX_FUNCTIONS:
        _known.popitem(last=False)
    return seen.copy  # type: ignore[no-any-return]  # a copy of the function


def _see(value: Any, outer: tuple[Any, ...]) -> _Seen:
    """Return a value's key and copy; `outer` are the functions and containers that it was found in.

    Raises:
        _Unknown: it cannot be told from others.
    """
    if any(value is one for one in outer):
        raise _Unknown
    inner = (*outer, value)
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        # 0.0 and -0.0 are equal, and nan is not equal to itself.
        return _Seen((type(value), repr(value)), value)
    if isinstance(value, types.FunctionType):
        return _see_function(value, inner)
    if isinstance(value, functools.partial):
        parts = [_see(part, inner) for part in (value.func, value.args, value.keywords)]
        function, arguments, options = (part.copy for part in parts)
        return _Seen(("partial", *(part.key for part in parts)), functools.partial(function, *arguments, **options))
    if isinstance(value, types.ModuleType | types.BuiltinFunctionType | type):
        return _Seen(_Identity(value), value)
    if type(value) in (tuple, list):
        parts = [_see(part, inner) for part in value]
        return _Seen((type(value), *(part.key for part in parts)), type(value)(part.copy for part in parts))
    if type(value) is dict:
        keys, values = ([_see(part, inner) for part in some] for some in (value.keys(), value.values()))
        key = (dict, *((name.key, part.key) for name, part in zip(keys, values, strict=True)))
        return _Seen(key, {name.copy: part.copy for name, part in zip(keys, values, strict=True)})
    return _see_arrays(value)


def _see_arrays(value: Any) -> _Seen:
    """See an array, or a tree of arrays that is no container of Python's."""
    if not isinstance(value, np.ndarray | np.generic | jax.Array | eqx.Module):
        # Ufuncs of NumPy's, compiled functions of JAX's: what is imported.
        if callable(value) and getattr(value, "__module__", None) not in (None, "__main__") and hasattr(value, "__name__"):
            return _Seen(_Identity(value), value)
        raise _Unknown
    leaves, structure = jax.tree.flatten(value)
    keys, copies = [], []
    for leaf in leaves:
        plain = isinstance(leaf, np.ndarray | np.generic | jax.Array) and not isinstance(leaf, jax.core.Tracer)
        if not plain or leaf.size > MAX_NUMBERS or leaf.dtype == object:
            raise _Unknown
        array = np.asarray(leaf)
        keys.append((type(leaf), array.dtype.str, array.shape, array.tobytes()))
        copies.append(leaf.copy() if isinstance(leaf, np.ndarray) else leaf)
    try:
        hash(structure)
    except TypeError:
        raise _Unknown from None
    return _Seen((structure, *keys), jax.tree.unflatten(structure, copies))


def _see_function(function: types.FunctionType, inner: tuple[Any, ...]) -> _Seen:
    code = function.__code__
    if function.__module__ != "__main__" and function.__closure__ is None and "<lambda>" not in function.__qualname__:
        # Imported: its code and its module's variables count as unchanging.
        return _Seen(_Identity(function), function)
    reads, writes, mutates = _surroundings(code)
    if writes or hasattr(function, "__wrapped__"):
        raise _Unknown
    try:
        cells = tuple(cell.cell_contents for cell in function.__closure__ or ())
    except ValueError:  # a variable that has no value yet
        raise _Unknown from None
    read = {name: function.__globals__[name] for name in reads if name in function.__globals__}
    if mutates and any(isinstance(value, list | dict | np.ndarray) for value in (*cells, *read.values())):
        raise _Unknown
    parts = [_see(part, inner) for part in (cells, function.__defaults__, function.__kwdefaults__, read, vars(function))]
    closure, defaults, options, variables, attributes = (part.copy for part in parts)
    variables = {**variables, "__builtins__": function.__globals__.get("__builtins__", __builtins__)}
    copy = types.FunctionType(code, variables, function.__name__, defaults, tuple(map(types.CellType, closure)))
    copy.__kwdefaults__, copy.__qualname__, copy.__doc__ = options, function.__qualname__, function.__doc__
    copy.__module__ = function.__module__
    vars(copy).update(attributes)
    return _Seen((code, *(part.key for part in parts)), copy)


@functools.lru_cache(maxsize=MAX_FUNCTIONS)
def _surroundings(code: types.CodeType) -> tuple[tuple[str, ...], bool, bool]:
    """Return the global variables that a code reads, whether it writes to any, and whether it may change a container."""
    names, writes, mutates = set(), False, False
    for one in _codes(code):
        mutates = mutates or not MUTATING.isdisjoint(one.co_names)
        for instruction in dis.get_instructions(one):
            if instruction.opname in READING:
                names.add(instruction.argval)
            elif instruction.opname in ("STORE_SUBSCR", "DELETE_SUBSCR"):
                mutates = True
            elif instruction.opname in WRITING:
                # Variables of the function itself that functions inside it read are no surroundings.
                writes = writes or instruction.opname.endswith("GLOBAL") or instruction.argval in code.co_freevars
    return tuple(sorted(names)), writes, mutates


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)
