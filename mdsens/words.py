"""Objects in a few words, for who prints them: what `repr` of structures, potentials and results says."""

import dataclasses
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import numpy as np

from mdsens.implicit.checks import is_traced

if TYPE_CHECKING:
    from mdsens.derivatives import Sensitivity
    from mdsens.equilibrium import Equilibrium
    from mdsens.potentials.base import Potential
    from mdsens.system import System

WIDTH = 110
"""Of a line."""

FEW = 6
"""Entries that are written out."""


def is_plain(system: "System") -> bool:
    """Whether a structure has values: it has none inside `jit` and `vmap`, and trees of its shape may hold anything."""
    arrays = (system.positions, system.species, system.frozen)
    return all(isinstance(one, jax.Array | np.ndarray) for one in arrays) and not is_traced(system) and system.species.ndim == 1


def atoms(system: "System") -> str:
    """`"63 atoms in 3-D (63 Si)"`."""
    counts = Counter(system.symbols)
    shown = [f"{count} {label}" for label, count in list(counts.items())[:FEW]]
    more = [f"{len(counts) - FEW} more species"] if len(counts) > FEW else []
    return f"{len(system)} atom{'' if len(system) == 1 else 's'} in {system.dim}-D ({', '.join(shown + more)})"


def cell(system: "System") -> str:
    """`"10.8612 x 10.8612 x 10.8612 Å"`, with the angles where one is not right."""
    if system.cell is None:
        return "none"
    vectors = np.asarray(system.cell, dtype=float)
    lengths = np.linalg.norm(vectors, axis=1)
    told = " x ".join(f"{length:.4f}" for length in lengths) + " Å"
    if not (lengths > 0.0).all():
        return told
    cosines = (vectors / lengths[:, None]) @ (vectors / lengths[:, None]).T
    pairs = [(1, 2), (0, 2), (0, 1)] if len(lengths) == 3 else [(0, 1)]
    angles = [np.degrees(np.arccos(np.clip(cosines[pair], -1.0, 1.0))) for pair in pairs]
    return told if np.allclose(angles, 90.0, atol=1e-3) else f"{told}, {', '.join(f'{angle:.5g}' for angle in angles)}°"


def periodicity(system: "System") -> str:
    """`"periodic along xyz"`."""
    along = "".join(name for name, flag in zip("xyz", system.pbc, strict=False) if flag)
    return f"periodic along {along}" if along else "periodic along no direction"


def of_system(system: "System") -> str:
    """A structure in a line."""
    held = int(system.frozen.sum())
    told = [f"{atoms(system)}", f"cell {cell(system)}", periodicity(system), f"{held} frozen" if held else ""]
    return f"System({', '.join(part for part in told if part)})"


def of_potential(potential: "Potential") -> str:
    """A potential, or a tree of its shape, with its numbers; longer arrays by their shape."""
    if len(line := _line(potential)) <= WIDTH:
        return line
    name, _, told = line.removesuffix(")").partition("(")
    lines = textwrap.wrap(told, WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join([f"{name}(", *(f"  {line}" for line in lines), ")"])


def _line(module: eqx.Module) -> str:
    fields = [one for one in dataclasses.fields(module) if one.repr and hasattr(module, one.name)]
    fields = [one for one in fields if not (isinstance(value := getattr(module, one.name), tuple) and value == ())]
    return f"{type(module).__name__}({', '.join(f'{one.name}={_value(getattr(module, one.name))}' for one in fields)})"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + _few(f"{key}: {_value(one)}" for key, one in value.items()) + "}"
    if isinstance(value, tuple):
        return "(" + _few(map(_value, value)) + (",)" if len(value) == 1 else ")")
    if isinstance(value, jax.Array | np.ndarray) and value.ndim == 0 and not is_traced(value):
        return f"{value.item():.6g}"
    if isinstance(value, eqx.Module):
        return _line(value)
    return repr(value) if isinstance(value, str | float | int | None) else eqx.tree_pformat(value, width=1000)


def _few(parts: Iterable[str]) -> str:
    parts = list(parts)
    return ", ".join(parts if len(parts) <= FEW else [*parts[:FEW], f"{len(parts) - FEW} more"])


def of_equilibrium(eq: "Equilibrium") -> Iterator[str]:
    """A relaxed structure, line by line."""
    system, unit = eq.system, "GPa" if eq.system.dim == 3 else "eV/Å²"
    yield f"System       {atoms(system)}, {int(system.frozen.sum())} frozen"
    yield f"Cell         {cell(system)}, {periodicity(system)}"
    yield f"Potential    {' + '.join(type(part).__name__ for part in eq.potential.parts())}"
    if rules := getattr(eq.potential, "rules", ()):
        yield f"             {', '.join(' '.join(rule).strip() for rule in rules)}"
    kind = "saddle point" if eq.index else "equilibrium"
    yield f"State        {kind} at 0 K, {eq.status.name}: energy {eq.energy:.10g} eV, fmax {eq.fmax:.1e} eV/Å, {eq.steps} steps"
    if eq.frame.freedom is not None:
        freedom = eq.cell if isinstance(eq.cell, str) else "partly free"
        load = f"a pressure or stress of {eq.load} {unit} within {eq.stress_error:.1e} {unit}"
        yield f"             cell {freedom}, relaxed to {load}"
    if eq.constraints is not None:
        names = ", ".join(type(part).__name__ for part in eq.constraints.parts)
        yield f"             under {names}; active inequalities: {', '.join(map(str, eq.constraints.active)) or 'none'}"
    if eq.curvature is not None:
        rattlers = ", ".join(map(str, eq.curvature.rattlers)) or "none"
        yield f"Curvature    lowest {eq.curvature.lowest:.4g}, highest {eq.curvature.highest:.4g} eV/Å², rattlers: {rattlers}"


def of_sensitivity(sensitivity: "Sensitivity", names: list[str]) -> Iterator[str]:
    """What was differentiated in what, and whether it can be trusted; `names` are the parameters'."""
    what = "positions and cell" if sensitivity.cell is not None else "positions"
    yield f"Sensitivity  of {what} to {_few(names)} of {type(sensitivity.potential).__name__}"
    first, *_ = str(sensitivity.certificate).splitlines()
    yield f"Certificate  {first}"
    yield from (f"             but: {reason}" for reason in sensitivity.certificate.reasons)
