"""Pictures. Each function draws into `ax` (or makes one), says what its colours and scales mean, and returns its axes."""

import itertools

import numpy as np
from jaxtyping import Array, Float

from mdsens.errors import InputError

COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756")
ARROW_SHARE = 0.6
"""Length of the longest arrow in units of the mean distance between neighbours."""


def packing(eq, derivative: Float[Array, "atoms 2"] | None = None, *, parameter: str = "θ", ax=None):
    """A 2-D packing as discs at their true size (soft spheres; others at half their range), with dX/dθ as arrows.

    Args:
        eq: an equilibrium of soft spheres in 2-D.
        derivative: dX/dθ of one parameter; `S.positions.diameter["B"]`.
        parameter: its name, for the legend.

    Raises:
        InputError: a system that is not 2-D.
    """
    from matplotlib.collections import EllipseCollection

    system = eq.system
    if system.dim != 2 or system.cell is None:
        raise InputError("plot.packing draws 2-D systems with a cell; for a crystal use plot.crystal.")
    ax = _axes(ax)
    positions, sizes, codes = _wrapped(system), _diameters(eq), np.asarray(system.species)
    for code in range(len(system.labels)):
        chosen = codes == code
        places, widths = _with_images(positions[chosen], sizes[chosen], system)
        discs = EllipseCollection(
            widths,
            widths,
            0.0,
            units="xy",
            offsets=places,
            offset_transform=ax.transData,
            facecolors=COLOURS[code % len(COLOURS)],
            edgecolors="white",
            linewidths=0.8,
            alpha=0.55,
        )
        ax.add_collection(discs)
    if derivative is not None:
        arrows = np.asarray(derivative)
        longest = np.linalg.norm(arrows, axis=1).max()
        spacing = np.sqrt(abs(np.linalg.det(np.asarray(system.cell))) / len(system))
        factor = ARROW_SHARE * spacing * 2.0 / longest if longest > 0.0 else 1.0
        ax.quiver(*positions.T, *(factor * arrows).T, angles="xy", scale_units="xy", scale=1.0, width=0.004, zorder=3)
        ax.set_title(f"∂x*/∂{parameter}, longest arrow {longest:.2f}")
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]) @ np.asarray(system.cell)
    ax.plot(*corners.T, color="0.6", linewidth=0.8)
    ax.set_aspect("equal")
    ax.set_xlim(corners[:, 0].min(), corners[:, 0].max())
    ax.set_ylim(corners[:, 1].min(), corners[:, 1].max())
    ax.set_xlabel("x")
    ax.set_ylabel("y")
    handles = [
        _patch(COLOURS[code % len(COLOURS)], f"{label} (diameter {sizes[codes == code].mean():.3g})")
        for code, label in enumerate(system.labels)
    ]
    ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2, frameon=False)
    return ax


def crystal(eq, derivative: Float[Array, "atoms 3"], *, centre=None, radius: float = 8.0, parameter: str = "θ", ax=None):
    """Atoms around a point, coloured by |dX/dθ|, with dX/dθ relative to a uniform change of scale as arrows.

    Args:
        derivative: dX/dθ of one parameter [Å per unit of θ], or θ dX/dθ.
        centre: the point, a vacancy say [Å], drawn as a dashed circle; by default the atom that moves most.
        radius: of what is shown around it [Å].
        parameter: name for the colour bar.

    Raises:
        InputError: a system that is not 3-D.
    """
    system = eq.system
    if system.dim != 3:
        raise InputError("plot.crystal draws 3-D systems; for a packing use plot.packing.")
    ax = _axes(ax, projection="3d")
    derivative = np.asarray(derivative)
    size = np.linalg.norm(derivative, axis=1)
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
    x, v, c = offset[shown], derivative[shown], size[shown]
    for a, b in _bonds(x):
        ax.plot(*np.array([x[a], x[b]]).T, color="0.8", linewidth=0.8, zorder=1)
    points = ax.scatter(*x.T, c=c, cmap="viridis", s=90, depthshade=False, edgecolors="0.3", linewidths=0.4)
    if c.max() > 0.0:
        ax.quiver(*x.T, *(v * ARROW_SHARE * 2.35 / c.max()).T, color="#e45756", linewidth=1.4, arrow_length_ratio=0.3)
    ax.figure.colorbar(points, ax=ax, shrink=0.65, pad=0.1, label=f"|{parameter}|  [Å]")
    ax.set_title(f"{parameter}: arrows to scale, longest {c.max():.3g} Å")
    ax.set_box_aspect((1, 1, 1))
    for name, setter in zip("xyz", (ax.set_xlabel, ax.set_ylabel, ax.set_zlabel), strict=True):
        setter(f"{name} - centre [Å]")
    return ax


def influence(values: dict[str, float], *, label: str, ax=None):
    """A bar for each parameter's influence, on a logarithmic scale; what is exactly or nearly zero is said so.

    Args:
        values: by parameter, signed or not; the largest sets the scale.
        label: what they are, with unit: `"max |θ dX/dθ| [Å]"`.
    """
    ax = _axes(ax)
    names = sorted(values, key=lambda name: abs(values[name]))
    sizes = np.array([abs(float(values[name])) for name in names])
    top = sizes.max(initial=0.0) or 1.0
    floor = 1e-7 * top
    visible = sizes > floor
    signs = np.array([np.sign(float(values[name])) for name in names])
    colours = [COLOURS[0] if sign >= 0 else COLOURS[1] for sign in signs]
    ax.barh(names, np.where(visible, sizes, floor), color=colours)
    ax.set_xscale("log")
    ax.set_xlim(floor, 20.0 * top)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
    for row, (value, seen) in enumerate(zip(sizes, visible, strict=True)):
        ax.text(value * 1.2 if seen else floor * 1.5, row, f"{signs[row] * value:.3g}" if seen else "0", va="center")
    ax.set_xlabel(label)
    if (signs[visible] < 0).any():
        ax.legend(handles=[_patch(COLOURS[0], "positive"), _patch(COLOURS[1], "negative")], loc="lower right", frameon=False)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    return ax


def validity(found, *, ax=None):
    """Predicted displacements against those of structures relaxed again, with the range in which they should agree.

    Args:
        found: what `mdsens.validity(..., checks=n)` returned.

    Raises:
        InputError: a validity without checks.
    """
    if not found.checks:
        raise InputError("plot.validity wants structures relaxed again: ask for validity(eq, direction, checks=5).")
    ax = _axes(ax)
    t = np.array([0.0, *(check.t for check in found.checks)])
    predicted = np.array([0.0, *(check.predicted for check in found.checks)])
    relaxed = np.array([0.0, *(check.relaxed for check in found.checks)])
    ax.axvspan(0.0, min(found.range, t[-1]), color="0.93", zorder=0, label=f"stated range, error up to {found.share:.0%}")
    ax.plot(t, predicted, color=COLOURS[0], label=f"predicted, order {found.order}")
    ax.plot(t, relaxed, color=COLOURS[1], marker="o", linestyle="none", label="relaxed again")
    ax.set_xlabel("t, in units of the direction")
    ax.set_ylabel("displacement of all atoms [Å]")
    ax.set_xlim(left=0.0)
    ax.set_ylim(bottom=0.0)
    ax.ticklabel_format(scilimits=(-2, 3))
    ax.legend(frameon=False)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    return ax


def convergence(values: Float[Array, " steps"], *, label: str, ax=None):
    """What goes to zero step by step, on a logarithmic scale; zeros are left out.

    Args:
        label: what it is, with unit.
    """
    ax = _axes(ax)
    values = np.asarray(values, dtype=float)
    steps = np.flatnonzero(values > 0.0)
    ax.semilogy(steps, values[steps], color=COLOURS[0], marker="o")
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel("steps")
    ax.set_ylabel(label)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    return ax


def chain(path, *, ax=None):
    """The energy along a chain of images against the length of the path, with the highest image marked.

    Args:
        path: what `nudged_chain` returned.
    """
    ax = _axes(ax)
    heights = path.energies - path.energies[0]
    ax.plot(path.lengths, heights, color=COLOURS[0], marker="o")
    ax.plot(
        path.lengths[path.highest],
        heights[path.highest],
        color=COLOURS[1],
        marker="o",
        markersize=10,
        linestyle="none",
        label=f"highest image, {heights[path.highest]:.4g} eV",
    )
    ax.set_xlabel("length of the path [Å]")
    ax.set_ylabel("energy above the first image [eV]")
    ax.legend(frameon=False)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    return ax


def phonons(path, frequencies: Float[Array, "points bands"], *, ax=None):
    """Phonon bands along a path, with a line at each special point; below the zero line are imaginary frequencies.

    Args:
        path: from `observables.phonon_path`.
        frequencies: along it [THz]: `observables.phonon_frequencies(path.q)(system, potential)`.

    Raises:
        InputError: frequencies of another path.
    """
    frequencies = np.asarray(frequencies)
    if frequencies.ndim != 2 or len(frequencies) != len(path.distances):
        raise InputError(f"plot.phonons wants frequencies of shape ({len(path.distances)}, bands), not {frequencies.shape}.")
    ax = _axes(ax)
    ax.plot(path.distances, frequencies, color=COLOURS[0], linewidth=1.2)
    for tick in path.ticks:
        ax.axvline(tick, color="0.7", linewidth=0.6, zorder=0)
    ax.axhline(0.0, color="0.4", linewidth=0.6, zorder=0)
    ax.set_xticks(path.ticks, path.labels)
    ax.set_xlim(path.distances[0], path.distances[-1])
    ax.set_ylabel("frequency [THz]")
    return ax


def _axes(ax, **options):
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.figure(figsize=(6.4, 5.6), layout="constrained").add_subplot(**options)


def _patch(colour, label):
    from matplotlib.patches import Patch

    return Patch(facecolor=colour, label=label)


def _wrapped(system):
    cell = np.asarray(system.cell)
    fractional = np.asarray(system.positions) @ np.linalg.inv(cell)
    return (fractional - np.floor(fractional) * np.asarray(system.pbc)) @ cell


def _with_images(positions, sizes, system):
    """Discs with their periodic images around the cell."""
    steps = [(-1, 0, 1) if flag else (0,) for flag in system.pbc]
    shifts = np.array(list(itertools.product(*steps))) @ np.asarray(system.cell)
    return (positions[:, None] + shifts).reshape(-1, system.dim), np.repeat(sizes, len(shifts))


def _diameters(eq):
    diameter = getattr(eq.potential, "diameter", None)
    if isinstance(diameter, dict):
        return np.array([float(diameter[label]) for label in eq.system.symbols])
    if diameter is None:
        spacing = np.sqrt(abs(np.linalg.det(np.asarray(eq.system.cell))) / len(eq.system))
        return np.full(len(eq.system), min(0.5 * float(eq.potential.range), spacing))
    return np.broadcast_to(np.asarray(diameter), len(eq.system)).astype(float)


def _bonds(x):
    """Pairs of shown atoms within 1.2 of the shortest distance."""
    distance = np.linalg.norm(x[:, None] - x[None], axis=-1)
    distance[np.tril_indices(len(x))] = np.inf
    return np.argwhere(distance < 1.2 * distance.min()) if len(x) > 1 else []
