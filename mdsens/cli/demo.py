"""The demonstration: the paper's packing and a silicon vacancy, relaxed, differentiated, stored, drawn."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from mdsens import observables, plot
from mdsens.common.paths import data_file
from mdsens.common.units import unit_text
from mdsens.derivatives.certificate import Certificate
from mdsens.derivatives.first_order import value_and_jacobian
from mdsens.derivatives.sensitivities import Sensitivity, sensitivity
from mdsens.equilibrium.relaxation import Equilibrium, relax
from mdsens.files.atomic_write import check_writable, save_picture
from mdsens.files.state_files import save
from mdsens.potentials import SoftSphere, StillingerWeber
from mdsens.potentials.base import Potential, parameter_paths
from mdsens.structures.packing import random_packing
from mdsens.structures.reading import read
from mdsens.structures.system import System

FMAX = 1e-12
CHANGE = 0.01
"""Relative change of σ for which the first-order prediction is compared with a relaxation."""

INWARD_STEP = 0.4
"""Distance by which the vacancy's neighbours are moved towards it before relaxing [Å]."""


def packing(seed: int = 0, n: int = 128) -> tuple[Equilibrium, Sensitivity]:
    """Do the experiment of Blondel et al. 2021, section 4.4: ∂x*/∂θ of soft spheres of diameters 1 and θ = 0.6 in a periodic box.

    They are relaxed by mdsens's own solver; notebook 2 does it with jax-md's, which takes long to import.
    """
    diameters = {"A": 1.0, "B": 0.6}
    system = random_packing(n, diameters, packing_fraction=1.0, seed=seed)
    eq = relax(system, SoftSphere(diameter=diameters, epsilon=1.0), fmax=FMAX)
    return eq, sensitivity(eq, wrt=["diameter.B"])


@dataclasses.dataclass(frozen=True)
class Vacancy:
    """A silicon vacancy: its equilibrium, sensitivity, and three observables with their derivatives θ d/dθ.

    Attributes:
        place: of the missing atom [Å].
        values: mean distance of the four neighbours [Å], pressure [GPa], formation energy [eV].
        scaled: by parameter, θ d(values)/dθ, in the same order.
        predicted, relaxed: the values after σ grew by `CHANGE`, to first order and relaxed again.
        displacement, error: largest displacement by that change, and largest error of its prediction [Å].
    """

    eq: Equilibrium
    sensitivity: Sensitivity
    place: np.ndarray
    values: np.ndarray
    scaled: dict[str, np.ndarray]
    predicted: np.ndarray
    relaxed: np.ndarray
    displacement: float
    error: float


def vacancy(repeat: int = 3) -> Vacancy:
    """Relax and differentiate a vacancy in `repeat`³ cubic cells of silicon with the Stillinger-Weber potential."""
    crystal = read(data_file("silicon.cif"))
    potential = StillingerWeber.silicon()
    # Atoms of a perfect crystal do not move; its stability is not the question here.
    bulk = relax(crystal, potential, fmax=FMAX, check_minimum=False)
    atoms = crystal.to_ase() * repeat
    middle = int(np.argmin(np.linalg.norm(atoms.positions - atoms.cell.array.sum(axis=0) / 2.0, axis=1)))
    place = atoms.positions[middle].copy()
    del atoms[middle]
    near = np.argsort(np.linalg.norm(atoms.positions - place, axis=1))[:4]
    # At their ideal places the neighbours are metastable, without forces; in the vacancy's ground state they are farther inward.
    outward = atoms.positions[near] - place
    atoms.positions[near] -= INWARD_STEP * outward / np.linalg.norm(outward, axis=1, keepdims=True)
    pairs = [(int(a), int(b)) for k, a in enumerate(near) for b in near[k + 1 :]]

    eq = relax(System.from_ase(atoms), potential, fmax=FMAX)
    derivative = sensitivity(eq)

    lengths, formation = observables.distances(pairs), observables.formation_energy(bulk)

    def observed(system: System, potential: Potential, formation: Any = formation) -> Array:
        pressure = observables.pressure(system, potential)
        return jnp.stack([jnp.mean(lengths(system, potential)), pressure, formation(system, potential)])

    names = parameter_paths(potential)
    found, slopes = value_and_jacobian(observed, eq)
    values = np.asarray(found)
    rows = zip(names, jax.tree.leaves(potential), jax.tree.leaves(slopes), strict=True)
    scaled = {name: np.asarray(theta * slope) for name, theta, slope in rows}

    larger = eqx.tree_at(lambda p: p.sigma, potential, (1.0 + CHANGE) * potential.sigma)
    again = relax(eq.system, larger, fmax=FMAX, check_minimum=False)
    relaxed = np.asarray(observed(again.system, larger, observables.formation_energy(bulk.again(larger, check_minimum=False))))
    displacement = np.asarray(again.system.positions - eq.system.positions)
    error = displacement - CHANGE * np.asarray(derivative.scaled().positions.sigma)
    return Vacancy(
        eq,
        derivative,
        place,
        values,
        scaled,
        values + CHANGE * scaled["sigma"],
        relaxed,
        float(np.linalg.norm(displacement, axis=1).max()),
        float(np.linalg.norm(error, axis=1).max()),
    )


def run(folder: Path, bar: Any, *, overwrite: bool = False) -> list[str]:
    """Do both, write the files into a folder that exists, and return the lines of a report.

    Args:
        bar: a tqdm bar of four steps, which shows the name of each.
    """
    for name in ("packing.h5", "packing.png", "silicon_vacancy.h5", "silicon_vacancy.png", "silicon_influence.png"):
        check_writable(folder / name, overwrite=overwrite)
    bar.set_description_str("the paper's packing")
    eq, S = packing()
    _next(bar, "storing and drawing it")
    files = [save(folder / "packing.h5", eq, S, overwrite=overwrite)]
    arrows = S.positions.diameter["B"]
    files.append(save_picture(plot.packing(eq, arrows), folder / "packing.png", overwrite=overwrite))

    _next(bar, "a silicon vacancy")
    defect = vacancy()
    _next(bar, "storing and drawing it")
    files.append(save(folder / "silicon_vacancy.h5", defect.eq, defect.sensitivity, overwrite=overwrite))
    scaled = defect.sensitivity.scaled().positions
    largest = {name: _largest(leaf) for name, leaf in zip(defect.scaled, jax.tree.leaves(scaled), strict=True)}
    near = plot.crystal(defect.eq, scaled.costheta0, centre=defect.place, radius=5.0, parameter="cos θ₀ dX/d(cos θ₀)")
    files.append(save_picture(near, folder / "silicon_vacancy.png", overwrite=overwrite))
    bars = plot.influence(largest, label="influence on the positions, max |θ dX/dθ| [Å]")
    files.append(save_picture(bars, folder / "silicon_influence.png", overwrite=overwrite))
    _next(bar, "done")
    return [*_about_packing(eq, S), "", *_about_vacancy(defect, largest), "", "Written:", *(f"  {path}" for path in files)]


def _next(bar: Any, name: str) -> None:
    bar.update()
    bar.set_description_str(name)


def _largest(leaf: Float[ArrayLike, "atoms dim"]) -> float:
    """The largest length of a row."""
    return float(np.linalg.norm(np.asarray(leaf), axis=1).max())


def _about_packing(eq: Equilibrium, S: Sensitivity) -> Iterator[str]:
    certificate, dx = S.certificate, np.asarray(S.positions.diameter["B"])
    yield "The packing of Blondel et al. 2021: 128 soft spheres in 2-D, diameters 1 and θ = 0.6, packing fraction 1.0"
    lowest = math.nan if eq.spectrum is None else eq.spectrum.lowest
    ends = f"fmax {eq.fmax:.1e} eV/Å, lowest curvature {lowest:.3f} eV/Å²"
    yield f"  relaxed                            {eq.steps} steps, {ends}"
    yield f"  ∂x*/∂θ                             L1 norm {np.abs(dx).sum():.2f}, longest arrow {_largest(dx):.3f} Å/Å"
    rattlers = ", ".join(map(str, certificate.rattlers)) or "none"
    yield f"  zero modes projected out           {len(certificate.zero_modes)} (rattlers: {rattlers})"
    yield f"  {_trust(certificate)}"


def _about_vacancy(result: Vacancy, largest: dict[str, float]) -> Iterator[str]:
    eq = result.eq
    distance, pressure, formation = result.values
    yield f"A silicon vacancy: {len(eq.system)} atoms, Stillinger-Weber, cell fixed (so σ, a scale of lengths, acts as a strain)"
    yield f"  distance between its neighbours {distance:.4f} Å, pressure {pressure:.4f} GPa, formation energy {formation:.4f} eV"
    yield ""
    yield f"  {'θ':<10} {'value':>10} {'':<2} {'max|θ dX/dθ|':>14} {'θ d(dist)/dθ':>14} {'θ dP/dθ':>12} {'θ dE_f/dθ':>12}"
    yield f"  {'':<10} {'':>10} {'':<2} {'[Å]':>14} {'[Å]':>14} {'[GPa]':>12} {'[eV]':>12}"
    scales = np.abs(np.array(list(result.scaled.values()))).max(axis=0)
    for name, theta in zip(result.scaled, jax.tree.leaves(eq.potential), strict=True):
        d, p, e = (_zeroed(value, scale) for value, scale in zip(result.scaled[name], scales, strict=True))
        x = _zeroed(largest[name], max(largest.values()))
        unit = unit_text(eq.potential.unit_of(name))
        yield f"  {name:<10} {float(theta):>10.4f} {unit:<2} {x:>14.4g} {d:>14.4g} {p:>12.4g} {e:>12.4g}"
    yield ""
    yield f"  σ + {CHANGE:.0%}: predicted to first order against relaxed again"
    names = (("distance", "Å"), ("pressure", "GPa"), ("formation energy", "eV"))
    for (name, unit), *numbers in zip(names, result.values, result.predicted, result.relaxed, strict=True):
        before, predicted, relaxed = numbers
        yield f"    {name:<17} {before:>10.4f} → predicted {predicted:>9.4f}, found {relaxed:>9.4f} {unit}"
    yield f"    {'positions':<17} moved by up to {result.displacement:.4f} Å, prediction off by up to {result.error:.4f} Å"
    yield f"  {_trust(result.sensitivity.certificate)}"


def _zeroed(value: float, scale: float) -> float:
    """The value, or 0 where it is rounding of a zero by symmetry."""
    return 0.0 if abs(value) < 1e-9 * scale else value


def _trust(certificate: Certificate) -> str:
    if certificate.trusted:
        return f"trusted: residual {certificate.residual:.0e}, error of θ dX/dθ below {certificate.error_bound:.0e} Å"
    return "not trusted: " + "; ".join(certificate.reasons)
