"""Pictures of structures with derivatives of positions as arrows and colours: in 2-D, in 3-D, and in a slice."""

import itertools
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from mdsens.common.errors import InputError
from mdsens.common.suggestions import suggest_names
from mdsens.plot.drawing import COLOURS, axes_or_new, patch

if TYPE_CHECKING:
    from mdsens.equilibrium.relaxation import Equilibrium
    from mdsens.structures.system import System

ARROW_SHARE = 0.6
"""Length of the longest arrow in units of the mean distance between neighbours."""

ROUNDING = 1e-10
"""Displacement θ dX/dθ, as a share of the distance between neighbours, up to which a derivative is drawn as zero."""

PLANE_ROUNDING = 1e-9
"""Share of the longest arrow up to which its part in a plane is rounding."""

ASPECT = 2.5
"""Ratio of a slice's sides from which the picture has the slice's shape."""

MARKERS = "os^Dv"
"""Markers of the species in a slice."""

SPACING = 2.5
"""Distance between neighbours where there is no cell to tell it [Å]."""


@suggest_names
def packing(
    eq: "Equilibrium",
    derivative: Float[ArrayLike, "atoms 2"] | None = None,
    *,
    parameter: str = "θ",
    unit: str = "",
    coloured: bool = False,
    ax: Any = None,
) -> Any:
    """Draw a 2-D packing as discs, soft spheres at their true size, others as large as there is room, with dX/dθ as arrows.

    Args:
        eq: an equilibrium in 2-D.
        derivative: dX/dθ of one parameter; `S.positions.diameter["B"]`.
        parameter: its name, for the title.
        unit: of the derivative, `"Å/eV"`.
        coloured: colour the discs by |dX/dθ| instead of by species.

    Raises:
        InputError: a system that is not 2-D, colours without a derivative.

    Example:
        ms.plot.packing(eq, ms.sensitivity(eq).positions.diameter["B"], parameter="diameter of B")
    """
    system = eq.system
    if system.dim != 2 or system.cell is None:
        raise InputError("plot.packing draws 2-D systems with a cell; for a crystal use plot.crystal.")
    ax = axes_or_new(ax)
    if coloured and derivative is None:
        raise InputError("plot.packing colours discs by a derivative: give one, or leave coloured out.")
    arrows = None if derivative is None else _arrows(derivative, eq)
    positions, sizes, codes = _wrapped(system), _diameters(eq), np.asarray(system.species)
    if coloured and arrows is not None:
        lengths = np.linalg.norm(arrows, axis=1)
        discs = _discs(ax, positions, sizes, system, array=np.repeat(lengths, 3 ** sum(system.pbc)), cmap="viridis", alpha=0.9)
        ax.figure.colorbar(discs, ax=ax, shrink=0.8, label=f"|∂x*/∂{parameter}|{f' [{unit}]' if unit else ''}")
    else:
        for code in range(len(system.labels)):
            chosen = codes == code
            _discs(ax, positions[chosen], sizes[chosen], system, facecolors=COLOURS[code % len(COLOURS)], alpha=0.55)
    if arrows is not None:
        longest = np.linalg.norm(arrows, axis=1).max()
        if longest > 0.0:
            factor = ARROW_SHARE * _spacing(system) * 2.0 / longest
            ax.quiver(*positions.T, *(factor * arrows).T, angles="xy", scale_units="xy", scale=1.0, width=0.004, zorder=3)
        ax.set_title(f"∂x*/∂{parameter}, {_arrow_text(longest, unit, '.2f')}")
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]) @ np.asarray(system.cell)
    ax.plot(*corners.T, color="0.6", linewidth=0.8)
    (left, bottom), (right, top) = corners.min(axis=0), corners.max(axis=0)
    ax.set(aspect="equal", xlim=(left, right), ylim=(bottom, top), xlabel="x [Å]", ylabel="y [Å]")
    true = hasattr(eq.potential, "diameter")
    names = [f"{label} ({_diameter_text(sizes[codes == k])})" if true else label for k, label in enumerate(system.labels)]
    handles = [patch(COLOURS[k % len(COLOURS)], name) for k, name in enumerate(names)]
    if not coloured:
        ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2, frameon=False)
    return ax


@suggest_names
def crystal(
    eq: "Equilibrium",
    derivative: Float[ArrayLike, "atoms 3"],
    *,
    centre: Float[ArrayLike, "3"] | None = None,
    radius: float = 8.0,
    parameter: str = "θ",
    unit: str = "Å",
    ax: Any = None,
) -> Any:
    """Draw the atoms around a point, coloured by |dX/dθ|, with dX/dθ as arrows.

    Args:
        derivative: dX/dθ of one parameter [Å per unit of θ], or θ dX/dθ.
        centre: the point, a vacancy say [Å], drawn as a dashed circle; by default the atom that moves most.
        radius: radius of the sphere of atoms that are drawn [Å].
        parameter: name for the colour bar.
        unit: of the derivative, `"Å/eV"`.

    Raises:
        InputError: a system that is not 3-D, a derivative of another shape.
    """
    system = eq.system
    if system.dim != 3:
        raise InputError("plot.crystal draws 3-D systems; for a packing use plot.packing.")
    ax = axes_or_new(ax, projection="3d")
    arrows = _arrows(derivative, eq)
    size = np.linalg.norm(arrows, axis=1)
    positions = np.asarray(system.positions)
    if centre is None:
        centre = positions[size.argmax()]
    else:
        ax.scatter(0, 0, 0, s=160, facecolors="none", edgecolors="0.4", linestyles="dashed", label="centre")
    offset = positions - centre
    if any(system.pbc):
        cell = np.asarray(system.cell)
        offset = offset - (np.round(offset @ np.linalg.pinv(cell)) * np.asarray(system.pbc)) @ cell
    inside = np.linalg.norm(offset, axis=1) < radius
    x, v, c = offset[inside], arrows[inside], size[inside]
    for a, b in _bonds(x):
        ax.plot(*np.array([x[a], x[b]]).T, color="0.8", linewidth=0.8, zorder=1)
    points = ax.scatter(
        *x.T, c=c, cmap="viridis", vmin=0.0, vmax=c.max() or 1.0, s=90, depthshade=False, edgecolors="0.3", linewidths=0.4
    )
    if c.max() > 0.0:
        ax.quiver(*x.T, *(v * ARROW_SHARE * 2.35 / c.max()).T, color="#e45756", linewidth=1.4, arrow_length_ratio=0.3)
    ax.figure.colorbar(points, ax=ax, shrink=0.65, pad=0.1, label=f"|{parameter}|  [{unit}]")
    ax.set_title(f"{parameter}: {_arrow_text(c.max(), unit, '.3g')}")
    ax.set_box_aspect((1, 1, 1))
    for name, setter in zip("xyz", (ax.set_xlabel, ax.set_ylabel, ax.set_zlabel), strict=True):
        setter(f"{name} - centre [Å]")
    return ax


@suggest_names
def slab(
    eq: "Equilibrium",
    derivative: Float[ArrayLike, "atoms 3"],
    *,
    normal: str = "z",
    height: float | None = None,
    thickness: float = 3.0,
    parameter: str = "θ",
    unit: str = "Å",
    ax: Any = None,
) -> Any:
    """Draw a slice through a 3-D structure, its atoms coloured by |dX/dθ|, with the part of dX/dθ in the plane as arrows.

    Args:
        derivative: dX/dθ of one parameter [Å per unit of θ], or θ dX/dθ.
        normal: the axis that the slice is perpendicular to.
        height: place of the slice's middle along that axis [Å]; by default that of the atom that moves most.
        thickness: thickness of the slice [Å].
        parameter: name for the colour bar.
        unit: of the derivative, `"Å/eV"`.

    Raises:
        InputError: a system that is not 3-D, an unknown axis, a slice without atoms.
    """
    system = eq.system
    if system.dim != 3:
        raise InputError("plot.slab draws 3-D systems; for a packing use plot.packing.")
    if normal not in tuple("xyz"):
        raise InputError(f"normal must be 'x', 'y' or 'z', not {normal!r}.")
    across = "xyz".index(normal)
    along = [k for k in range(3) if k != across]
    arrows = _arrows(derivative, eq)
    size = np.linalg.norm(arrows, axis=1)
    positions = _wrapped(system) if system.cell is not None and all(system.pbc) else np.asarray(system.positions)
    height = float(positions[size.argmax(), across]) if height is None else height
    inside = np.abs(positions[:, across] - height) <= 0.5 * thickness
    if not inside.any():
        raise InputError(f"No atom lies within {0.5 * thickness:g} Å of {normal} = {height:g} Å: choose another height.")
    x, v, c = positions[inside][:, along], arrows[inside][:, along], size[inside]
    ax = _axes_of_shape(ax, x)
    codes = np.asarray(system.species)[inside]
    for code in np.unique(codes):
        chosen = codes == code
        look = {"marker": MARKERS[code % len(MARKERS)], "s": 110, "edgecolors": "0.3", "linewidths": 0.5}
        colours = {"c": c[chosen], "cmap": "viridis", "vmin": 0.0, "vmax": c.max() or 1.0}
        points = ax.scatter(*x[chosen].T, label=system.labels[code], **colours, **look)
    longest = np.linalg.norm(v, axis=1).max()
    if longest <= PLANE_ROUNDING * c.max():  # out of the plane
        longest = 0.0
    if longest > 0.0:
        arrows = v * (ARROW_SHARE * _spacing(system) / longest)
        ax.quiver(*x.T, *arrows.T, angles="xy", scale_units="xy", scale=1.0, width=0.005, color="#e45756", zorder=3)
    ax.margins(0.12)
    ax.figure.colorbar(points, ax=ax, shrink=0.8, label=f"|{parameter}|  [{unit}]")
    where = f"{normal} = {height:.2f} ± {0.5 * thickness:.2f} Å"
    note = "no arrows in the plane" if longest == 0.0 < c.max() else _arrow_text(longest, unit, ".3g")
    ax.set_title(f"{parameter} at {where}:\n{note}", fontsize="medium")
    ax.set(aspect="equal", xlabel=f"{'xyz'[along[0]]} [Å]", ylabel=f"{'xyz'[along[1]]} [Å]")
    if len(system.labels) > 1:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=len(system.labels), frameon=False)
    return ax


def _axes_of_shape(ax: Any, x: np.ndarray) -> Any:
    """Return the axes, or in place of None new ones, which have the shape of a long and narrow slice."""
    width, height = np.ptp(x, axis=0) + 2.0
    if ax is None and not 1.0 / ASPECT < height / width < ASPECT:
        import matplotlib.pyplot as plt

        size = (5.2, 9.0) if height > width else (10.0, 4.2)
        return plt.figure(figsize=size, layout="constrained").add_subplot()
    return axes_or_new(ax)


def _diameter_text(sizes: np.ndarray) -> str:
    """The diameters of one species, in words."""
    lowest, highest = (f"{size:.3g}" for size in (sizes.min(initial=np.inf), sizes.max(initial=0.0)))
    return f"diameter {lowest} Å" if lowest == highest else f"diameters {lowest} to {highest} Å"


def _arrow_text(length: float, unit: str, form: str) -> str:
    """The length of the longest arrow, in words."""
    return f"longest arrow {length:{form}} {unit}".rstrip() if length > 0.0 else "nothing moves"


def _spacing(system: "System") -> float:
    """A typical distance between neighbours [Å]."""
    volume = 0.0 if system.cell is None else abs(np.linalg.det(np.asarray(system.cell)))
    return float((volume / len(system)) ** (1.0 / system.dim)) if volume else SPACING


def _arrows(derivative: Float[ArrayLike, "atoms dim"], eq: "Equilibrium") -> Float[np.ndarray, "atoms dim"]:
    """Return a derivative, or zero where it is rounding or due to forces that are left; raise InputError for its shape."""
    arrows, spacing = _checked_derivative(derivative, eq.system), _spacing(eq.system)
    thetas = np.concatenate([np.ravel(np.abs(leaf)) for leaf in jax.tree.leaves(eq.potential)] or [np.ones(1)])
    theta = np.median(thetas[thetas > 0.0]) if (thetas > 0.0).any() else 1.0
    lowest = 0.0 if eq.spectrum is None else eq.spectrum.lowest
    error = eq.fmax / lowest if 0.0 < lowest < np.inf else 0.0
    return arrows if np.abs(arrows).max(initial=0.0) > max(ROUNDING * spacing, error) / theta else np.zeros_like(arrows)


def _discs(ax: Any, positions: np.ndarray, sizes: np.ndarray, system: "System", **look: Any) -> Any:
    from matplotlib.collections import EllipseCollection

    places, widths = _images(positions, sizes, system)
    discs = EllipseCollection(
        widths, widths, 0.0, units="xy", offsets=places, offset_transform=ax.transData, edgecolors="white", linewidths=0.8, **look
    )
    ax.add_collection(discs)
    return discs


def _wrapped(system: "System") -> np.ndarray:
    """Positions in the cell."""
    cell = np.asarray(system.cell)
    fractional = np.asarray(system.positions) @ np.linalg.inv(cell)
    return (fractional - np.floor(fractional) * np.asarray(system.pbc)) @ cell


def _images(positions: np.ndarray, sizes: np.ndarray, system: "System") -> tuple[np.ndarray, np.ndarray]:
    """Places and sizes of discs and of their periodic images around the cell, 3 along each periodic direction."""
    steps = [(-1, 0, 1) if flag else (0,) for flag in system.pbc]
    shifts = np.array(list(itertools.product(*steps))) @ np.asarray(system.cell)
    return (positions[:, None] + shifts).reshape(-1, system.dim), np.repeat(sizes, len(shifts))


def _diameters(eq: "Equilibrium") -> np.ndarray:
    """The potential's diameter of each atom, or one for which there is room [Å]."""
    diameter = getattr(eq.potential, "diameter", None)
    if isinstance(diameter, dict):
        return np.array([float(diameter[label]) for label in eq.system.symbols])
    if diameter is None:
        return np.full(len(eq.system), min(0.5 * float(eq.potential.range), _spacing(eq.system)))
    return np.broadcast_to(np.asarray(diameter), len(eq.system)).astype(float)


def _checked_derivative(derivative: Any, system: "System") -> Float[np.ndarray, "atoms dim"]:
    """Return dX/dθ of one parameter of this system; raise InputError for anything else."""
    array = np.asarray(derivative)
    if array.shape != (shape := (len(system), system.dim)):
        argument = f"an array of shape {array.shape}" if array.shape else type(derivative).__name__
        raise InputError(
            f"A picture is of the derivative in one parameter, of shape {shape}, such as sensitivity(eq).positions.sigma, "
            f"not {argument}."
        )
    return array


def _bonds(x: np.ndarray) -> np.ndarray:
    """Pairs of atoms within 1.2 of the shortest distance, `(n_pairs, 2)`."""
    distance = np.linalg.norm(x[:, None] - x[None], axis=-1)
    distance[np.tril_indices(len(x))] = np.inf
    return np.argwhere(distance < 1.2 * distance.min()) if len(x) > 1 else np.zeros((0, 2), dtype=int)
