"""Elastic constants at relaxed positions: the affine (Born) response and the non-affine one, without a strain step.

See `strain_response` for the formulas.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from mdsens.common import by_values
from mdsens.common.errors import InputError, LinearSolveError, did_you_mean
from mdsens.common.suggestions import suggest_names
from mdsens.derivatives.known_energies import differentiated_from_values
from mdsens.derivatives.nonfinite import check_free, check_rest
from mdsens.observables import moduli
from mdsens.observables.host_strain_response import (
    KnownStrains,
    constants_along,
    constants_of,
    known_strains,
)
from mdsens.observables.strain_response import SHEET_TOLERANCE, StrainResponse, by_definition, is_stored_in, strain_response
from mdsens.potentials.base import Potential, gives_stiffness
from mdsens.potentials.wrapped.jaxmd_energy import JaxMDEnergy
from mdsens.structures.system import System, is_concrete

DEFINITIONS = ("stress-strain", "thermodynamic", "energy")


@suggest_names
def elastic_constants(
    system: System,
    potential: Potential,
    *,
    definition: str = "stress-strain",
    relaxed: bool = True,
    sheet: bool | None = None,
) -> Float[Array, "voigt voigt"]:
    """The elastic constants of a relaxed structure in Voigt's notation.

    The state may be stressed, but the forces in it must be relaxed. Without stress all definitions agree.
    With σ the stress, η the Lagrangian strain and e_k the unit strains (shears with off-diagonals ½):

        "energy"           (1/V) ∂²U/∂ε_k∂ε_l at deformation gradients 1 + ε, ε symmetric
        "thermodynamic"    (1/V) ∂²U/∂η_k∂η_l = C^energy_kl - ½ σ:(e_k e_l + e_l e_k)
        "stress-strain"    ∂σ_k/∂ε_l without rotation = C^thermodynamic_kl + σ:(e_k e_l + e_l e_k) - σ_k tr e_l

    The last are Birch's coefficients, from which the stress after a strain, sound speeds and stability follow. They are not
    symmetric where the stress is not hydrostatic.

    Args:
        relaxed: True for relaxed ions; False if the atoms only follow the strain (clamped ions, the Born term).
        sheet: whether the constants are those of a sheet, per area. By default where two of three directions are periodic;
            True for a sheet in a periodic box with vacuum above it.

    Returns:
        6×6 in the order xx, yy, zz, yz, xz, xy [GPa]; in 2-D 3×3, xx, yy, xy [eV/Å²]; of a sheet 3×3 in its plane, xx, yy, xy
        for one at a right angle to z [N/m]. Frozen atoms follow the strain, and so do rattlers, which have no energy.

    Warns:
        UserWarning: forces are left in the structure.

    Raises:
        InputError: an unknown definition; a system that is neither a bulk nor a sheet; a structure that is not relaxed or is
            held by constraints; a wrapped jax-md energy, which cannot be strained; what `Potential.energy` refuses.
        LinearSolveError: the solve for the non-affine displacements fails, since the state is no minimum. (NaN where the values
            are traced.)

    Example:
        C = ms.observables.elastic_constants(eq.system, eq.potential)
        dC = ms.jacobian(ms.observables.elastic_constants, eq)

    D. C. Wallace, Solid State Physics 25, 301 (1970); T. H. K. Barron, M. L. Klein, Proc. Phys. Soc. 85, 523 (1965).
    """
    options = _Options(definition, relaxed, _is_sheet(system, sheet))
    _check(system, potential, definition)
    if relaxed:
        check_free(system, "elastic constants of relaxed ions")
    traced = not is_concrete(system.positions, system.cell, potential)
    if traced and gives_stiffness(potential) and by_values.known_values() is not None:
        return _differentiable(system, potential, options=options)  # type: ignore[no-any-return]
    return _constants(system, potential, options=options)


class _Options(NamedTuple):
    """What elastic constants are asked for, as in `elastic_constants`; `flat`: those of a sheet."""

    definition: str
    relaxed: bool
    flat: bool


def _constants(system: System, potential: Potential, *, options: _Options) -> Float[Array, "voigt voigt"]:
    definition, relaxed, flat = options
    traced = not is_concrete(system.positions, system.cell)
    # Strains are infinitesimal: a list without a skin is long enough, and a short list is fast.
    system = potential.prepared(system) if traced else system.with_neighbors(potential, skin=0.0)
    if traced or not is_concrete(potential) or not is_stored_in(system, potential):
        response = strain_response(system, potential, relaxed, flat)
        constants = by_definition(definition, response.curvature, response.stress, 2 if flat else system.dim)
    else:
        constants, response = constants_of(known_strains(system, potential, relaxed), *options)
    return _checked(constants, response)


def _checked(constants: Array, response: StrainResponse) -> Array:
    check_rest(response.unrest, "elastic constants")
    if is_concrete(response.across) and response.across > SHEET_TOLERANCE:
        raise InputError(
            "The structure is no sheet at a right angle to x, y or z: strains across it cost energy, or its cell vectors are "
            "tilted against it. Turn it, and leave vacuum above it that is wider than the potential's range."
        )
    if is_concrete(constants) and not np.isfinite(constants).all():
        raise LinearSolveError(
            "The atoms' displacements under strain could not be found, since the Hessian is not positive or is singular beyond "
            "the known zero modes: relax the structure to a minimum first, or ask for relaxed=False."
        )
    return constants


class _Known(NamedTuple):
    """Elastic constants at a state, and what their derivatives are made of."""

    constants: Array
    strains: KnownStrains
    options: _Options


def _known(system: System, potential: Potential, *, options: _Options) -> _Known | None:
    """Return what is known of a state [host]; None where it stores no second derivatives."""
    system = system.with_neighbors(potential, skin=0.0)
    if not is_stored_in(system, potential):
        return None
    strains = known_strains(system, potential, options.relaxed)
    return _Known(_checked(*constants_of(strains, *options)), strains, options)


_differentiable = differentiated_from_values(
    _constants, _known, lambda at: at.constants, lambda at, motion: constants_along(at.strains, motion, *at.options)
)


def compliance(system: System, potential: Potential, **options: Any) -> Float[Array, "voigt voigt"]:
    """The inverse of the elastic constants [1/GPa; in 2-D Å²/eV, of a sheet m/N], shears twice; options as for these."""
    return moduli.compliance(elastic_constants(system, potential, **options))


def bulk_modulus(system: System, potential: Potential, *, average: str = "hill", **options: Any) -> Float[Array, ""]:
    """Bulk modulus of an untextured polycrystal [GPa; in 2-D eV/Å², of a sheet N/m]: `average` is "voigt", "reuss" or "hill".

    "reuss" is that of the single crystal under pressure, V dp/dV. Other options as for `elastic_constants`.
    """
    return moduli.bulk(elastic_constants(system, potential, **options), average)


def shear_modulus(system: System, potential: Potential, *, average: str = "hill", **options: Any) -> Float[Array, ""]:
    """Shear modulus of an untextured polycrystal [GPa; in 2-D eV/Å², of a sheet N/m]; options as for `bulk_modulus`."""
    return moduli.shear(elastic_constants(system, potential, **options), average)


def young_modulus(
    system: System, potential: Potential, *, along: ArrayLike | None = None, average: str = "hill", **options: Any
) -> Float[Array, ""]:
    """Young's modulus [GPa; in 2-D eV/Å², of a sheet N/m]: of the crystal pulled along a direction, or of a polycrystal."""
    return moduli.young(elastic_constants(system, potential, **options), along=along, average=average)


def poisson_ratio(
    system: System,
    potential: Potential,
    *,
    along: ArrayLike | None = None,
    across: ArrayLike | None = None,
    average: str = "hill",
    **options: Any,
) -> Float[Array, ""]:
    """Poisson's ratio: of the crystal pulled along one direction and seen across another, or of a polycrystal."""
    return moduli.poisson(elastic_constants(system, potential, **options), along=along, across=across, average=average)


def linear_compressibility(system: System, potential: Potential, **options: Any) -> Float[Array, " dim"]:
    """Shortening -d ln(length)/dp along each axis [1/GPa; in 2-D Å²/eV, of a sheet m/N]; their sum is the volume's."""
    return moduli.linear_compressibility(elastic_constants(system, potential, **options))


def universal_anisotropy(system: System, potential: Potential, **options: Any) -> Float[Array, ""]:
    """The distance between the bounds on an untextured polycrystal's moduli; 0 for an isotropic solid. See `moduli`."""
    return moduli.universal_anisotropy(elastic_constants(system, potential, **options))


def elastic_stability(system: System, potential: Potential, **options: Any) -> Float[Array, ""]:
    """The lowest stiffness against homogeneous strain [GPa; in 2-D eV/Å², of a sheet N/m]; positive in a stable crystal.

    It is the lowest eigenvalue of the symmetric part of Birch's coefficients, a criterion that holds under stress too (without
    stress it is Born's). It has a derivative where no second eigenvalue equals it.

    J. Wang, J. Li, S. Yip, S. Phillpot, D. Wolf, Phys. Rev. B 52, 12627 (1995), doi:10.1103/PhysRevB.52.12627.
    """
    return moduli.stiffnesses(elastic_constants(system, potential, **options))[0]


def _check(system: System, potential: Potential, definition: str) -> None:
    if definition not in DEFINITIONS:
        raise InputError(
            f"There are no elastic constants by the definition {definition!r}.{did_you_mean(str(definition), DEFINITIONS)}"
        )
    if any(isinstance(part, JaxMDEnergy) for part in potential.parts()):
        raise InputError("A wrapped jax-md energy hides its cell, so mdsens cannot strain it: use one of mdsens's own.")
    potential.check(system)


def is_sheet(system: System, sheet: bool | None) -> bool:
    """Return whether elastic constants are per area of a sheet in three dimensions: `sheet`, or by the periodicity."""
    return system.dim == 3 and (sum(system.pbc) == 2 if sheet is None else sheet)


def _is_sheet(system: System, sheet: bool | None) -> bool:
    """Return `is_sheet`; raise InputError for a system that is neither a bulk nor a sheet."""
    missing = system.dim - sum(system.pbc)
    if system.cell is None or missing > (0 if system.dim == 2 or sheet is False else 1):
        raise InputError(
            "Elastic constants are those of a bulk or of a sheet: the system must have a cell, periodic in all directions, or in "
            "two of three."
        )
    return is_sheet(system, sheet)
