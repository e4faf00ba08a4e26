"""Solvers of z = T(z) by the name of their method."""

import dataclasses
from typing import Any

from mdsens.common.errors import InputError, did_you_mean
from mdsens.solvers.dynamics import DampedDynamics
from mdsens.solvers.mixing import Anderson, Picard

Method = type[Picard] | type[Anderson] | type[DampedDynamics]
METHODS: dict[str, Method] = {"picard": Picard, "anderson": Anderson, "damped dynamics": DampedDynamics}


def FixedPoint(method: str = "anderson", **settings: Any) -> Picard | Anderson | DampedDynamics:
    """Return settings of a fixed-point solver: `FixedPoint("picard", damping=0.5)` is `Picard(damping=0.5)`.

    Raises:
        InputError: an unknown method, settings that it does not have or that are out of their range.
    """
    if method not in METHODS:
        raise InputError(f"There is no fixed-point method {method!r}.{did_you_mean(str(method), METHODS)}")
    known = [field.name for field in dataclasses.fields(METHODS[method])]
    if unknown := [name for name in settings if name not in known]:
        raise InputError(f"The fixed-point method {method!r} has no setting {unknown[0]!r}.{did_you_mean(unknown[0], known)}")
    return METHODS[method](**settings)
