"""What energies of other programs have in common as potentials."""

from typing import Any, ClassVar

import numpy as np
from jaxtyping import Array, Float

from mdsens.potentials.base import Potential


class WrappedEnergy(Potential):
    """An energy of the whole system, not known as a sum over listed neighbours; nothing is promised of it.

    `potential.sigma` reads a parameter, one of `values`.
    """

    local: ClassVar = False

    values: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        # Reached only where there is no such field: the parameters read like any other potential's.
        if name != "values" and name in (values := self.__dict__.get("values", {})):
            return values[name]
        raise AttributeError(f"This {type(self).__name__} has no parameter {name!r}.")

    def parameters(self) -> dict[str, Any]:
        return self.values

    @property
    def range(self) -> Float[Array, ""]:
        return np.asarray(np.inf)  # type: ignore[return-value]  # a constant of every trace

    @property
    def smoothness(self) -> float:
        return -1
