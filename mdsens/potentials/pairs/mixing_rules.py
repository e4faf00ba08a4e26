"""Rules by which ε and σ of a pair follow from those of its two species, LAMMPS's `pair_modify mix`.

A potential with a static field `mixing` takes the name of one; its ε and σ are then one number each, keyed by the species,
or one value per atom, and these are its parameters.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mdsens.common.errors import InputError, did_you_mean
from mdsens.potentials.base import Potential
from mdsens.potentials.checks import check_positive
from mdsens.potentials.species import Atom

RULES: dict[str, Callable[[Array, Array], Array]] = {
    "arithmetic": lambda x, y: 0.5 * (x + y),
    "geometric": lambda x, y: jnp.sqrt(x * y),
    "sixthpower": lambda x, y: (0.5 * (x**6 + y**6)) ** (1.0 / 6.0),
}
"""Means of lengths by the rule's name. `"arithmetic"` is Lorentz and Berthelot's rule, `"sixthpower"` Waldman and Hagler's
(doi:10.1002/jcc.540140909)."""


def pair_coefficients(potential: Potential, i: Atom, j: Atom) -> tuple[Array, Array]:
    """Return ε and σ of a pair: as given for pairs, or mixed."""
    if potential.mixing is None:
        return potential.pair(potential.epsilon, i, j), potential.pair(potential.sigma, i, j)
    sigmas = potential.one(potential.sigma, i), potential.one(potential.sigma, j)
    epsilon = RULES["geometric"](potential.one(potential.epsilon, i), potential.one(potential.epsilon, j))
    sigma = RULES[potential.mixing](*sigmas)
    if potential.mixing == "sixthpower":
        epsilon = epsilon * (sigmas[0] * sigmas[1]) ** 3 / sigma**6
    return epsilon, sigma


def pair_exponent(potential: Potential, exponent: Any, i: Atom, j: Atom) -> Array:
    """Return an exponent of a pair: as given for pairs, or mixed as lengths are."""
    if potential.mixing is None:
        return potential.pair(exponent, i, j)
    return RULES[potential.mixing](potential.one(exponent, i), potential.one(exponent, j))


def check_mixing(potential: Potential, *names: str) -> None:
    """Refuse an unknown rule, and parameters that do not fit together with or without one.

    Raises:
        InputError: naming what to change.
    """
    kind, rule = type(potential).__name__, potential.mixing
    if rule is not None and rule not in RULES:
        raise InputError(f"{kind} has no mixing rule {rule!r}.{did_you_mean(str(rule), RULES)}")
    for name in names:
        value = getattr(potential, name)
        dashes = {key.count("-") for key in value} if isinstance(value, dict) else set()
        if rule is None and 0 in dashes:
            raise InputError(
                f"{kind}.{name} is keyed by species: key it by pairs, like 'A-A', or say how species mix, mixing='arithmetic'."
            )
        if rule is not None and dashes - {0}:
            raise InputError(f"{kind} mixes values of species, and its {name} is keyed by pairs: leave one of them out.")
        if rule is not None and any(np.ndim(leaf) > (not dashes) for leaf in jax.tree.leaves(value)):
            raise InputError(f"{kind}.{name} must be one number, a dict by species, or one value per atom.")
    if rule is not None:
        check_positive(potential, *names)
