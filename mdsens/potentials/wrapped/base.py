"""`WrappedEnergy`: the base class of energies of other programs."""

from typing import Any, ClassVar

import numpy as np
from jaxtyping import Array, Float

from mdsens.potentials.base import Potential, constant_range


class WrappedEnergy(Potential):
    """An energy of the whole system that is not known as a sum over listed neighbours, or to be smooth.

    `potential.sigma` reads a parameter, one of `values`.
    """

    local: ClassVar = False

    values: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        # Called only where there is no such field: the parameters read like any other potential's.
        if name != "values" and name in (values := self.__dict__.get("values", {})):
            return values[name]
        raise AttributeError(f"This {type(self).__name__} has no parameter {name!r}.")

    def parameters(self) -> dict[str, Any]:
        return self.values

    @property
    def range(self) -> Float[Array, ""]:
        return constant_range(np.inf)
