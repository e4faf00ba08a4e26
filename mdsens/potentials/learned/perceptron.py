"""Small fully connected networks as dicts of arrays that files and `wrt` can name: `{"W1": ..., "b1": ..., "W2": ...}`."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mdsens.common.errors import InputError, did_you_mean
from mdsens.potentials.species import Atom

Network = dict[str, Float[Any, "..."]]

ACTIVATIONS = {"tanh": jnp.tanh, "softplus": jax.nn.softplus, "silu": jax.nn.silu, "gaussian": lambda x: jnp.exp(-0.5 * x * x)}
"""Functions of hidden units, all smooth."""


def random_network(sizes: Sequence[int], rng: np.random.Generator) -> Network:
    """Return layers of these sizes, inputs first, with weights of variance 1/inputs and no biases (LeCun's initial state)."""
    network = {}
    for k, (inputs, outputs) in enumerate(itertools.pairwise(sizes), start=1):
        network[f"W{k}"] = rng.normal(size=(outputs, inputs)) / np.sqrt(inputs)
        network[f"b{k}"] = np.zeros(outputs)
    return network


def depth(network: Network) -> int:
    """Return the number of layers."""
    return len(network) // 2


def evaluate(network: Network, x: Float[Array, "inputs ..."], activation: str) -> Float[Array, "outputs ..."]:
    """Return W_n a(... a(W₁ x + b₁) ...) + b_n, inputs along the first axis."""
    layers = depth(network)
    for k in range(1, layers + 1):
        x = jnp.tensordot(network[f"W{k}"], x, 1) + network[f"b{k}"].reshape(-1, *[1] * (x.ndim - 1))
        x = ACTIVATIONS[activation](x) if k < layers else x
    return x


def select_by_species(i: Atom, value: Callable[[str], Array]) -> Float[Array, ""]:
    """Return `value(label)` for the species of the atom i."""
    first, *others = i.labels
    chosen = value(first)
    for code, label in enumerate(others, start=1):
        chosen = jnp.where(i.code == code, value(label), chosen)
    return chosen


def check_activation(activation: str, what: str) -> None:
    """Raise InputError for a function that is not known."""
    if activation not in ACTIVATIONS:
        raise InputError(f"{what}'s activation {activation!r} is not known.{did_you_mean(str(activation), ACTIVATIONS)}")


def check_network(network: Network, what: str, *, inputs: int, outputs: int | None = None) -> int:
    """Return the number of outputs, or raise InputError for a network whose layers do not fit together."""
    layers = depth(network) if isinstance(network, dict) else 0
    if not layers or set(network) != {f"{kind}{k}" for kind in "Wb" for k in range(1, layers + 1)}:
        raise InputError(f"{what} must be a dict of the layers' weights and biases, {{'W1': ..., 'b1': ..., 'W2': ...}}.")
    size = inputs
    for k in range(1, layers + 1):
        weight, bias = np.shape(network[f"W{k}"]), np.shape(network[f"b{k}"])
        if len(weight) != 2 or weight[1] != size or bias != weight[:1]:
            raise InputError(
                f"{what} does not fit together: layer {k} has {size} inputs, weights {weight} and biases {bias}; "
                "W is (outputs, inputs)."
            )
        size = weight[0]
    if outputs is not None and size != outputs:
        raise InputError(f"{what} has {size} outputs, not {outputs}.")
    return size
