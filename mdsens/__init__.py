"""mdsens: from a structure and an interatomic potential to the derivative of its equilibrium, in one call.

Everything a user needs is listed below and loaded on first use, so that `import mdsens` costs what `import jax` costs.
"""

import importlib
import os
from typing import Any

if os.environ.get("MDSENS_KEEP_COMPILED", "1") not in ("", "0"):
    # XLA holds some of its own compiler's settings against the processor's features, finds them missing, and says at length
    # that what it kept may not run. Programs are kept by processor here, so that it is never so.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax

from mdsens.common.compilation import keep_by_default
from mdsens.common.version import VERSION

# The one global that JAX forces on us: equilibria polished to 1e-12 need 64-bit numbers.
jax.config.update("jax_enable_x64", True)

__version__ = VERSION

_PUBLIC = {
    # structures and potentials
    "System": "mdsens.structures.system",
    "read": "mdsens.structures.reading",
    "Potential": "mdsens.potentials",
    "PairPotential": "mdsens.potentials",
    "SitePotential": "mdsens.potentials",
    "SoftSphere": "mdsens.potentials",
    "LennardJones": "mdsens.potentials",
    "Mie": "mdsens.potentials",
    "WeeksChandlerAndersen": "mdsens.potentials",
    "Morse": "mdsens.potentials",
    "Buckingham": "mdsens.potentials",
    "BornMayerHuggins": "mdsens.potentials",
    "Yukawa": "mdsens.potentials",
    "ZBL": "mdsens.potentials",
    "HarmonicBonds": "mdsens.potentials",
    "StillingerWeber": "mdsens.potentials",
    "EmbeddedPotential": "mdsens.potentials",
    "EAM": "mdsens.potentials",
    "FinnisSinclair": "mdsens.potentials",
    "Gupta": "mdsens.potentials",
    "ZhouJohnsonWadley": "mdsens.potentials",
    "Tersoff": "mdsens.potentials",
    "BehlerParrinello": "mdsens.potentials",
    "DeepSets": "mdsens.potentials",
    "NetworkPotential": "mdsens.potentials",
    "GraphPotential": "mdsens.potentials",
    "SNAP": "mdsens.potentials",
    "JaxMD": "mdsens.potentials",
    "from_ase": "mdsens.potentials",
    "Coulomb": "mdsens.potentials",
    "Ewald": "mdsens.potentials",
    "Sum": "mdsens.potentials",
    "fixed": "mdsens.potentials",
    "tied": "mdsens.potentials",
    "reparameterised": "mdsens.potentials",
    "static": "mdsens.potentials",
    # equilibria
    "FIRE": "mdsens.solvers",
    "FixedPoint": "mdsens.solvers",
    "LBFGS": "mdsens.solvers",
    "MinimumMode": "mdsens.solvers",
    "Newton": "mdsens.solvers",
    "TruncatedNewton": "mdsens.solvers",
    "Status": "mdsens.solvers",
    "relax": "mdsens.equilibrium.relaxations",
    "Equilibrium": "mdsens.equilibrium.relaxation",
    "equilibrium_positions": "mdsens.equilibrium.positions",
    "find_saddle": "mdsens.equilibrium.saddle",
    "nudged_chain": "mdsens.equilibrium.elastic_band",
    "Calculator": "mdsens.potentials.ase_calculator",
    # derivatives
    "Sensitivity": "mdsens.derivatives.sensitivities",
    "Certificate": "mdsens.derivatives.certificate",
    "sensitivity": "mdsens.derivatives.sensitivities",
    "gradient": "mdsens.derivatives.first_order",
    "value_and_gradient": "mdsens.derivatives.first_order",
    "jacobian": "mdsens.derivatives.first_order",
    "value_and_jacobian": "mdsens.derivatives.first_order",
    "jvp": "mdsens.derivatives.first_order",
    "pressure_derivative": "mdsens.derivatives.by_load",
    "strain_derivative": "mdsens.derivatives.by_load",
    "hessian": "mdsens.mechanics.hessian_matrix",
    "hessian_vector": "mdsens.derivatives.second_order",
    "taylor": "mdsens.derivatives.second_order",
    "validity": "mdsens.derivatives.extrapolation",
    "extrapolate": "mdsens.derivatives.extrapolation",
    # files
    "save": "mdsens.files.state_files",
    "load": "mdsens.files.state_files",
    # compiled code
    "keep_compiled": "mdsens.common.compilation",
    # what can go wrong
    "MdsensError": "mdsens.common.errors",
    "BatchError": "mdsens.common.errors",
    "InputError": "mdsens.common.errors",
    "ConvergenceError": "mdsens.common.errors",
    "LinearSolveError": "mdsens.common.errors",
    "StoreError": "mdsens.common.errors",
}
_MODULES = {
    "constraints": "mdsens.equilibrium.constraints",
    "electrostatics": "mdsens.equilibrium.with_charges",
    "export": "mdsens.studies.export",
    "implicit": "mdsens.implicit",
    "observables": "mdsens.observables",
    "plot": "mdsens.plot",
    "potentials": "mdsens.potentials",
    "solvers": "mdsens.solvers",
    "studies": "mdsens.studies",
    "testing": "mdsens.testing",
}

__all__ = ["__version__", *_PUBLIC, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(_MODULES[name])
    else:
        from mdsens.common.suggestions import unknown_attribute

        raise unknown_attribute("mdsens", name, __all__)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


if os.environ.get("MDSENS_KEEP_COMPILED", "1") not in ("", "0"):
    keep_by_default()
