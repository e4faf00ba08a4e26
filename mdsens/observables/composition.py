"""Amounts of reference structures that have the composition of a structure."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mdsens.common.errors import InputError
from mdsens.structures.system import System, is_concrete

IMBALANCE = 1e-9
"""Share of an atom, and of the references' largest singular value, that counts as zero."""


def reference_amounts(system: System, references: Sequence[System], name: str) -> Float[Array, " references"]:
    """Return the number of copies x_r of each reference with Σ_r x_r n_r = n for every species, n being numbers of atoms.

    Inside `jit` numbers of atoms have no values, and amounts that do not balance are NaN.

    Args:
        name: name of the observable, for messages.

    Raises:
        InputError: a species that no reference has, more references than species, or amounts that cannot be found.
    """
    labels = sorted({label for reference in references for label in reference.labels})
    if missing := [label for label in system.labels if label not in labels]:
        raise InputError(f"{name} has no reference that holds the species {missing[0]} of the structure: add one.")
    if len(references) > len(labels):
        raise InputError(
            f"{name} has {len(references)} references for {len(labels)} species ({', '.join(labels)}), so that more than one "
            "combination of them has the structure's composition: leave one out."
        )
    matrix = jnp.stack([_counts(reference, labels) for reference in references], axis=1)
    atoms = _counts(system, labels)
    amounts = jnp.linalg.pinv(matrix) @ atoms
    balanced = jnp.max(jnp.abs(matrix @ amounts - atoms)) < IMBALANCE * len(system)
    singular = jnp.linalg.svd(matrix, compute_uv=False)
    unique = singular[-1] > IMBALANCE * singular[0]
    if is_concrete(matrix, atoms):
        if not unique:
            raise InputError(f"{name} has references of the same composition: leave one out.")
        if not balanced:
            counted = ", ".join(f"{int(n)} {label}" for n, label in zip(np.asarray(atoms), labels, strict=True))
            raise InputError(
                f"No combination of {name}'s references has the structure's composition ({counted}): add a reference."
            )
    return jnp.where(balanced & unique, amounts, jnp.nan).astype(system.positions.dtype)


def state_named(states: Mapping[str, System], state: str, name: str) -> System:
    """Return one of an observable's states; raise InputError where it is missing."""
    if not isinstance(states, Mapping) or state not in states:
        argument = ", ".join(map(repr, states)) if isinstance(states, Mapping) else type(states).__name__
        raise InputError(f"{name} wants a dict of states with the key {state!r}, not {argument}.")
    return states[state]


def _counts(system: System, labels: Sequence[str]) -> Float[Array, " labels"]:
    """Numbers of atoms of each label."""
    codes = jnp.asarray([system.labels.index(label) if label in system.labels else -1 for label in labels])
    return jnp.sum(system.species[None, :] == codes[:, None], axis=1).astype(jnp.result_type(float))
