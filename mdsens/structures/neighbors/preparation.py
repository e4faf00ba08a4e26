"""`Preparation`: the base class of neighbour lists, and of what other energies need in their place."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class Preparation(eqx.Module):
    """A neighbour list, or what an energy needs in its place: `system.neighbors`, made by a potential's `find_neighbors`.

    The methods of this base class suit an energy that needs nothing prepared: nothing goes stale. A range is one number [Å],
    or one for each term of a sum. All methods work on tracers.
    """

    @property
    def hides_cell(self) -> bool:
        """Whether the energy knows nothing of the system's cell, which then cannot be strained."""
        return False

    def slack(self, interaction_range: Any, stretch: Any = 1.0) -> Float[Array, ""]:
        """Return how far it reaches beyond the range [Å], if all lengths were multiplied by `stretch`."""
        return jnp.asarray(jnp.inf)

    def is_stale(self, positions: Float[Array, "atoms dim"], interaction_range: Any) -> Bool[Array, ""]:
        """Return whether, in the same cell, it is no longer right at these positions."""
        return jnp.asarray(False)

    def reaches(self, interaction_range: Any) -> Bool[Array, ""] | bool:
        """Return whether it holds all pairs within this range, at the positions that it was made for."""
        return True
