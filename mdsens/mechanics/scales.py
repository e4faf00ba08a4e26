"""A system's own scales of length and stiffness, in which tolerances are measured."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mdsens.mechanics.evaluation import place
from mdsens.mechanics.landscape import LandscapeLike
from mdsens.mechanics.unknown import Reference, Unknown, as_unknown
from mdsens.potentials.base import Potential
from mdsens.potentials.forms.neighbor_vectors import pair_list
from mdsens.solvers import Problem, evaluated
from mdsens.structures.neighbors.neighbor_list import Neighbors
from mdsens.structures.system import System, is_concrete

FORCE_SHARE = 1e-11
"""Largest force that a relaxation leaves by default, as a share of the typical stiffness times the distance of neighbours: about
1e-9 eV/Å in covalent solids and metals."""

FORCE_ROUNDINGS = 8.0
"""Largest force that a relaxation leaves by default, at least, in roundings of the largest coordinate times the stiffness: below,
forces are noise."""

FALLBACK_FMAX = 1e-8
"""Largest force that a relaxation leaves where no displacement changes any [eV/Å]."""

PROBE = 1e-5
"""Displacement by which the stiffness is measured, as a share of the distance of neighbours."""

SAMPLE_SIZE = 2000
"""Atoms, at most, whose nearest neighbours are looked at."""

USUAL_SIZE = {"length": 2.0, "stiffness": 6.0}
"""The middle of what is usual in Å and eV/Å²."""

DECADES = {"length": 1, "stiffness": 4}
"""Powers of ten between the units that solvers count in: so far apart that they are 1 for all that is usual."""


class Scales(NamedTuple):
    """A system's own scales: numbers, or traced ones.

    Attributes:
        length: typical distance of nearest neighbours [Å].
        stiffness: typical change of the force on an atom by a displacement of all [eV/Å²].
        rounding: of the largest coordinate [Å].
    """

    length: Any
    stiffness: Any
    rounding: Any

    @property
    def fmax(self) -> Any:
        """The largest force that a relaxation leaves by default [eV/Å]."""
        xp = _array_module(self.stiffness)
        force = xp.maximum(FORCE_SHARE * self.length, FORCE_ROUNDINGS * self.rounding) * self.stiffness
        return xp.where(force > 0.0, force, FALLBACK_FMAX)

    @property
    def units(self) -> "Units":
        """Powers of ten near the scales, for the settings of solvers: 1 for what is usual in Å and eV."""
        return Units(_power_near(self.length, "length"), _power_near(self.stiffness, "stiffness"))


class Units(NamedTuple):
    """A length and a stiffness that solvers' settings are counted in."""

    length: Any = 1.0
    stiffness: Any = 1.0

    @property
    def force(self) -> Any:
        """The unit of force."""
        return self.length * self.stiffness


USUAL_UNITS = Units()


def _power_near(value: Any, name: str) -> Any:
    xp = _array_module(value)
    steps = xp.rint(xp.log10(xp.where(value > 0.0, value, USUAL_SIZE[name]) / USUAL_SIZE[name]) / DECADES[name])
    power = 10.0 ** (DECADES[name] * steps)
    return power if xp is jnp else float(power)


def _array_module(*values: Any) -> Any:
    """Return `jax.numpy` where anything is traced; else NumPy, which compiles nothing."""
    return jnp if any(isinstance(value, jax.core.Tracer) for value in values) else np


def scales_of(problem: Problem, z: Unknown | Array, data: LandscapeLike) -> Scales:
    """Return the scales at a state, by two evaluations of its forces [host]."""
    reference, potential = data.reference, data.potential
    length = typical_distance(place(z, reference), potential)
    here, there = (jax.tree.map(np.asarray, evaluated(problem, at, data)[0]) for at in (z, displaced(z, reference, length)))
    return scales_from(z, length, here, there)


def scales_from(z: Any, length: float, here: Any, there: Any) -> Scales:
    """Return the scales by the forces at z and those where `displaced` leads [host]."""
    return _scales(z, length, here, there, np)


def traced_scales(problem: Problem, z: Unknown | Array, data: LandscapeLike, length: Any) -> Scales:
    """Return the scales inside a traced function, where the length is known."""
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), z, displaced(z, data.reference, length))
    residuals = jax.lax.map(lambda at: problem.residual(at, data), both)
    here, there = (jax.tree.map(lambda leaf, k=k: leaf[k], residuals) for k in (0, 1))
    return _scales(z, length, here, there, jnp)


def force_scale(eq: Any, share: float) -> float:
    """Return a share of an equilibrium's largest curvature times the distance of neighbours, a force [eV/Å]."""
    spectrum = eq.spectrum
    if spectrum is None or not 0.0 < spectrum.highest < np.inf:
        return FALLBACK_FMAX
    largest = float(np.abs(np.asarray(eq.system.positions)).max())
    rounding = FORCE_ROUNDINGS * float(np.finfo(eq.system.positions.dtype).eps) * largest
    return max(share * typical_distance(eq.system, eq.potential), rounding) * spectrum.highest


def displaced(z: Unknown | Array, reference: Reference, length: Any) -> Unknown | Array:
    """Displace z at random, but not as a whole, in eager code; by the same numbers at every state."""
    random, unknown = np.random.default_rng(0), as_unknown(z)
    noise, held = random.normal(size=unknown.positions.shape), reference.held
    xp = _array_module(held, unknown.positions)
    noise = xp.where(xp.asarray(held), 0.0, noise - noise.mean(axis=0))
    moved = jnp.asarray(xp.asarray(unknown.positions) + PROBE * length * noise, unknown.positions.dtype)
    if not isinstance(z, Unknown):
        return moved
    strain = unknown.strain
    if strain is not None:
        strain = jnp.asarray(xp.asarray(strain) + PROBE * length * random.normal(size=strain.shape), strain.dtype)
    return unknown._replace(positions=moved, strain=strain)


def _scales(z: Unknown | Array, length: Any, here: Any, there: Any, xp: Any) -> Scales:
    """Return the scales by the forces at z and beside it; a median ignores the few atoms that lie too near each other."""
    here, there = as_unknown(here), as_unknown(there)
    dim = here.positions.shape[-1]
    change = xp.sqrt(xp.sum((there.positions - here.positions) ** 2, axis=-1) / dim)
    if here.strain is not None:
        change = xp.concatenate([change, xp.abs(there.strain - here.strain)])
    change = change / (PROBE * length)
    stiffness = _median(change, (change > 0.0) & xp.isfinite(change), 0.0, xp)
    eps = float(jnp.finfo(here.positions.dtype).eps)
    return Scales(length, stiffness, eps * xp.max(xp.abs(xp.asarray(as_unknown(z).positions))))


def _median(values: Any, counting: Any, otherwise: float, xp: Any) -> Any:
    if xp is np:
        return float(np.median(values[counting])) if counting.any() else otherwise
    return jnp.where(jnp.any(counting), jnp.nanmedian(jnp.where(counting, values, jnp.nan)), otherwise)


def typical_distance(system: System, potential: Potential) -> float:
    """Return the median over atoms of the distance to the nearest neighbour [Å] [host]."""
    n = len(system)
    if isinstance(system.neighbors, Neighbors):
        chosen = np.unique(np.linspace(0, n - 1, min(n, SAMPLE_SIZE)).astype(int))
        cell = None if system.cell is None else np.asarray(system.cell)
        if (distance := median_distance(np.asarray(system.positions), cell, system.neighbors, chosen, np)) > 0.0:
            return float(distance)
    return _distance_without_list(system, potential)


def traced_distance(system: System, potential: Potential) -> Any:
    """Return the typical distance of a structure that may be traced, if it has a list then."""
    if is_concrete(system):
        return typical_distance(system, potential)
    distance = median_distance(system.positions, system.cell, pair_list(system), slice(None), jnp)
    return jnp.where(distance > 0.0, distance, 1.0)


def median_distance(positions: Any, cell: Any, neighbors: Neighbors, chosen: Any, xp: Any) -> Any:
    """Return the median of some atoms' distances to their nearest listed neighbours [Å]; 0 where there is none."""
    atom, kind, opposite = (xp.asarray(part)[:, chosen] for part in (neighbors.atom, neighbors.kind, neighbors.opposite))
    x = positions.T
    d = x[:, atom] - x[:, None, chosen]
    if cell is not None:
        d = d + (cell.T @ xp.asarray(neighbors.images))[:, kind]
    nearest = xp.sqrt(xp.min(xp.where(opposite >= 0, xp.sum(d * d, axis=0), xp.inf), axis=0, initial=xp.inf))
    return _median(nearest, xp.isfinite(nearest), 0.0, xp)


def _distance_without_list(system: System, potential: Potential) -> float:
    from scipy.spatial import cKDTree

    positions, candidates = np.asarray(system.positions), []
    if len(system) > 1 and np.isfinite(positions).all():
        candidates.append(float(np.median(cKDTree(positions).query(positions, k=2)[0][:, 1])))
    if system.cell is not None and any(system.pbc):
        candidates.append(float(np.linalg.norm(np.asarray(system.cell)[np.array(system.pbc)], axis=1).min()))
    reach = potential._host_range()
    candidates = [value for value in candidates if value > 0.0] or ([reach] if 0.0 < reach < np.inf else [1.0])
    return min(candidates)


def spacing(system: System) -> float:
    """Return a mean distance between atoms [Å] [host]."""
    n, dim = system.positions.shape
    if system.cell is not None and all(system.pbc):
        return float(abs(np.linalg.det(system.cell)) / n) ** (1.0 / dim)
    arms = np.asarray(system.positions) - np.mean(system.positions, axis=0)
    return 2.0 * float(np.sqrt(np.mean(np.sum(arms**2, axis=1)))) / n ** (1.0 / dim)
