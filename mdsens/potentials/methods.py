"""The methods that a subclass of a potential gives, with words for what goes wrong in them."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from mdsens.common.errors import InputError, explain_untraceable
from mdsens.potentials.parameters import Parametric

PAIR_ENERGY, SITE_ENERGY = "pair_energy(r, i, j)", "site_energy(d, i, j, mask)"
DENSITY, EMBEDDING = "density(r, i, j)", "embedding(rho, i)"
"""What the classes of potentials ask of a subclass."""


def number(potential: Parametric, method: str) -> Callable[..., Array]:
    """`method(...)` of a potential, `"pair_energy(r, i, j)"` say, which returns one number.

    Raises:
        InputError: when it is traced, naming the method, where JAX cannot trace it or it returns something else.
    """
    name = method.partition("(")[0]
    where, given, form = f"{type(potential).__name__}.{name}", getattr(potential, name), f"{method} -> number"
    if any(isinstance(value, dict) for value in potential.parameters().values()):
        form += ", which looks up dicts by self.one, self.pair or self.triplet"

    def called(*arguments: Any) -> Array:
        with explain_untraceable(where, form):
            value = given(*arguments)
        if value is None:
            raise InputError(f"{where} returns nothing: it must end with `return` and one number.")
        if shape := jnp.shape(value):
            raise InputError(f"{where} must return one number, not an array of shape {shape}: sum over what is left.")
        return jnp.asarray(value)

    return called


def missing(potential: Parametric, method: str, what: str) -> NotImplementedError:
    """For a method that a subclass must give and does not."""
    return NotImplementedError(f"{type(potential).__name__} has no method {method}, {what}.")
