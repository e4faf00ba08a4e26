"""Derivatives of positions on the structure: as arrows and as colours; in 2-D, in 3-D, and in a slice."""

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
"""Share of the distance between neighbours by which nothing moves where a derivative is drawn as zero, if θ changed by itself."""

ALMOST = 1e-9
"""Share of the longest arrow up to which its part in a plane is rounding."""

NARROW = 2.5
"""Height of a slice in its widths, or width in its heights, from which the picture has its shape."""

MARKS = "os^Dv"
"""Of species in a slice."""


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
    """A 2-D packing as discs, soft spheres at their true size and others as large as there is room, with dX/dθ as arrows.

    Args:
        eq: an equilibrium in 2-D.
        derivative: dX/dθ of one parameter; `S.positions.diameter["B"]`.
        parameter: its name, for the title.
        unit: of the derivative, `"Å/eV"`.
        coloured: colour the discs by |dX/dθ| instead of by species.

    Raises:
        InputError: a system that is not 2-D, colours without a derivative.
    """
    system = eq.system
    if system.dim != 2 or system.cell is None:
        raise InputError("plot.packing draws 2-D systems with a cell; for a crystal use plot.crystal.")
    ax = axes_or_new(ax)
    if coloured and derivative is None:
        raise InputError("plot.packing colours discs by a derivative: give one, or leave coloured out.")
    arrows = None if derivative is None else _of_one_parameter(derivative, system)
    told = f" [{unit}]" if unit else ""
    positions, sizes, codes = _wrapped(system), _diameters(eq), np.asarray(system.species)
    if arrows is not None:
        arrows = _cleaned(arrows, eq)
    if coloured and arrows is not None:
        lengths = np.linalg.norm(arrows, axis=1)
        discs = _discs(ax, positions, sizes, system, array=np.repeat(lengths, _copies(system)), cmap="viridis", alpha=0.9)
        ax.figure.colorbar(discs, ax=ax, shrink=0.8, label=f"|∂x*/∂{parameter}|{told}")
    else:
        for code in range(len(system.labels)):
            chosen = codes == code
            _discs(ax, positions[chosen], sizes[chosen], system, facecolors=COLOURS[code % len(COLOURS)], alpha=0.55)
    if arrows is not None:
        longest = np.linalg.norm(arrows, axis=1).max()
        spacing = np.sqrt(abs(np.linalg.det(np.asarray(system.cell))) / len(system))
        if longest > 0.0:
            factor = ARROW_SHARE * spacing * 2.0 / longest
            ax.quiver(*positions.T, *(factor * arrows).T, angles="xy", scale_units="xy", scale=1.0, width=0.004, zorder=3)
        ax.set_title(f"∂x*/∂{parameter}, {_longest(longest, unit, '.2f')}")
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]) @ np.asarray(system.cell)
    ax.plot(*corners.T, color="0.6", linewidth=0.8)
    ax.set_aspect("equal")
    ax.set_xlim(corners[:, 0].min(), corners[:, 0].max())
    ax.set_ylim(corners[:, 1].min(), corners[:, 1].max())
    ax.set_xlabel("x [Å]")
    ax.set_ylabel("y [Å]")
    true = hasattr(eq.potential, "diameter")
    names = [f"{label} ({_of_sizes(sizes[codes == k])})" if true else label for k, label in enumerate(system.labels)]
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
    """Atoms around a point, coloured by |dX/dθ|, with dX/dθ relative to a uniform change of scale as arrows.

    Args:
        derivative: dX/dθ of one parameter [Å per unit of θ], or θ dX/dθ.
        centre: the point, a vacancy say [Å], drawn as a dashed circle; by default the atom that moves most.
        radius: of what is shown around it [Å].
        parameter: name for the colour bar.
        unit: of the derivative, `"Å/eV"`.

    Raises:
        InputError: a system that is not 3-D, something else than the derivative in one parameter.
    """
    system = eq.system
    if system.dim != 3:
        raise InputError("plot.crystal draws 3-D systems; for a packing use plot.packing.")
    ax = axes_or_new(ax, projection="3d")
    arrows = _cleaned(_of_one_parameter(derivative, system), eq)
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
    shown = np.linalg.norm(offset, axis=1) < radius
    x, v, c = offset[shown], arrows[shown], size[shown]
    for a, b in _bonds(x):
        ax.plot(*np.array([x[a], x[b]]).T, color="0.8", linewidth=0.8, zorder=1)
    points = ax.scatter(
        *x.T, c=c, cmap="viridis", vmin=0.0, vmax=c.max() or 1.0, s=90, depthshade=False, edgecolors="0.3", linewidths=0.4
    )
    if c.max() > 0.0:
        ax.quiver(*x.T, *(v * ARROW_SHARE * 2.35 / c.max()).T, color="#e45756", linewidth=1.4, arrow_length_ratio=0.3)
    ax.figure.colorbar(points, ax=ax, shrink=0.65, pad=0.1, label=f"|{parameter}|  [{unit}]")
    ax.set_title(f"{parameter}: {_longest(c.max(), unit, '.3g')}")
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
    """A slice through a 3-D structure: the atoms in it coloured by |dX/dθ|, the part of dX/dθ in the plane as arrows.

    Args:
        derivative: dX/dθ of one parameter [Å per unit of θ], or θ dX/dθ.
        normal: the axis that the slice is perpendicular to.
        height: of its middle along that axis [Å]; by default that of the atom that moves most.
        thickness: of the slice [Å].
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
    arrows = _cleaned(_of_one_parameter(derivative, system), eq)
    size = np.linalg.norm(arrows, axis=1)
    positions = _wrapped(system) if system.cell is not None and all(system.pbc) else np.asarray(system.positions)
    height = float(positions[size.argmax(), across]) if height is None else height
    shown = np.abs(positions[:, across] - height) <= 0.5 * thickness
    if not shown.any():
        raise InputError(f"No atom lies within {0.5 * thickness:g} Å of {normal} = {height:g} Å: choose another height.")
    x, v, c = positions[shown][:, along], arrows[shown][:, along], size[shown]
    ax = _axes_of_shape(ax, x)
    codes = np.asarray(system.species)[shown]
    for code in np.unique(codes):
        of = codes == code
        label = system.labels[code]
        points = ax.scatter(
            *x[of].T,
            c=c[of],
            cmap="viridis",
            vmin=0.0,
            vmax=c.max() or 1.0,
            s=110,
            marker=MARKS[code % len(MARKS)],
            edgecolors="0.3",
            linewidths=0.5,
            label=label,
        )
    longest = np.linalg.norm(v, axis=1).max()
    if longest <= ALMOST * c.max():  # out of the plane
        longest = 0.0
    if longest > 0.0:
        spacing = (abs(np.linalg.det(np.asarray(system.cell))) / len(system)) ** (1 / 3) if system.cell is not None else 2.5
        arrows = v * (ARROW_SHARE * spacing / longest)
        ax.quiver(*x.T, *arrows.T, angles="xy", scale_units="xy", scale=1.0, width=0.005, color="#e45756", zorder=3)
    ax.margins(0.12)
    ax.figure.colorbar(points, ax=ax, shrink=0.8, label=f"|{parameter}|  [{unit}]")
    where = f"{normal} = {height:.2f} ± {0.5 * thickness:.2f} Å"
    inside = "no arrows in the plane" if longest == 0.0 < c.max() else _longest(longest, unit, ".3g")
    ax.set_title(f"{parameter} at {where}:\n{inside}", fontsize="medium")
    ax.set(aspect="equal", xlabel=f"{'xyz'[along[0]]} [Å]", ylabel=f"{'xyz'[along[1]]} [Å]")
    if len(system.labels) > 1:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=len(system.labels), frameon=False)
    return ax


def _axes_of_shape(ax: Any, x: np.ndarray) -> Any:
    """Given axes, or fresh ones of the shape of a long and narrow slice."""
    width, height = np.ptp(x, axis=0) + 2.0
    if ax is None and not 1.0 / NARROW < height / width < NARROW:
        import matplotlib.pyplot as plt

        size = (5.2, 9.0) if height > width else (10.0, 4.2)
        return plt.figure(figsize=size, layout="constrained").add_subplot()
    return axes_or_new(ax)


def _of_sizes(sizes: np.ndarray) -> str:
    """The diameters of one species, in words."""
    lowest, highest = (f"{size:.3g}" for size in (sizes.min(initial=np.inf), sizes.max(initial=0.0)))
    return f"diameter {lowest} Å" if lowest == highest else f"diameters {lowest} to {highest} Å"


def _longest(length: float, unit: str, form: str) -> str:
    """What a title says of the longest arrow."""
    return f"longest arrow {length:{form}} {unit}".rstrip() if length > 0.0 else "nothing moves"


def _cleaned(arrows: np.ndarray, eq: "Equilibrium") -> np.ndarray:
    """The same without what is rounding, or what is left of the forces: zero where nothing else is there."""
    system = eq.system
    volume = None if system.cell is None else abs(np.linalg.det(np.asarray(system.cell)))
    spacing = (volume / len(system)) ** (1.0 / system.dim) if volume else 2.5
    thetas = np.concatenate([np.ravel(np.abs(leaf)) for leaf in jax.tree.leaves(getattr(eq, "potential", None))] or [np.ones(1)])
    theta = np.median(thetas[thetas > 0.0]) if (thetas > 0.0).any() else 1.0
    found = getattr(eq, "curvature", None)
    off = eq.fmax / found.lowest if found is not None and 0.0 < found.lowest < np.inf else 0.0
    return arrows if np.abs(arrows).max(initial=0.0) > max(ROUNDING * spacing, off) / theta else np.zeros_like(arrows)


def _discs(ax: Any, positions: np.ndarray, sizes: np.ndarray, system: "System", **look: Any) -> Any:
    from matplotlib.collections import EllipseCollection

    places, widths = _with_images(positions, sizes, system)
    discs = EllipseCollection(
        widths, widths, 0.0, units="xy", offsets=places, offset_transform=ax.transData, edgecolors="white", linewidths=0.8, **look
    )
    ax.add_collection(discs)
    return discs


def _copies(system: "System") -> int:
    """Images of each disc that are drawn."""
    return 3 ** sum(system.pbc)


def _wrapped(system: "System") -> np.ndarray:
    cell = np.asarray(system.cell)
    fractional = np.asarray(system.positions) @ np.linalg.inv(cell)
    return (fractional - np.floor(fractional) * np.asarray(system.pbc)) @ cell


def _with_images(positions: np.ndarray, sizes: np.ndarray, system: "System") -> tuple[np.ndarray, np.ndarray]:
    """Discs with their periodic images around the cell."""
    steps = [(-1, 0, 1) if flag else (0,) for flag in system.pbc]
    shifts = np.array(list(itertools.product(*steps))) @ np.asarray(system.cell)
    return (positions[:, None] + shifts).reshape(-1, system.dim), np.repeat(sizes, len(shifts))


def _diameters(eq: "Equilibrium") -> np.ndarray:
    diameter = getattr(eq.potential, "diameter", None)
    if isinstance(diameter, dict):
        return np.array([float(diameter[label]) for label in eq.system.symbols])
    if diameter is None:
        spacing = np.sqrt(abs(np.linalg.det(np.asarray(eq.system.cell))) / len(eq.system))
        return np.full(len(eq.system), min(0.5 * float(eq.potential.range), spacing))
    return np.broadcast_to(np.asarray(diameter), len(eq.system)).astype(float)


def _of_one_parameter(derivative: Any, system: "System") -> Float[np.ndarray, "atoms dim"]:
    """Raises InputError for something else than dX/dθ of one parameter of this system."""
    array = np.asarray(derivative)
    if array.shape != (wanted := (len(system), system.dim)):
        given = f"an array of shape {array.shape}" if array.shape else type(derivative).__name__
        raise InputError(
            f"A picture is of the derivative in one parameter, of shape {wanted}, such as sensitivity(eq).positions.sigma, "
            f"not {given}."
        )
    return array


def _bonds(x: np.ndarray) -> Any:
    """Pairs of shown atoms within 1.2 of the shortest distance."""
    distance = np.linalg.norm(x[:, None] - x[None], axis=-1)
    distance[np.tril_indices(len(x))] = np.inf
    return np.argwhere(distance < 1.2 * distance.min()) if len(x) > 1 else []
