"""Results in HDF5: one file a result, H5MD 1.1 (de Buyl, Colberg, Höfling, Comput. Phys. Commun. 185, 1546 (2014)).

    /h5md                               version, creator
    /particles/atoms/position           step, time, value (1, N, dim)
    /particles/atoms/{species,mass,frozen,box}
    /parameters/potential/<parameter>   a group where a parameter depends on the species
    /observables/{potential_energy,maximum_force}
    /equilibrium                        attributes: status, steps, solver, cell, load, index; the group curvature
    /equilibrium/constraints            those of `relax`, with their references and multipliers
    /sensitivity/positions/<parameter>  (N, dim, *θ.shape); the certificate as attributes of /sensitivity
    /sensitivity/cell/<parameter>       (dim, dim, *θ.shape), where the cell is free
    /provenance                         attributes: versions, platform, devices, time, command
    /states/<number>                    each of several states: all of the above but /h5md and /provenance

A file is complete or absent: it is built in memory, written beside its place, synced and renamed.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import h5py
import jax
import jax.numpy as jnp
import numpy as np

from mdsens.common.errors import InputError, StoreError
from mdsens.common.paths import is_file
from mdsens.common.suggestions import suggest_names
from mdsens.common.units import derivative_unit
from mdsens.common.untrusted_hdf5 import check_harmless, open_untrusted
from mdsens.common.version import VERSION
from mdsens.derivatives.certificate import Certificate
from mdsens.derivatives.sensitivities import Sensitivity
from mdsens.equilibrium.descent import with_tight_list
from mdsens.equilibrium.relaxation import Equilibrium, as_tuples
from mdsens.files.atomic_write import check_writable, write_whole
from mdsens.files.checksums import checksum
from mdsens.files.hdf5_attributes import attribute, has_attribute, read_record, set_attribute, write_record
from mdsens.files.hdf5_labels import name_axes, name_others, name_unit
from mdsens.files.provenance import write_provenance
from mdsens.files.stored_constraints import read_constraints, write_constraints
from mdsens.mechanics.bound_constraints import Constraint
from mdsens.mechanics.spectrum import Spectrum
from mdsens.potentials import SHIPPED, Potential
from mdsens.potentials.base import parameter_paths
from mdsens.solvers import Status
from mdsens.structures.system import System

FORMAT = 1
"""Version of the layout, raised when old files can no longer be read as they are."""

P = TypeVar("P", bound=Potential)
Stored = tuple[Equilibrium, Sensitivity | None]
States = Equilibrium | Mapping[str, Equilibrium] | Sequence[Equilibrium]
Sensitivities = Sensitivity | Mapping[str, Sensitivity | None] | Sequence[Sensitivity | None] | None


@suggest_names
def save(path: str | Path, eq: States, sensitivity: Sensitivities = None, *, overwrite: bool = False) -> Path:
    """Write an equilibrium, and its sensitivity if there is one, to an HDF5 file; or several.

    Args:
        eq: an equilibrium, a list of them, or a dict by name.
        sensitivity: its sensitivity or None; for several a list or a dict as `eq` is, with None or nothing where there is none.

    Returns:
        The path.

    Raises:
        StoreError: the file exists (`overwrite=True` replaces it), its folder doesn't, or it cannot be written.
        InputError: arguments that are no equilibrium and sensitivity.

    Example:
        ms.save("vacancy.h5", eq, ms.sensitivity(eq))
        eq, S = ms.load("vacancy.h5")
    """
    states = _states(eq, sensitivity) if isinstance(path, str | os.PathLike) else _states(None, None)
    path = Path(path)
    check_writable(path, overwrite=overwrite)
    with h5py.File(f"image-{id(eq)}", "w", driver="core", backing_store=False) as file:
        write_h5md(file)
        if isinstance(eq, Equilibrium):
            _write(file, *states[""])
        else:
            group = file.create_group("states")
            group.attrs["named"] = isinstance(eq, Mapping)
            set_attribute(group, "names", list(states))
            for k, state in enumerate(states.values()):
                _write(group.create_group(str(k)), *state)
        write_provenance(file)
        name_others(file)
        file["h5md/creator"].attrs["checksum"] = checksum(file)
        file.flush()
        image = file.id.get_file_image()
    write_whole(path, image, overwrite=overwrite)
    return path


def _states(eq: Any, sensitivity: Any) -> dict[str, Stored]:
    """Return states and their sensitivities by name, checked; the name of a single state is empty."""
    if isinstance(eq, Equilibrium):
        eq, sensitivity = {"": eq}, {"": sensitivity}
    elif isinstance(eq, Sequence) and not isinstance(eq, str):
        sensitivity = [None] * len(eq) if sensitivity is None else sensitivity
        if isinstance(sensitivity, Sequence) and len(sensitivity) == len(eq):
            eq, sensitivity = ({str(k): item for k, item in enumerate(items)} for items in (eq, sensitivity))
    sensitivity = {} if sensitivity is None else sensitivity
    if (
        not (eq and isinstance(eq, Mapping) and isinstance(sensitivity, Mapping) and set(sensitivity) <= set(eq))
        or not all(isinstance(name, str) and isinstance(state, Equilibrium) for name, state in eq.items())
        or not all(isinstance(derivative, Sensitivity | None) for derivative in sensitivity.values())
    ):
        raise InputError("save wants an Equilibrium and a Sensitivity, or lists or dicts of them by name: ms.save(path, eq, S).")
    if not all(state.is_as_relaxed for state in eq.values()):
        raise InputError("Something of this equilibrium was replaced after it was relaxed: relax it again, eq.again(potential).")
    return {name: (state, sensitivity.get(name)) for name, state in eq.items()}


@suggest_names
def load(path: str | Path, *, potential: Potential | None = None, constraints: Sequence[Constraint] = ()) -> Any:
    """Read what `save` wrote, bit for bit.

    Args:
        potential: a potential of the class that was saved, where that is not mdsens's own; the values of its parameters are
            taken from the file.
        constraints: those of `relax`, where they have functions, which no file keeps.

    Returns:
        `(equilibrium, sensitivity)`; the sensitivity is None if none was saved. For several states a list or a dict of such
        pairs, as `save` got them.

    Raises:
        StoreError: no such file, not one of mdsens's, damaged or changed, or one that needs `potential` or `constraints`.
    """
    states, named = _load(Path(path), potential, constraints)
    return states[""] if named is None else (states if named else [*states.values()])


def load_one(path: str | Path) -> Stored:
    """Read a file of one state; raise as `load`, and StoreError where it holds several."""
    states, named = _load(Path(path), None, ())
    if named is not None:
        raise StoreError(
            f"{str(path)!r} holds {len(states)} states ({', '.join([*states][:9])}): save the one that is meant alone."
        )
    return states[""]


def _load(path: Path, potential: Potential | None, constraints: Sequence[Constraint]) -> tuple[dict[str, Stored], bool | None]:
    """Return the states by name, and whether `save` got these names; None for a single state."""
    constraints = [constraints] if isinstance(constraints, Constraint) else list(constraints)
    if potential is not None and not isinstance(potential, Potential):
        raise InputError(f"load wants a potential with any values, of the class that was saved, and not {potential!r:.80}.")
    if not is_file(path):
        raise StoreError(f"There is no file {str(path)!r}.")
    with open_untrusted(path, "readable HDF5 file of mdsens") as file:
        _check_ours(file, path)
        if "study" in file:
            raise StoreError(
                f"{str(path)!r} is a collected study, not one state: mdsens.export.to_dataframe({str(path)!r}) reads its table."
            )
        if "states" in file:
            group = file["states"]
            names = [str(name) for name in attribute(group, "names")]
            states = {name: _read(group[str(k)], path, potential, constraints) for k, name in enumerate(names)}
            named = bool(group.attrs["named"])
        else:
            states, named = {"": _read(file, path, potential, constraints)}, None
        # After the checks that say more exactly what is wrong; older files have none.
        written = file["h5md/creator"].attrs.get("checksum")
        if written is not None and str(written) != checksum(file):
            raise StoreError(f"{str(path)!r} was changed after mdsens wrote it: take the original, or relax again.")
        return states, named


def read_provenance(path: Path) -> dict[str, Any]:
    """Read what a result was made with: versions (a dict), platform, devices, time, command; raise StoreError as `load`."""
    with open_untrusted(path, "result of mdsens that says what it was made with") as file:
        _check_ours(file, path)
        entries = {key: str(value) for key, value in file["provenance"].attrs.items()}
        return {**entries, "versions": json.loads(entries["versions"])}


# Writing


def _write(file: h5py.Group, eq: Equilibrium, sensitivity: Sensitivity | None) -> None:
    """Write one state into a file or a group."""
    _write_particles(file, eq.system)
    group = file.create_group("parameters/potential")
    group.attrs["class"] = type(eq.potential).__name__
    group.attrs["static"] = _settings(eq.potential)
    _write_tree(group, eq.potential)
    for path, value in eq.potential.stored_constants.items():
        group.create_dataset(path.replace(".", "/"), data=value)
    for name, number, unit in (("potential_energy", eq.energy, "eV"), ("maximum_force", eq.fmax, "eV Angstrom-1")):
        _write_element(file, f"observables/{name}", np.array([number]), unit)
    state = file.create_group("equilibrium")
    state.attrs.update({"status": eq.status.name, "message": eq.status.value, "steps": eq.steps, "solver": eq.solver})
    cell, load = json.dumps(eq.cell), json.dumps(eq.load)
    state.attrs.update({"cell": cell, "load": load, "index": eq.index, "stress_error": eq.stress_error})
    if eq.spectrum is not None:
        write_record(state.create_group("curvature"), eq.spectrum)
    if eq.constraints is not None:
        write_constraints(state.create_group("constraints"), eq.constraints, eq.multipliers)
    if sensitivity is not None:
        group = file.create_group("sensitivity")
        for name, axis in (("positions", "atom"), ("cell", "vector")):
            if (derivative := getattr(sensitivity, name)) is not None:
                _write_tree(group.create_group(name), derivative, "Angstrom")
                for path in parameter_paths(derivative):
                    dataset = group[f"{name}/{path.replace('.', '/')}"]
                    axes = (axis, "space", *(f"{path}_{k}" for k in range(dataset.ndim - 2)))
                    name_axes(dataset, axes, group, {"space": "xyz"[: dataset.shape[1]]})
        write_record(group, sensitivity.certificate)


def write_h5md(file: h5py.File) -> None:
    """Write the group `/h5md`: version of H5MD, author, creator."""
    group = file.create_group("h5md")
    group.attrs["version"] = np.array([1, 1], dtype=np.int32)
    group.create_group("author").attrs["name"] = os.environ.get("USER", "unknown")
    group.create_group("creator").attrs.update({"name": "mdsens", "version": VERSION, "format": FORMAT})


def _write_particles(file: h5py.Group, system: System) -> None:
    atoms = file.create_group("particles/atoms")
    labels = {"space": "xyz"[: system.dim]}
    position = _write_element(atoms, "position", np.asarray(system.positions)[None], "Angstrom")
    name_axes(position, ("step", "atom", "space"), atoms, labels)
    box = atoms.create_group("box")
    box.attrs["dimension"] = system.dim
    box.attrs["boundary"] = ["periodic" if flag else "none" for flag in system.pbc]
    if system.cell is not None:
        edges = _write_element(box, "edges", np.asarray(system.cell)[None], "Angstrom")
        name_axes(edges, ("step", "vector", "space"), atoms, labels)
    species = atoms.create_dataset("species", data=np.asarray(system.species))
    set_attribute(species, "labels", list(system.labels))
    name_unit(atoms.create_dataset("mass", data=np.asarray(system.masses)), "u")
    atoms["mass"].attrs["known"] = system.masses_known
    atoms.create_dataset("frozen", data=np.asarray(system.frozen).astype(np.int8))
    for name in ("species", "mass", "frozen"):
        name_axes(atoms[name], ("atom",), atoms)


def _write_element(group: h5py.Group, name: str, value: np.ndarray, unit: str) -> h5py.Dataset:
    """Write an element of H5MD, with one step; return its values."""
    element = group.create_group(name)
    dataset = element.create_dataset("value", data=value, fletcher32=True, chunks=value.shape)
    name_unit(dataset, unit)
    element.create_dataset("step", data=np.array([0], dtype=np.int64))
    name_unit(element.create_dataset("time", data=np.array([0.0])), "ps")
    for part in (element["time"], dataset):
        name_axes(part, ("step",), element)
    return dataset


def _write_tree(group: h5py.Group, tree: Potential, numerator: str | None = None) -> None:
    """Write the leaves of a potential-shaped tree, with the parameters' units, or `numerator` per these, where they are known."""
    for path, leaf in zip(parameter_paths(tree), jax.tree.leaves(tree), strict=True):
        dataset = group.create_dataset(path.replace(".", "/"), data=np.asarray(leaf))
        unit = tree.unit_of(path)
        if unit is not None:
            name_unit(dataset, unit if numerator is None else derivative_unit(numerator, unit))


def _settings(potential: Potential) -> str:
    # A setting that is no plain value (a function, say) is only named: `load` needs a potential then.
    return json.dumps(potential.stored_settings(), sort_keys=True, default=lambda value: f"<{type(value).__name__}>")


# Reading


def _check_ours(file: h5py.File, path: Path) -> None:
    """Raise StoreError where a file is another program's, of a newer layout, or harmful."""
    creator = file["h5md/creator"].attrs.get("name") if "h5md/creator" in file else None
    if creator != "mdsens":
        by = f"; its creator is {creator!r}" if creator else ""
        raise StoreError(
            f"{str(path)!r} is an HDF5 file of another program{by}: ms.load reads mdsens's own, and ms.read structures."
        )
    if (version := int(file["h5md/creator"].attrs["format"])) > FORMAT:
        raise StoreError(f"{str(path)!r} has layout {version}, newer than this mdsens knows ({FORMAT}): upgrade mdsens.")
    check_harmless(file, path)


def _read(file: h5py.Group, path: Path, template: Potential | None, constraints: Sequence[Constraint]) -> Stored:
    """Read one state from a file or a group."""
    system = _read_system(file["particles/atoms"])
    potential = _read_potential(file["parameters/potential"], path, template)
    state, spectrum = file["equilibrium"].attrs, file["equilibrium"].get("curvature")
    # Older files do not have all of it: it is computed again where it is needed.
    whole = spectrum is not None and all(has_attribute(spectrum, field.name) for field in dataclasses.fields(Spectrum))
    cell = as_tuples(json.loads(state.get("cell", '"fixed"')))
    # Files of version 0.1 called it the pressure, which was 0 at a fixed cell.
    load = as_tuples(json.loads(state.get("load", state.get("pressure", "0.0"))))
    stored = file["equilibrium"].get("constraints")
    bound, multipliers = (None, None) if stored is None else read_constraints(stored, path, constraints, system)
    eq = Equilibrium(
        with_tight_list(system, potential).as_held(bound is not None and bound.hold),
        potential,
        float(file["observables/potential_energy/value"][0]),
        float(file["observables/maximum_force/value"][0]),
        int(state["steps"]),
        Status[state["status"]],
        read_record(Spectrum, spectrum) if whole else None,
        str(state["solver"]),
        cell=cell,
        load=None if cell == "fixed" else load,
        stress_error=float(state.get("stress_error", 0.0)),
        index=int(state.get("index", 0)),
        constraints=bound,
        multipliers=multipliers,
    ).as_made()
    if "sensitivity" not in file:
        return eq, None
    group = file["sensitivity"]
    cell = _read_derivative(group["cell"], potential) if "cell" in group else None
    return eq, Sensitivity(_read_derivative(group["positions"], potential), cell, read_record(Certificate, group), potential)


def _read_derivative(group: h5py.Group, potential: P) -> P:
    """Read derivatives, in a tree of the potential's form."""
    names = [leaf.replace(".", "/") for leaf in parameter_paths(potential)]
    leaves = [jnp.asarray(group[name][()]) if name in group else None for name in names]
    return jax.tree.unflatten(jax.tree.structure(potential), leaves)


def _read_system(atoms: h5py.Group) -> System:
    box, species = atoms["box"], atoms["species"]
    labels = [str(label) for label in attribute(species, "labels")]
    positions = atoms["position/value"][0]
    return System(
        positions,
        cell=box["edges/value"][0] if "edges" in box else None,
        pbc=[str(boundary) == "periodic" for boundary in box.attrs["boundary"]],
        species=[labels[code] for code in species[()]],
        masses=atoms["mass"][()] if atoms["mass"].attrs.get("known", True) else None,
        frozen=atoms["frozen"][()].astype(bool),
        dtype=positions.dtype,
    )


def _read_potential(group: h5py.Group, path: Path, template: Potential | None) -> Potential:
    """Read a potential of mdsens's own, or of the template's class."""
    name, static = str(group.attrs["class"]), json.loads(group.attrs["static"])
    if template is None:
        if foreign := [cls for cls in _classes(name, static) if cls not in SHIPPED]:
            raise StoreError(
                f"{str(path)!r} was made with the potential {foreign[0]}, which is not mdsens's own: give one, "
                f"load(path, potential={'ms.JaxMD' if name == 'JaxMDEnergy' else name}(...)); "
                "its parameters' values are then taken from the file."
            )
        dtypes: list[np.dtype] = []
        potential = SHIPPED[name].from_stored(_read_parameters(group, dtypes), static, SHIPPED)
        dtype = min(dtypes, key=lambda dtype: dtype.itemsize, default=np.dtype(np.float64))
        return potential if dtype == np.float64 else potential.astype(dtype)
    if type(template).__name__ != name or json.loads(_settings(template)) != static:
        raise StoreError(
            f"{str(path)!r} was made with a {name} of the settings {static}, "
            f"not with a {type(template).__name__} of the settings {json.loads(_settings(template))}."
        )
    try:
        leaves = [jnp.asarray(group[leaf.replace(".", "/")][()]) for leaf in parameter_paths(template)]
    except KeyError:
        raise StoreError(f"{str(path)!r} has other parameters than the {name} given.") from None
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _classes(name: str, static: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of the classes that a potential is made of."""
    yield name
    if name in ("Sum", "Reparameterised"):
        for inner in static["terms"]:
            yield from _classes(inner["class"], inner["static"])


def _read_parameters(group: h5py.Group, dtypes: list[np.dtype]) -> dict[str, Any]:
    """Read parameters in 64 bits, and append the types in which they are stored."""
    values = {}
    for name, item in group.items():
        if isinstance(item, h5py.Group):
            values[name] = _read_parameters(item, dtypes)
        else:
            dtypes.append(item.dtype)
            values[name] = item[()].astype(np.float64)
    return values
