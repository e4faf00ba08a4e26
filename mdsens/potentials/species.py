"""`Atom`, the handle that parameters by species are looked up with, and `static`, a field that is no parameter."""

import dataclasses
from typing import Any

import equinox as eqx
from jaxtyping import Array


def static(default: Any = dataclasses.MISSING) -> Any:
    """A field of a potential that is no parameter: a cutoff, an integer exponent, the name of a switch."""
    return eqx.field(static=True, default=default) if default is not dataclasses.MISSING else eqx.field(static=True)


class Atom(eqx.Module):
    """The handle of an atom in `pair_energy` and `site_energy`: its index and the code of its species."""

    index: Array
    code: Array
    labels: tuple[str, ...] = eqx.field(static=True)
    n_atoms: int = eqx.field(static=True)
