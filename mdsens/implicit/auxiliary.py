"""A tangent for outputs of a solver that have no derivative.

The report beside a solver's answer (a status, a number of steps, an error estimate) comes from iterations that are not
differentiated, and a zero derivative would be wrong. So a floating-point report gets a tangent that refuses: reverse mode
raises as soon as a gradient asks for it; forward mode, which cannot know who will use it, carries NaN.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

from mdsens.common.errors import InputError

_REFUSED = Primitive("mdsens_refused_tangent")
"""scalar ↦ NaN of a shape; linear, so that it can be transposed, and its transpose raises."""


def refuse_tangent(leaf: jax.Array, tangents: Any) -> jax.Array | np.ndarray:
    """Return a refusing tangent, tied to those of the inputs; leaves that are no floating-point numbers get JAX's own zero."""
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return np.zeros(leaf.shape, jax.dtypes.float0)
    moving = [t for t in jax.tree.leaves(tangents) if jnp.issubdtype(jnp.result_type(t), jnp.inexact)]
    if not moving:
        return jnp.zeros_like(leaf)
    return _REFUSED.bind(sum(jnp.sum(t) for t in moving), shape=leaf.shape, dtype=leaf.dtype)


def _nan(probe: Array, *, shape: Any, dtype: Any) -> Array:
    return jnp.full(shape, jnp.nan, dtype)


def _transpose(cotangent: Any, probe: Any, *, shape: Any, dtype: Any) -> list[Any]:
    if type(cotangent) is ad.Zero:
        return [ad.Zero(probe.aval)]
    raise InputError(
        "An auxiliary output of the solver is differentiated, but only the answer has a derivative: compute what you "
        "need from the answer, h(solve(z0, *args), *args), or stop it with jax.lax.stop_gradient."
    )


def _jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...], **shape: Any) -> tuple[Any, Any]:
    probe, moved = primals[0], tangents[0]
    moved = jnp.zeros_like(probe) if type(moved) is ad.Zero else moved
    return _REFUSED.bind(probe, **shape), _REFUSED.bind(moved, **shape)


def _batch(probes: Any, axes: Any, *, shape: Any, dtype: Any) -> tuple[Any, int]:
    size = probes[0].shape[axes[0]]
    return _REFUSED.bind(jnp.sum(probes[0]), shape=(size, *shape), dtype=dtype), 0


_REFUSED.def_impl(_nan)
_REFUSED.def_abstract_eval(lambda probe, *, shape, dtype: jax.core.ShapedArray(shape, dtype))
ad.primitive_jvps[_REFUSED] = _jvp
ad.primitive_transposes[_REFUSED] = _transpose
batching.primitive_batchers[_REFUSED] = _batch
mlir.register_lowering(_REFUSED, mlir.lower_fun(_nan, multiple_results=False))
