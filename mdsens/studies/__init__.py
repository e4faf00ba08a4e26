"""Studies: sweeps, tables of sensitivities, error bars, fits and paths of equilibria; as functions and as `mdsens run`.

Each takes structures or equilibria and observables `g(system, potential)` by name, `{"C44": ..., "a": ...}`. Where a study
needs several structures together, `Of(g, "vacancy")` says of which an observable is, and `Of(g, {"defect": "vacancy",
"bulk": "crystal"})` hands it several.
"""

from typing import TYPE_CHECKING

from mdsens.common.suggestions import unknown_names
from mdsens.studies.methods.calibration import calibrate, inverse_design
from mdsens.studies.methods.continuation import Continuation, continuation
from mdsens.studies.methods.fits import Calibration, Target
from mdsens.studies.methods.global_indices import GlobalIndices, global_indices
from mdsens.studies.methods.observed import Of
from mdsens.studies.methods.parameters import with_values
from mdsens.studies.methods.sensitivity_table import SensitivityTable, sensitivity_table
from mdsens.studies.methods.sweep import Point, Sweep, sweep
from mdsens.studies.methods.uncertainty import Sampling, Uncertainty, uncertainty

__all__ = [
    "Calibration",
    "Continuation",
    "GlobalIndices",
    "Of",
    "Point",
    "Sampling",
    "SensitivityTable",
    "Sweep",
    "Target",
    "Uncertainty",
    "calibrate",
    "continuation",
    "global_indices",
    "inverse_design",
    "sensitivity_table",
    "sweep",
    "uncertainty",
    "with_values",
]


def __dir__() -> list[str]:
    return sorted(__all__)


if not TYPE_CHECKING:
    __getattr__ = unknown_names(__name__, __all__)
