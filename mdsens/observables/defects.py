"""Volumes and elastic dipoles of point defects.

Each compares a state "defect" with a state "bulk": `ms.value_and_gradient(g, {"defect": eq, "bulk": crystal})`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from mdsens.common.errors import InputError
from mdsens.common.units import stress_unit
from mdsens.common.voigt import from_voigt, to_voigt
from mdsens.observables.composition import reference_amounts, state_named
from mdsens.observables.energetics import other_states
from mdsens.potentials.base import Potential
from mdsens.structures.system import System, is_concrete

LATTICE_MISFIT = 1e-6
"""Distance from integers that the multiples of bulk cell vectors in the defect's cell may have."""


def formation_volume(states: Mapping[str, System], potential: Potential) -> Float[Array, ""]:
    """Volume of the state "defect" above that of as many atoms of the other states [Å³, in 2-D Å²].

    V_f = V_d - (N_d / N_b) V_b, for cells that were relaxed at the same pressure: the derivative of the formation enthalpy
    in the pressure. For a vacancy it is the volume of an atom plus the relaxation volume.

    Raises:
        InputError: no state "defect", references that cannot have its composition, or no cell.
    """
    defect = state_named(states, "defect", "formation_volume")
    references = other_states(states, "defect", "formation_volume")
    amounts = reference_amounts(defect, references, "formation_volume")
    return defect.volume - amounts @ jnp.stack([reference.volume for reference in references])


def dipole_tensor(states: Mapping[str, System], potential: Potential) -> Float[Array, "dim dim"]:
    """Elastic dipole tensor of a defect, in a supercell of the bulk's cell [eV].

        P_ij = -V_d (σ_ij of "defect" - σ_ij of "bulk"),

    σ being positive in tension. Positive for a defect that pushes its surroundings apart: relaxed at zero stress the cell
    grows by tr(P) / (3 K) in a cubic or isotropic crystal of bulk modulus K (`relaxation_volume`). E. Clouet, C. Varvenne,
    T. Jourdan, Comput. Mater. Sci. 147, 49 (2018), the residual stress method.

    Raises:
        InputError: a state is missing, the cell of the defect is no supercell of the bulk's, or as `stress`.
    """
    defect, bulk = (state_named(states, state, "dipole_tensor") for state in ("defect", "bulk"))
    excess = (potential.stress(defect) - potential.stress(bulk)) / stress_unit(defect.dim)
    repeats = jax.lax.stop_gradient(defect.cell @ jnp.linalg.inv(bulk.cell))
    matches = jnp.max(jnp.abs(repeats - jnp.round(repeats))) < LATTICE_MISFIT
    if is_concrete(matches) and not matches:
        raise InputError(
            f"The cell of the defect is no supercell of the bulk's (its vectors are {np.round(repeats, 6).tolist()} of them), so "
            "their stresses do not compare: use the same lattice constant for both."
        )
    return jnp.where(matches, -defect.volume * from_voigt(excess), jnp.nan)


class relaxation_volume(eqx.Module):
    """`relaxation_volume(elastic_constants)`: growth of an unstressed crystal by a defect [Å³, in 2-D Å²].

        ΔV = Σ_ij P_ij S_ijkk,    in a cubic or isotropic crystal tr(P) / (3 K),

    from the dipole tensor at fixed cell, in linear elasticity; S is the compliance. E. Clouet, C. Varvenne, T. Jourdan,
    Comput. Mater. Sci. 147, 49 (2018).

    Args:
        elastic_constants: the bulk's, a symmetric Voigt matrix `(6, 6)` [GPa], in 2-D `(3, 3)` [eV/Å²]; or the observable
            `elastic_constants`, whose derivative then counts too. A matrix is the same for every potential: in a study that
            changes the potential, give the observable.

    Raises:
        InputError: a matrix of another shape or one that is not positive definite, or as `dipole_tensor`.
    """

    elastic_constants: Float[Array, "voigt voigt"] | Callable[..., Any]

    def __init__(self, elastic_constants: ArrayLike) -> None:
        if not callable(elastic_constants):
            elastic_constants = jnp.asarray(elastic_constants, float)
            shape = elastic_constants.shape
            if shape not in ((6, 6), (3, 3)) or (
                is_concrete(elastic_constants) and not (np.linalg.eigvalsh(elastic_constants) > 0.0).all()
            ):
                raise InputError(
                    "relaxation_volume wants elastic constants as a positive definite Voigt matrix, 6×6 or in 2-D 3×3."
                )
        self.elastic_constants = elastic_constants

    def __call__(self, states: Mapping[str, System], potential: Potential) -> Float[Array, ""]:
        dipole = dipole_tensor(states, potential)
        bulk, dim = states["bulk"], len(dipole)
        constants = self.elastic_constants
        if callable(constants):
            constants = constants(bulk, potential)
        trace = jnp.asarray([1.0] * dim + [0.0] * (constants.shape[0] - dim), dipole.dtype)
        if constants.shape[0] != dim * (dim + 1) // 2:
            raise InputError(f"The elastic constants have the shape {constants.shape}, which is not that of {dim} dimensions.")
        by_stress = jnp.linalg.solve(constants, trace)  # the volume's response to each component of a stress
        return stress_unit(bulk.dim) * by_stress @ to_voigt(dipole)
