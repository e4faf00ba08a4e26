"""The methods that a subclass of a potential gives, with words for what goes wrong in them."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from mdsens.common.errors import InputError, explain_untraceable
from mdsens.potentials.parameters import Parametric

PAIR_ENERGY, SITE_ENERGY = "pair_energy(r, i, j)", "site_energy(d, i, j, mask)"
DENSITY, EMBEDDING = "density(r, i, j)", "embedding(rho, i)"


class MissingMethod(NotImplementedError):
    """A subclass of a potential lacks a method that it must give."""

    def __init__(self, potential: Parametric, method: str, meaning: str) -> None:
        super().__init__(f"{type(potential).__name__} has no method {method}, {meaning}.")


def scalar_method(potential: Parametric, method: str) -> Callable[..., Array]:
    """Return a method of a potential, `"pair_energy(r, i, j)"` say, made to refuse anything but one number as its value.

    Raises:
        InputError: when it is traced, naming the method, where JAX cannot trace it or it returns something else.
    """
    name = method.partition("(")[0]
    where, function, form = f"{type(potential).__name__}.{name}", getattr(potential, name), f"{method} -> number"
    if any(isinstance(value, dict) for value in potential.parameters().values()):
        form += ", which looks up dicts by self.one, self.pair or self.triplet"

    def checked(*arguments: Any) -> Array:
        with explain_untraceable(where, form):
            value = function(*arguments)
        if value is None:
            raise InputError(f"{where} returns nothing: it must end with `return` and one number.")
        if shape := jnp.shape(value):
            raise InputError(f"{where} must return one number, not an array of shape {shape}: sum over what is left.")
        return jnp.asarray(value)

    return checked
