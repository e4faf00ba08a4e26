"""A result in words and in pictures, for the command line."""

from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import Array, Float

from mdsens import plot
from mdsens.common.errors import InputError, did_you_mean
from mdsens.common.units import derivative_unit, unit_text
from mdsens.derivatives.sensitivities import Sensitivity
from mdsens.equilibrium.relaxation import Equilibrium, equilibrium_lines
from mdsens.potentials.base import Potential, parameter_paths


def describe(eq: Equilibrium, sensitivity: Sensitivity | None) -> Iterator[str]:
    """Yield the lines of a table that a person reads."""
    yield from equilibrium_lines(eq)
    yield ""
    header = "" if sensitivity is None else f" {'max |dX/dθ|':>14} {'':<9} {'max |θ dX/dθ| [Å]':>19}"
    if sensitivity is not None and sensitivity.cell is not None:
        header += f" {'max |θ dh/dθ| [Å]':>19}"
    yield f"  {'parameter':<22} {'value':>14} {'unit':<6}" + header
    yield from _rows(eq, sensitivity)
    if sensitivity is not None:
        yield ""
        first, *rest = str(sensitivity.certificate).splitlines()
        yield f"Certificate  {first}"
        yield from (f"             {line}" for line in rest)


def pictures(eq: Equilibrium, sensitivity: Sensitivity, parameter: str | None) -> dict[str, object]:
    """Return axes by name: `sensitivity`, in 3-D a `slice` through the atom that moves most, and `influence`.

    Raises:
        InputError: a parameter without a derivative.
    """
    largest = {name: values.max() for name, values in _sizes(sensitivity).items()}
    if parameter is None:
        parameter = max(largest, key=largest.__getitem__)
    if parameter not in largest:
        raise InputError(f"There is no derivative with respect to {parameter!r}.{did_you_mean(parameter, largest)}")
    derivative = np.asarray(_by_name(sensitivity.positions)[parameter])
    if derivative.ndim > 2:
        # An array-valued parameter: the value that moves the atoms most.
        flat = derivative.reshape(*derivative.shape[:2], -1)
        entry = int(np.abs(flat).max(axis=(0, 1)).argmax())
        derivative, parameter = flat[..., entry], f"{parameter}[{entry}]"
    unit = unit_text(derivative_unit("Angstrom", eq.potential.unit_of(parameter.partition("[")[0]))) or "Å per its unit"
    draw = plot.packing if eq.system.dim == 2 else plot.crystal
    name = parameter if draw is plot.packing else f"dX/d{parameter}"
    return {
        "sensitivity": draw(eq, derivative, parameter=name, unit=unit),
        **({"slice": plot.slab(eq, derivative, parameter=name, unit=unit)} if eq.system.dim == 3 else {}),
        "influence": plot.influence(largest, label="max |θ dX/dθ| [Å]"),
    }


def _by_name(tree: Potential) -> dict[str, Array]:
    """The leaves of a potential-shaped tree, by parameter."""
    return dict(zip(parameter_paths(tree), jax.tree.leaves(tree), strict=True))


def _sizes(sensitivity: Sensitivity) -> dict[str, np.ndarray]:
    """|θ dX/dθ| of each atom, by parameter."""
    values = _by_name(sensitivity.potential)
    return {name: _lengths(values[name] * leaf) for name, leaf in _by_name(sensitivity.positions).items()}


def _lengths(derivative: Float[Array, "atoms dim *theta"]) -> np.ndarray:
    return np.linalg.norm(np.asarray(derivative).reshape(*derivative.shape[:2], -1), axis=1)


def _rows(eq: Equilibrium, sensitivity: Sensitivity | None) -> Iterator[str]:
    derivatives = {} if sensitivity is None else _by_name(sensitivity.positions)
    cells = {} if sensitivity is None or sensitivity.cell is None else _by_name(sensitivity.cell)
    sizes = {} if sensitivity is None else _sizes(sensitivity)
    for name, theta in _by_name(eq.potential).items():
        value = f"{float(theta):>14.6g}" if theta.ndim == 0 else f"{f'array {theta.shape}':>14}"
        unit = eq.potential.unit_of(name)
        row = f"  {name:<22} {value} {unit_text(unit):<6}"
        if name in derivatives:
            length_unit = unit_text(derivative_unit("Angstrom", unit))
            row += f" {_lengths(derivatives[name]).max():>14.4e} {length_unit:<9} {sizes[name].max():>19.4e}"
            if name in cells:
                row += f" {np.abs(theta * cells[name]).max(initial=0.0):>19.4e}"
        yield row.rstrip()
