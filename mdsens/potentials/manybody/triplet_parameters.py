"""Parameters of an atom, its bond and another neighbour, for potentials of several species.

Numbers for one species; for several, numbers or dicts by the ordered triplet i-j-k (`"Si-C-C"`), LAMMPS's entries of a file,
where what is of a bond ij has the entries i-j-j alone.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mdsens.common.errors import InputError
from mdsens.potentials.base import Potential
from mdsens.potentials.checks import check_number, entries
from mdsens.potentials.parameters import Parameter


def check_triplets(potential: Potential, bond: tuple[str, ...]) -> None:
    """Refuse arrays, keys that are not of triplets, and those without effect of the parameters `bond`.

    Raises:
        InputError: naming the parameter and its entry.
    """
    for name in potential.parameters():
        for key, where, value in entries(potential, name):
            check_number(where, value)
            if key is not None:
                check_key(key, where, bond=name in bond)


def check_key(key: str, where: str, *, bond: bool) -> None:
    """Raises InputError."""
    if key.count("-") != 2:
        raise InputError(f'{where} is not of a triplet: keys are like "Si-C-C", the atom, its bond and another neighbour.')
    if bond and not is_bond(key):
        raise InputError(f"{where} would have no effect: a parameter of a bond has entries i-j-j only, so leave it out.")


def is_bond(key: str) -> bool:
    """Whether it is i-j-j."""
    return key.split("-")[1] == key.split("-")[2]


def check_species(
    potential: Potential, names: Any, bond: tuple[str, ...], leaf: Any = lambda name, key: key, **more: Any
) -> None:
    """Refuse species that a potential has no parameters for.

    Args:
        bond: parameters that need the entries i-j-j only.
        leaf: `leaf(name, key)` is the key under which a parameter keeps an entry.
        more: tables that are not parameters, by name.

    Raises:
        InputError: naming the entry that is missing.
    """
    tables = {name: table for name, table in (potential.parameters() | more).items() if isinstance(table, dict)}
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


def largest(function: Callable[..., Any], x: Parameter, y: Parameter) -> Float[Array, ""]:
    """The largest `function(x, y)` over the entries of two parameters."""
    shared = [key for key in x if key in y] if isinstance(x, dict) and isinstance(y, dict) else []
    pairs = [(x[key], y[key]) for key in shared] or itertools.product(jax.tree.leaves(x), jax.tree.leaves(y))
    values = [function(a, b) for a, b in pairs]
    return values[0] if len(values) == 1 else jnp.max(jnp.stack(values))


def exponents(value: Any, one: Any, where: str, wanted: str, *, bond: bool, leaf: Any = lambda key: key) -> Any:
    """A static exponent: `one(number)`, or the sorted pairs of triplets and these, however they were written.

    Args:
        one: what a number becomes; raises ValueError for one that cannot be.
        where, wanted: what it is called and what it may be, for messages.
        leaf: the key under which an entry is kept.

    Raises:
        InputError: anything else.
    """
    try:
        if not isinstance(value, dict | list | tuple):
            return one(value)
        pairs = {str(key): one(number) for key, number in (value.items() if isinstance(value, dict) else value)}
    except (TypeError, ValueError):
        raise InputError(f'{where} must be {wanted}, or pairs like (("Si-Si-Si", 3), ...), not {value!r:.80}.') from None
    for key in pairs:
        check_key(key, f"{where}[{key!r}]", bond=bond)
    return tuple(sorted({leaf(key): number for key, number in pairs.items()}.items()))
