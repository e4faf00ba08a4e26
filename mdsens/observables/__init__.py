"""Observables: functions `g(system, potential) -> array` that differentiate through the equilibrium.

`ms.jacobian(g, eq)` and `ms.value_and_gradient(g, eq)` take any of them, and any function like them. Those marked "states"
compare several equilibria: `g(states, potential)`, for `ms.value_and_gradient(g, {"defect": eq1, "bulk": eq2})`.

    energy, enthalpy(p)                             eV
    cohesive_energy(isolated)                       eV per atom
    formation_energy(*references)                   eV
    stress, pressure                                GPa, in 2-D eV/Å²
    volume                                          Å³, in 2-D Å²
    lattice_constants                               a, b, c, α, β, γ in Å and degrees
    distances(pairs)                                Å
    angles(triplets), dihedrals(quadruplets)        degrees
    coordination(radius, width)                     neighbours of each atom
    radial_distribution(r, width)                   g(r)
    defect_formation_energy   states defect, bulk   eV
    barrier                   states saddle, minimum   eV
    formation_volume          states defect, bulk   Å³
    dipole_tensor             states defect, bulk   eV
    relaxation_volume(C)      states defect, bulk   Å³
    elastic_constants, elastic_stability            GPa, in 2-D eV/Å², of sheets N/m; of relaxed ions, also clamped
    bulk_modulus, shear_modulus, young_modulus      GPa, in 2-D eV/Å², of sheets N/m
    poisson_ratio, universal_anisotropy
    compliance, linear_compressibility              1/GPa, in 2-D Å²/eV, of sheets m/N
    phonon_frequencies(q), phonon_path(system)      THz
    dynamical_matrix(q)                             eV/Å²/amu
    phonon_dos(mesh, frequencies, width)            1/THz
    gruneisen_parameters(q)                         of each band
    harmonic_free_energy(T), entropy(T), heat_capacity(T)   eV, eV/K
"""

from typing import TYPE_CHECKING

from mdsens.common.suggestions import unknown_names
from mdsens.derivatives.nonfinite import explain_nonfinite
from mdsens.observables import moduli
from mdsens.observables.defects import dipole_tensor, formation_volume, relaxation_volume
from mdsens.observables.elastic import (
    bulk_modulus,
    compliance,
    elastic_constants,
    elastic_stability,
    linear_compressibility,
    poisson_ratio,
    shear_modulus,
    universal_anisotropy,
    young_modulus,
)
from mdsens.observables.energetics import (
    barrier,
    cohesive_energy,
    defect_formation_energy,
    energy,
    enthalpy,
    formation_energy,
    pressure,
    stress,
)
from mdsens.observables.geometry import angles, dihedrals, distances, lattice_constants, volume
from mdsens.observables.neighborhood import coordination, radial_distribution
from mdsens.observables.phonons import dynamical_matrix, gruneisen_parameters, phonon_dos, phonon_frequencies, phonon_path
from mdsens.observables.thermodynamics import entropy, harmonic_free_energy, heat_capacity

__all__ = [
    "angles",
    "barrier",
    "bulk_modulus",
    "cohesive_energy",
    "compliance",
    "coordination",
    "defect_formation_energy",
    "dihedrals",
    "dipole_tensor",
    "distances",
    "dynamical_matrix",
    "elastic_constants",
    "elastic_stability",
    "energy",
    "enthalpy",
    "entropy",
    "explain_nonfinite",
    "formation_energy",
    "formation_volume",
    "gruneisen_parameters",
    "harmonic_free_energy",
    "heat_capacity",
    "lattice_constants",
    "linear_compressibility",
    "moduli",
    "phonon_dos",
    "phonon_frequencies",
    "phonon_path",
    "poisson_ratio",
    "pressure",
    "radial_distribution",
    "relaxation_volume",
    "shear_modulus",
    "stress",
    "universal_anisotropy",
    "volume",
    "young_modulus",
]


def __dir__() -> list[str]:
    return sorted(__all__)


if not TYPE_CHECKING:
    __getattr__ = unknown_names(__name__, __all__)
