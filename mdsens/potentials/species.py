"""`Atom`, with which parameters by species are looked up, and `static`, which makes a field that is no parameter."""

import dataclasses
from typing import Any

import equinox as eqx
from jaxtyping import Array


def static(default: Any = dataclasses.MISSING) -> Any:
    """Declare a field of a potential that is no parameter, a cutoff or an integer exponent: `n: int = ms.static(12)`."""
    return eqx.field(static=True, **({} if default is dataclasses.MISSING else {"default": default}))


class Atom(eqx.Module):
    """The handle of an atom, or of an array of atoms, in `pair_energy` and `site_energy`.

    Attributes:
        index: its number in the system.
        code: its species, as a place in `labels`.
        labels: the names of all species of the system.
        n_atoms: how many atoms the system has.
    """

    index: Array
    code: Array
    labels: tuple[str, ...] = eqx.field(static=True)
    n_atoms: int = eqx.field(static=True)
