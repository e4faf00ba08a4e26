"""The main job on shipped data: the paper's packing and a silicon vacancy, relaxed, differentiated, stored, drawn."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mdsens import observables, plot
from mdsens.common.paths import data_file
from mdsens.common.units import unit_text
from mdsens.derivatives.first_order import Sensitivity, jacobian, sensitivity
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
"""Relative change of σ that the first-order prediction is tried on."""

INWARD = 0.4
"""How far the vacancy's neighbours are moved towards it before relaxing [Å]."""

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Packing:
    """The experiment of Blondel et al. 2021, section 4.4."""

    eq: Equilibrium
    sensitivity: Sensitivity


def packing(seed: int = 0, n: int = 128) -> Packing:
    """Soft spheres of diameters 1 and θ = 0.6 in a periodic box, relaxed by jax-md's `fire_descent`; ∂x*/∂θ."""
    import jax_md.minimize

    from mdsens.solvers import JaxMD

    diameters = {"A": 1.0, "B": 0.6}
    system = random_packing(n, diameters, packing_fraction=1.0, seed=seed)
    eq = relax(system, SoftSphere(diameter=diameters, epsilon=1.0), solver=JaxMD(jax_md.minimize.fire_descent), fmax=FMAX)
    return Packing(eq, sensitivity(eq, wrt=["diameter.B"]))


@dataclasses.dataclass(frozen=True)
class Vacancy:
    """A silicon vacancy: its equilibrium, sensitivity, and three observables with their derivatives θ d/dθ.

    Attributes:
        place: where the missing atom was [Å].
        values: mean distance of the four neighbours [Å], pressure [GPa], formation energy [eV].
        scaled: by parameter, θ d(values)/dθ, in the same order.
        predicted, found: the values after σ grew by `CHANGE`, to first order and relaxed again.
        moved, off: largest displacement by that change, and largest error of its prediction [Å].
    """

    eq: Equilibrium
    sensitivity: Sensitivity
    place: np.ndarray
    values: np.ndarray
    scaled: dict[str, np.ndarray]
    predicted: np.ndarray
    found: np.ndarray
    moved: float
    off: float


def vacancy(repeat: int = 3) -> Vacancy:
    """A vacancy in `repeat`³ cubic cells of silicon with the Stillinger-Weber potential."""
    crystal = read(data_file("silicon.cif"))
    potential = StillingerWeber.silicon()
    # Nothing moves in a perfect crystal; its stability is not the question here.
    bulk = relax(crystal, potential, fmax=FMAX, check_minimum=False)
    atoms = crystal.to_ase() * repeat
    middle = int(np.argmin(np.linalg.norm(atoms.positions - atoms.cell.array.sum(axis=0) / 2.0, axis=1)))
    place = atoms.positions[middle].copy()
    del atoms[middle]
    near = np.argsort(np.linalg.norm(atoms.positions - place, axis=1))[:4]
    # In the ideal lattice the neighbours sit in a metastable place, where no force is; the vacancy's ground state is inward.
    outward = atoms.positions[near] - place
    atoms.positions[near] -= INWARD * outward / np.linalg.norm(outward, axis=1, keepdims=True)
    pairs = [(int(a), int(b)) for k, a in enumerate(near) for b in near[k + 1 :]]

    eq = relax(System.from_ase(atoms), potential, fmax=FMAX)
    derivative = sensitivity(eq)

    lengths, formation = observables.distances(pairs), observables.formation_energy(bulk)

    @eqx.filter_jit
    def observed(system: System, potential: Potential, formation: Any = formation) -> Array:
        pressure = observables.pressure(system, potential)
        return jnp.stack([jnp.mean(lengths(system, potential)), pressure, formation(system, potential)])

    names = parameter_paths(potential)
    rows = zip(names, jax.tree.leaves(potential), jax.tree.leaves(jacobian(observed, eq)), strict=True)
    scaled = {name: np.asarray(theta * slope) for name, theta, slope in rows}
    values = np.asarray(observed(eq.system, potential))

    larger = eqx.tree_at(lambda p: p.sigma, potential, (1.0 + CHANGE) * potential.sigma)
    again = relax(eq.system, larger, fmax=FMAX, check_minimum=False)
    found = np.asarray(observed(again.system, larger, observables.formation_energy(bulk.again(larger, check_minimum=False))))
    displacement = np.asarray(again.system.positions - eq.system.positions)
    error = displacement - CHANGE * np.asarray(derivative.scaled().positions.sigma)
    return Vacancy(
        eq,
        derivative,
        place,
        values,
        scaled,
        values + CHANGE * scaled["sigma"],
        found,
        float(np.linalg.norm(displacement, axis=1).max()),
        float(np.linalg.norm(error, axis=1).max()),
    )


def run(folder: Path, say: Say, step: Callable[[str], None], *, overwrite: bool = False) -> None:
    """Do both, write the files into `folder`, which exists, and say what a physicist wants to know.

    Args:
        say: takes each line of the report.
        step: called as each piece of work begins, with its name.
    """
    for name in ("packing.h5", "packing.png", "silicon_vacancy.h5", "silicon_vacancy.png", "silicon_influence.png"):
        check_writable(folder / name, overwrite=overwrite)
    step("the paper's packing")
    first = packing()
    step("storing and drawing it")
    written = [save(folder / "packing.h5", first.eq, first.sensitivity, overwrite=overwrite)]
    arrows = first.sensitivity.positions.diameter["B"]
    written.append(save_picture(plot.packing(first.eq, arrows), folder / "packing.png", overwrite=overwrite))

    step("a silicon vacancy")
    second = vacancy()
    step("storing and drawing it")
    written.append(save(folder / "silicon_vacancy.h5", second.eq, second.sensitivity, overwrite=overwrite))
    scaled = second.sensitivity.scaled().positions
    largest = {name: _largest(leaf) for name, leaf in zip(second.scaled, jax.tree.leaves(scaled), strict=True)}
    near = plot.crystal(second.eq, scaled.costheta0, centre=second.place, radius=5.0, parameter="cos θ₀ dX/d(cos θ₀)")
    written.append(save_picture(near, folder / "silicon_vacancy.png", overwrite=overwrite))
    bars = plot.influence(largest, label="influence on the positions, max |θ dX/dθ| [Å]")
    written.append(save_picture(bars, folder / "silicon_influence.png", overwrite=overwrite))
    step("done")
    for line in [*_about_packing(first), "", *_about_vacancy(second, largest), "", *_about_files(written)]:
        say(line)


def _largest(leaf: Any) -> float:
    return float(np.linalg.norm(np.asarray(leaf), axis=1).max())


def _about_packing(result: Packing) -> Iterator[Any]:
    eq, certificate = result.eq, result.sensitivity.certificate
    dx = np.asarray(result.sensitivity.positions.diameter["B"])
    yield "The packing of Blondel et al. 2021: 128 soft spheres in 2-D, diameters 1 and θ = 0.6, packing fraction 1.0"
    lowest = math.nan if eq.spectrum is None else eq.spectrum.lowest
    ends = f"fmax {eq.fmax:.1e} eV/Å, lowest curvature {lowest:.3f} eV/Å²"
    yield f"  relaxed by jax-md's fire_descent   {eq.steps} steps, {ends}"
    yield f"  ∂x*/∂θ                             L1 norm {np.abs(dx).sum():.2f}, longest arrow {_largest(dx):.3f} Å/Å"
    rattlers = ", ".join(map(str, certificate.rattlers)) or "none"
    yield f"  zero modes projected out           {len(certificate.zero_modes)} (rattlers: {rattlers})"
    yield f"  {_trust(certificate)}"


def _about_vacancy(result: Vacancy, largest: dict[str, float]) -> Iterator[Any]:
    eq = result.eq
    distance, pressure, formation = result.values
    yield f"A silicon vacancy: {len(eq.system)} atoms, Stillinger-Weber, cell fixed (so σ, a scale of lengths, acts as a strain)"
    yield f"  distance between its neighbours {distance:.4f} Å, pressure {pressure:.4f} GPa, formation energy {formation:.4f} eV"
    yield ""
    yield f"  {'θ':<10} {'value':>10} {'':<2} {'max|θ dX/dθ|':>14} {'θ d(dist)/dθ':>14} {'θ dP/dθ':>12} {'θ dE_f/dθ':>12}"
    yield f"  {'':<10} {'':>10} {'':<2} {'[Å]':>14} {'[Å]':>14} {'[GPa]':>12} {'[eV]':>12}"
    for name, theta in zip(result.scaled, jax.tree.leaves(eq.potential), strict=True):
        d, p, e = (_zeroed(value, scale) for value, scale in zip(result.scaled[name], _scales(result), strict=True))
        x = _zeroed(largest[name], max(largest.values()))
        unit = unit_text(eq.potential.unit_of(name))
        yield f"  {name:<10} {float(theta):>10.4f} {unit:<2} {x:>14.4g} {d:>14.4g} {p:>12.4g} {e:>12.4g}"
    yield ""
    yield f"  σ + {CHANGE:.0%}: predicted to first order against relaxed again"
    for name, unit, before, told, seen in zip(
        ("distance", "pressure", "formation energy"),
        ("Å", "GPa", "eV"),
        result.values,
        result.predicted,
        result.found,
        strict=True,
    ):
        yield f"    {name:<17} {before:>10.4f} → predicted {told:>9.4f}, found {seen:>9.4f} {unit}"
    yield f"    {'positions':<17} moved by up to {result.moved:.4f} Å, prediction off by up to {result.off:.4f} Å"
    yield f"  {_trust(result.sensitivity.certificate)}"


def _scales(result: Any) -> np.ndarray:
    return np.abs(np.array(list(result.scaled.values()))).max(axis=0)


def _zeroed(value: float, scale: float) -> float:
    """Rounding noise of what is zero by symmetry reads as zero."""
    return 0.0 if abs(value) < 1e-9 * scale else value


def _trust(certificate: Any) -> str:
    if certificate.trusted:
        return f"trusted: residual {certificate.residual:.0e}, error of θ dX/dθ below {certificate.error_bound:.0e} Å"
    return "not trusted: " + "; ".join(certificate.reasons)


def _about_files(written: Any) -> Iterator[Any]:
    yield "Written:"
    for path in written:
        yield f"  {path}"
