"""Pictures. Each function draws into `ax`, or into new axes, says what its colours and scales mean, and returns the axes."""

from typing import TYPE_CHECKING

from mdsens.common.suggestions import unknown_names
from mdsens.plot.bands import phonons
from mdsens.plot.charts import bars, chain, convergence, cost, elastic_sensitivity, heat_map, influence, prediction, validity
from mdsens.plot.drawing import COLOURS
from mdsens.plot.structures import crystal, packing, slab

__all__ = [
    "COLOURS",
    "bars",
    "chain",
    "convergence",
    "cost",
    "crystal",
    "elastic_sensitivity",
    "heat_map",
    "influence",
    "packing",
    "phonons",
    "prediction",
    "slab",
    "validity",
]


def __dir__() -> list[str]:
    return sorted(__all__)


if not TYPE_CHECKING:
    __getattr__ = unknown_names(__name__, __all__)
