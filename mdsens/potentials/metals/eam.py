"""Embedded-atom potentials from tables."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mdsens.common.errors import InputError, did_you_mean, level_of_user
from mdsens.potentials.forms.embedded import EmbeddedPotential
from mdsens.potentials.metals.eam_files import MIN_TABLE, read_tables
from mdsens.potentials.metals.table_checks import coarseness
from mdsens.potentials.species import Atom, static
from mdsens.structures.neighbors.sums_over_neighbors import IN_BOUNDS
from mdsens.structures.system import System, is_concrete


class EAM(EmbeddedPotential):
    """The energy U = ½ Σ_i Σ_{j≠i} φ(r_ij) + Σ_i F(ρ_i), ρ_i = Σ_{j≠i} f(r_ij), from the values of F, f and r φ on even grids.

    Args:
        F: energy of an element [eV] at the densities 0, drho, 2 drho, ..., `{"Cu": (Nrho,), ...}`.
        rho: density f around an element at the distances 0, dr, 2 dr, ..., `{"Cu": (Nr,), ...}` (eam/alloy); or, where it
            also depends on the element that it is felt at, `{"Al": {"Al": (Nr,), "Fe": (Nr,)}, "Fe": {...}}`, the
            element that makes it first (eam/fs). Nested, since a key "Al-Fe" would be the same as "Fe-Al".
        phi: r φ(r) of a pair [eV Å] at the same distances, `{"Al-Fe": (Nr,), ...}`.
        drho, dr [Å]: steps of the grids; cutoff [Å]. All static.
        interpolation: `"spline"`, cubic with two continuous derivatives (not-a-knot at the ends), or `"lammps"`, LAMMPS's
            own cubics with one. Beyond its grid F goes on straight, f and r φ keep their last value up to the cutoff.

    How smooth it is at the cutoff is up to the tables, whose last values should be zeros.

    M. S. Daw, M. I. Baskes, Phys. Rev. B 29, 6443 (1984), doi:10.1103/PhysRevB.29.6443;
    M. W. Finnis, J. E. Sinclair, Philos. Mag. A 50, 45 (1984), doi:10.1080/01418618408244210.
    """

    units: ClassVar = {"F": "eV", "phi": "eV Angstrom", "rho": ""}

    F: dict[str, Float[Any, " densities"]]
    rho: dict[str, Float[Any, " distances"] | dict[str, Float[Any, " distances"]]]
    phi: dict[str, Float[Any, " distances"]]
    drho: float = static()
    dr: float = static()
    cutoff: float = static()
    interpolation: str = static("spline")

    def __check_init__(self) -> None:
        if self.interpolation not in _SLOPES:
            raise InputError(f"EAM has no interpolation {self.interpolation!r}.{did_you_mean(str(self.interpolation), _SLOPES)}")
        for name in ("drho", "dr", "cutoff"):
            if not 0.0 < getattr(self, name) < np.inf:
                raise InputError(f"EAM's {name} must be positive, not {getattr(self, name)!r}.")
        for names in (("F",), ("rho", "phi")):
            tables = [getattr(self, name) for name in names]
            if not all(isinstance(table, dict) for table in tables):
                raise InputError(f"EAM's {' and '.join(names)} must be dicts of tables, by element and by pair.")
            shapes = {np.shape(table) for table in jax.tree.leaves(tables)}
            if len(shapes) != 1 or len(shape := shapes.pop()) != 1 or shape[0] < MIN_TABLE:
                raise InputError(f"EAM's tables {' and '.join(names)} must have one length, of {MIN_TABLE} values or more.")

    @classmethod
    def from_file(
        cls,
        path: str | Path | Sequence[str | Path],
        form: str | None = None,
        interpolation: str = "spline",
        elements: str | Sequence[str] | None = None,
    ) -> "EAM":
        """Read a setfl file, LAMMPS's `eam/alloy` and `eam/fs`, or funcfl files, its `eam`: `ms.EAM.from_file("Cu.eam.alloy")`.

        A warning says by how much the two interpolations differ where tables are so coarse that it matters.

        Args:
            path: of a file; of funcfl files, which are of one element, also a list of them, whose pairs are mixed as LAMMPS does.
            form: `"alloy"`, `"fs"` or `"funcfl"`; by default whichever the file looks like.
            elements: some of the file's; all by default.

        Raises:
            InputError: no such file, one cut off or of another form, an element that is not in it.
        """
        potential = cls(**read_tables(path, form, elements), interpolation=interpolation)
        # Inside of a trace there are no values to look at.
        named = ", ".join(map(repr, map(str, path if isinstance(path, list | tuple) else [path])))
        if interpolation == "spline" and is_concrete(potential) and (words := coarseness(potential, _lammps_slopes)):
            warnings.warn(
                f"The tables of {named} are so coarse that their C2 spline is not what LAMMPS interpolates: {words}; "
                'interpolation="lammps" gives LAMMPS\'s numbers.',
                UserWarning,
                stacklevel=level_of_user(),
            )
        return potential

    @property
    def smoothness(self) -> float:
        return {"spline": 2, "lammps": 1}[self.interpolation]

    def check(self, system: System) -> None:
        super().check(system)
        for element in system.labels:
            densities = self.rho[element]
            if isinstance(densities, dict) and (missing := sorted(set(system.labels) - set(densities))):
                raise InputError(
                    f"EAM.rho[{element!r}] has no entry {missing[0]!r}: add the density of {element} at {missing[0]}."
                )

    def pair_energy(self, r: Float[Array, ""], i: Atom, j: Atom) -> Float[Array, ""]:
        labels = i.labels
        pairs = [tuple(sorted((a, b))) for a in labels for b in labels]
        kinds = sorted(set(pairs))
        which = np.array([kinds.index(pair) for pair in pairs]).reshape(len(labels), len(labels))
        tables = self._tables([self.phi["-".join(pair)] for pair in kinds])
        return _interpolate(tables, jnp.asarray(which)[i.code, j.code], r / self.dr) / r

    def density(self, r: Float[Array, ""], i: Atom, j: Atom) -> Float[Array, ""]:
        labels = i.labels
        by_pair = isinstance(self.rho[labels[0]], dict)
        tables = self._tables([self.rho[a][b] for a in labels for b in labels] if by_pair else [self.rho[a] for a in labels])
        return _interpolate(tables, j.code * len(labels) + i.code if by_pair else j.code, r / self.dr)

    def embedding(self, rho: Float[Array, ""], i: Atom) -> Float[Array, ""]:
        (values, slopes), x = self._tables([self.F[a] for a in i.labels]), rho / self.drho
        last = values.shape[1] - 1
        return _interpolate((values, slopes), i.code, x) + jnp.maximum(x - last, 0.0) * slopes[i.code, last]

    def _tables(self, tables: Any) -> tuple[Array, Array]:
        values = jnp.stack(tables)
        return values, jax.vmap(_SLOPES[self.interpolation])(values)


def _interpolate(tables: tuple[Float[Array, "kinds points"], Float[Array, "kinds points"]], kind: Any, x: Array) -> Array:
    """Return the piecewise cubic of values and slopes (per step) at x, in steps of the grid; constant beyond the last point."""
    points = tables[0].shape[1]
    place = jnp.clip(jnp.floor(jax.lax.stop_gradient(x)).astype(jnp.int32), 0, points - 2)
    # Numbers at both ends one after another, and no array of coefficients: compilers gather numbers faster than rows.
    (value, end), (slope, end_slope) = (
        [table.ravel().at[kind * points + place + side].get(**IN_BOUNDS) for side in (0, 1)] for table in tables
    )
    rise, p = end - value, jnp.minimum(x - place, 1.0)
    third = slope + end_slope - 2.0 * rise
    return value + p * (slope + p * (rise - slope - third + p * third))


def _lammps_slopes(f: Array) -> Array:
    """Return LAMMPS's slopes (PairEAM::interpolate): from five points inside, three beside the ends, two at them."""
    inside = (f[:-4] - f[4:] + 8.0 * (f[3:-1] - f[1:-3])) / 12.0
    start = jnp.stack([f[1] - f[0], 0.5 * (f[2] - f[0])])
    end = jnp.stack([0.5 * (f[-1] - f[-3]), f[-1] - f[-2]])
    return jnp.concatenate([start, inside, end])


def _spline_slopes(f: Array) -> Array:
    """Return the slopes with a second derivative continuous everywhere, and a third at the second and last but one value."""
    n = f.shape[0]
    ones = jnp.ones(n, f.dtype)
    # s_(k-1) + 4 s_k + s_(k+1) = 3 (f_(k+1) - f_(k-1)); at an end, s_0 + 2 s_1 = (-5 f_0 + 4 f_1 + f_2) / 2.
    right = jnp.concatenate(
        [0.5 * (-5.0 * f[:1] + 4.0 * f[1:2] + f[2:3]), 3.0 * (f[2:] - f[:-2]), 0.5 * (5.0 * f[-1:] - 4.0 * f[-2:-1] - f[-3:-2])]
    )
    below = ones.at[0].set(0.0).at[-1].set(2.0)
    above = ones.at[0].set(2.0).at[-1].set(0.0)
    middle = (4.0 * ones).at[np.array([0, -1])].set(1.0)
    return jax.lax.linalg.tridiagonal_solve(below, middle, above, right[:, None])[:, 0]


_SLOPES = {"spline": _spline_slopes, "lammps": _lammps_slopes}
