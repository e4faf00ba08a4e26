"""Parameters of an atom, its bond and another neighbour, for potentials of several species.

They are numbers for one species; for several, numbers or dicts by the ordered triplet i-j-k (`"Si-C-C"`), LAMMPS's entries of
a file, where the parameters of a bond ij have the entries i-j-j alone.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mdsens.common.errors import InputError
from mdsens.potentials.base import Potential
from mdsens.potentials.checks import check_number, entries
from mdsens.potentials.parameters import Parameter


def check_triplets(potential: Potential, bond: tuple[str, ...]) -> None:
    """Raise InputError for arrays, keys that are not of triplets, and keys of the parameters `bond` that have no effect."""
    for name in potential.parameters():
        for key, where, value in entries(potential, name):
            check_number(where, value)
            if key is not None:
                check_key(key, where, bond=name in bond)


def check_key(key: str, where: str, *, bond: bool) -> None:
    """Raise InputError for a key that is not of a triplet, or not of a bond where it must be."""
    if key.count("-") != 2:
        raise InputError(f'{where} is not of a triplet: keys are like "Si-C-C", the atom, its bond and another neighbour.')
    if bond and not is_bond(key):
        raise InputError(f"{where} would have no effect: a parameter of a bond has entries i-j-j only, so leave it out.")


def is_bond(key: str) -> bool:
    """Return whether a triplet is i-j-j."""
    return key.split("-")[1] == key.split("-")[2]


def check_species(
    potential: Potential,
    names: Sequence[str],
    bond: tuple[str, ...],
    others: Mapping[str, Any],
    leaf: Callable[[str, str], str] = lambda name, key: key,
) -> None:
    """Raise InputError for species that a potential has no parameters for.

    Args:
        bond: parameters that need the entries i-j-j only.
        others: tables that are not parameters, by name.
        leaf: `leaf(name, key)` is the key under which a parameter keeps an entry.
    """
    tables = {name: table for name, table in {**potential.parameters(), **others}.items() if isinstance(table, dict)}
    kind = type(potential).__name__
    if len(names) > 1 and not tables:
        raise InputError(
            f"This {kind} potential is for one species, but the system has {', '.join(names)}: "
            "give its parameters as dicts by triplets, or read several elements from a file."
        )
    for name, table in tables.items():
        for triplet in itertools.product(names, repeat=3):
            key = leaf(name, "-".join(triplet))
            if key not in table and not (name in bond and not is_bond(key)):
                raise InputError(
                    f"{kind}.{name} has no entry {key!r}, but the system has the species {', '.join(names)}: add {name}[{key!r}]."
                )


def largest_value(function: Callable[..., Any], x: Parameter, y: Parameter) -> Float[Array, ""]:
    """Return the largest `function(x, y)` over the entries of two parameters."""
    shared = [key for key in x if key in y] if isinstance(x, dict) and isinstance(y, dict) else []
    pairs = [(x[key], y[key]) for key in shared] or itertools.product(jax.tree.leaves(x), jax.tree.leaves(y))
    values = [function(a, b) for a, b in pairs]
    return values[0] if len(values) == 1 else jnp.max(jnp.stack(values))


def as_exponents(
    value: Any, convert: Callable[[Any], Any], where: str, form: str, *, bond: bool, leaf: Callable[[str], str] = lambda key: key
) -> Any:
    """Return a static exponent as `convert(number)`, or as sorted pairs of triplets and these, however they were written.

    Args:
        convert: makes a number an exponent; raises ValueError where it cannot be one.
        where, form: what it is called and what it may be, for messages.
        leaf: `leaf(key)` is the key under which an entry is kept.

    Raises:
        InputError: anything else.
    """
    try:
        if not isinstance(value, dict | list | tuple):
            return convert(value)
        pairs = {str(key): convert(number) for key, number in (value.items() if isinstance(value, dict) else value)}
    except (TypeError, ValueError):
        raise InputError(f'{where} must be {form}, or pairs like (("Si-Si-Si", 3), ...), not {value!r:.80}.') from None
    for key in pairs:
        check_key(key, f"{where}[{key!r}]", bond=bond)
    return tuple(sorted({leaf(key): number for key, number in pairs.items()}.items()))
