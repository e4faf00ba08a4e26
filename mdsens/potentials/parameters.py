"""Parameters as a user gives them, numbers, dicts by species or trees of networks, made into trees of arrays."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mdsens.common.errors import InputError
from mdsens.structures.system import as_float_array, is_concrete

if TYPE_CHECKING:
    # Numbers and lists go in, arrays come out: of one field type checkers can't be told both.
    Parameter = Any
    PerAtom = Any
else:
    Parameter = Float[Array, ""] | dict[str, Float[Array, ""]]
    """One number, or numbers by species, pair or triplet."""
    PerAtom = Float[Array, "*atoms"] | dict[str, Float[Array, ""]]
    """One number, numbers by species, or one for each atom."""


class Parametric(Protocol):
    """Whatever has parameters by name: a potential, as modules below it know it."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def parameters(self) -> dict[str, Any]: ...


class Entries(dict[str, Any]):
    """Numbers by species, pair or triplet, which cannot be changed in place: what was relaxed with them would not know."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(
            "A parameter's entries cannot be set: ms.studies.with_values(potential, {'epsilon.A-B': 2.0}) is a copy with another "
            "value of one."
        )

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return Entries, (dict(self),)


jax.tree_util.register_pytree_with_keys(
    Entries,
    lambda entries: ([(jax.tree_util.DictKey(key), entries[key]) for key in sorted(entries)], tuple(sorted(entries))),
    lambda keys, values: Entries(zip(keys, values, strict=True)),
)


def as_parameter(value: Any, what: str) -> Any:
    """Return a number or array as an array of 64-bit floats, a dict with its keys in canonical order.

    Raises:
        InputError: `what` is no number, not finite, or has keys that do not fit together.
    """
    if isinstance(value, dict):
        return _canonical_dict({key: as_parameter(entry, f"{what}[{key!r}]") for key, entry in value.items()}, what)
    if isinstance(value, list | tuple) and not any(eqx.is_array(leaf) or isinstance(leaf, eqx.Module) for leaf in value):
        try:
            value = np.asarray(value, dtype=float)
        except (TypeError, ValueError):
            raise InputError(
                f"{what} is a list of other things than numbers: give an array, a dict by species, or, of a network, a tree of "
                "arrays to NetworkPotential."
            ) from None
    if isinstance(value, eqx.Module | list | tuple) or callable(value):
        if any(not eqx.is_inexact_array(leaf) for leaf in jax.tree.leaves(value)):
            raise InputError(f"{what} holds something that is no number: declare the field with mdsens.static().")
        return value
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jnp.inexact) and not is_concrete(value):
        return value
    if value is None or isinstance(value, str | bool):
        raise InputError(f"{what} is {value!r}, not a number: give a number, or declare the field with mdsens.static().")
    array = as_float_array(value, what)
    if is_concrete(array) and not np.isfinite(array).all():
        raise InputError(f"{what} is not finite: {value!r:.80}.")
    return array


def canonical_key(key: str) -> str:
    """Return a pair in alphabetic order, `"A-B"` of `"B-A"`; labels and triplets as they are."""
    parts = key.split("-")
    return "-".join(sorted(parts)) if len(parts) == 2 else key


def _canonical_dict(entries: dict[Any, Any], what: str) -> Entries:
    if bad := [key for key in entries if isinstance(key, str) and set(key) & set("./")]:
        raise InputError(f"{what} has the key {bad[0]!r}: a '.' or '/' cannot be told from a path.")
    if bad := [key for key in entries if not isinstance(key, str)]:
        raise InputError(f'{what} has the key {bad[0]!r}: keys are labels ("A"), pairs ("A-B") or triplets ("A-B-B").')
    if len({key.count("-") for key in entries}) > 1:
        raise InputError(f"{what} mixes labels, pairs and triplets as keys: {', '.join(entries)}.")
    result = {}
    for key in sorted(entries, key=canonical_key):
        if (name := canonical_key(key)) in result:
            raise InputError(f"{what} has the pair {name!r} twice, in both orders: give it once.")
        result[name] = entries[key]
    return Entries(result)


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by path as nested dicts: `{"a": {"b": 1}}` of `{"a.b": 1}`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[name] = value
    return tree


class Constant(eqx.Module):
    """A leaf of a user's tree that is no parameter (an activation function, None), in its place."""

    value: Any = eqx.field(static=True)


def as_tree(tree: Any, what: str) -> Any:
    """Return the tree with its leaves as arrays, and a `Constant` in place of what is no number."""

    def convert(path: Any, leaf: Any) -> Any:
        where = f"{what}{jax.tree_util.keystr(path)}"
        if leaf is None or isinstance(leaf, Constant | str | bool) or callable(leaf):
            return leaf if isinstance(leaf, Constant) else Constant(leaf)
        if not isinstance(leaf, float) and not (eqx.is_array_like(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)):
            raise InputError(f"{where} is no floating-point number, so no parameter: let the function hold it instead.")
        if is_concrete(leaf) and not np.isfinite(np.asarray(leaf, dtype=np.float64)).all():
            raise InputError(f"{where} is not finite.")
        # Weights that were trained in 32 bits are the same numbers in 64.
        return jnp.asarray(leaf, jnp.float64)

    return jax.tree_util.tree_map_with_path(convert, tree, is_leaf=lambda leaf: leaf is None or isinstance(leaf, Constant))


def without_constants(tree: Any) -> Any:
    """Return a tree that `as_tree` made as the user wrote it."""
    is_constant = lambda leaf: isinstance(leaf, Constant)  # noqa: E731
    return jax.tree.map(lambda leaf: leaf.value if is_constant(leaf) else leaf, tree, is_leaf=is_constant)
