"""Recipes of structures, potentials and observables, made from a TOML file. Names come from lists; nothing is evaluated.

A recipe holds plain values, and of each file the digest of its content. A task's name is the hash of its recipes, without the
places of files.
"""

import functools
import glob
import hashlib
import inspect
import itertools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array

from mdsens import observables as catalogue
from mdsens import solvers
from mdsens.common.errors import InputError, MdsensError, did_you_mean, reason
from mdsens.potentials import SHIPPED, Potential
from mdsens.structures.packing import random_packing
from mdsens.structures.reading import read
from mdsens.structures.system import System
from mdsens.studies.input import toml_schema
from mdsens.studies.methods.observed import ObservableVector, Of
from mdsens.studies.methods.parameters import with_values

BUILDERS = (
    *("bulk", "molecule", "graphene", "graphene_nanoribbon", "nanotube", "mx2", "fcc100", "fcc110", "fcc111"),
    *("bcc100", "bcc110", "bcc111", "hcp0001", "diamond100", "diamond111"),
)
"""Functions of `ase.build`."""

DIRECT_OBSERVABLES = (
    *("energy", "stress", "pressure", "volume", "lattice_constants", "elastic_constants", "elastic_stability"),
    *("bulk_modulus", "shear_modulus", "young_modulus", "poisson_ratio", "universal_anisotropy", "compliance"),
    "linear_compressibility",
)
"""Observables themselves: `g(system, potential)`."""
OBSERVABLE_FACTORIES = (
    *("enthalpy", "cohesive_energy", "distances", "angles", "dihedrals", "coordination", "radial_distribution"),
    *("phonon_frequencies", "phonon_dos", "gruneisen_parameters", "harmonic_free_energy", "entropy", "heat_capacity"),
)
"""Functions that return an observable."""
COMPARISONS = ("defect_formation_energy", "formation_volume", "dipole_tensor", "barrier")
"""Observables that compare several structures."""

OBSERVABLES = (*DIRECT_OBSERVABLES, *OBSERVABLE_FACTORIES, *COMPARISONS)

PATH = "path"
"""Key of a file's place in a recipe."""

INDEX = "index"
"""Key of a structure's place in a file of several."""

MAX_FILES, MAX_BLOCKS = 10_000, 20_000
"""Files of a pattern, and blocks that ASE's builders put together one by one."""


class Components(eqx.Module):
    """Some components of an observable as a vector."""

    observable: Callable[..., Any]
    indices: tuple[tuple[int, ...], ...] = eqx.field(static=True)

    def __call__(self, systems: System | Mapping[str, System], potential: Potential) -> Array:
        value = self.observable(systems, potential)
        if any(
            len(index) != value.ndim or any(not -n <= k < n for k, n in zip(index, value.shape, strict=True))
            for index in self.indices
        ):
            raise InputError(
                f"The observable has shape {value.shape}: components have {value.ndim} indices inside it, "
                f"unlike {list(map(list, self.indices))!r:.80}."
            )
        return jnp.stack([value[index] for index in self.indices])


def structure_recipes(name: str, table: toml_schema.Structure, folder: Path) -> dict[str, dict[str, Any]]:
    """Return recipes of the structures that a table describes: one for each file of a pattern, and for each seed.

    Raises:
        InputError: a file that is not there, or not exactly one origin.
    """
    origins = [key for key in ("file", "builder", "packing") if getattr(table, key) is not None]
    if len(origins) != 1:
        raise InputError("give exactly one of file, builder and packing.")
    if table.arguments and table.builder is None:
        raise InputError("arguments are those of a builder: leave them out.")
    steps = table.model_dump(exclude_none=True, exclude_defaults=True, exclude={"file", "relax", "seed", "packing"})
    if table.packing is not None:
        steps["packing"] = table.packing.model_dump()
    starts = {name: steps}
    if table.file is not None:
        paths = _match_files(table.file, folder)
        labels = [name] if len(paths) == 1 else [f"{name}.{path.stem}" for path in paths]
        if len(set(labels)) < len(labels):
            labels = [f"{name}.{k}" for k in range(len(paths))]
        starts = {}
        for label, path in zip(labels, paths, strict=True):
            start = {**steps, "file": digest(path), PATH: str(path)}
            count = _count(str(path), start["file"])
            starts |= {f"{label}.{k}": {**start, INDEX: k} for k in range(count)} if count > 1 else {label: start}
    if table.seed is None:
        return starts
    if not (table.packing or table.rattle):
        raise InputError("seed is for random packings and rattle: leave it out.")
    seeds = table.seed if isinstance(table.seed, list) else [table.seed]
    several = len(seeds) > 1
    return {f"{label}.{seed}" if several else label: {**start, "seed": seed} for label, start in starts.items() for seed in seeds}


def _match_files(pattern: str, folder: Path) -> list[Path]:
    parts = Path(pattern).parts
    if "**" in parts and (Path(pattern).is_absolute() or ".." in parts):
        raise InputError(f"file: ** is for folders below that of the study, unlike {pattern!r:.200}.")
    matching = glob.iglob(str(folder / pattern), recursive=True)  # noqa: PTH207  (a pattern may be absolute)
    paths = sorted(itertools.islice((path for path in map(Path, matching) if path.is_file()), MAX_FILES + 1))
    if not paths:
        raise InputError(f"file: nothing is found at {pattern!r:.200}, seen from the folder of the study.")
    if len(paths) > MAX_FILES:
        raise InputError(f"file: {pattern!r:.200} means more than {MAX_FILES} files: narrow it.")
    return paths


def digest(path: Path) -> str:
    """Return the SHA-256 digest of a file's content.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read ({error.strerror}).") from None


def structure_of(recipe: Mapping[str, Any]) -> System:
    """Return the structure that a recipe describes; the same object each time in one process.

    Raises:
        InputError: a builder that is not known or does not take these arguments, a file that changed.
    """
    return _structure(json.dumps(recipe, sort_keys=True))


@functools.lru_cache(maxsize=10_000)
def _structure(text: str) -> System:
    recipe = json.loads(text)
    seed = recipe.get("seed", 0)
    if "packing" in recipe:
        system = random_packing(**recipe["packing"], seed=seed)
    elif "builder" in recipe:
        system = System.from_ase(_build(recipe["builder"], recipe.get("arguments", {})))
    else:
        system = _frames(_check_unchanged(recipe[PATH], recipe["file"]), recipe["file"])[recipe.get(INDEX, 0)]
    changes = {key: recipe[key] for key in ("repeat", "delete", "rattle", "frozen") if recipe.get(key)}
    if not changes:
        return system
    if system.dim == 2 and "repeat" in changes:
        raise InputError("repeat is for 3-D structures.")
    atoms = system.to_ase()
    if "repeat" in changes:
        times = tuple(np.broadcast_to(changes["repeat"], 3).tolist())
        if len(atoms) * math.prod(times) > toml_schema.MAX_ATOMS:
            raise InputError(f"repeat: {times} times {len(atoms)} atoms are more than {toml_schema.MAX_ATOMS}: repeat it less.")
        if missing := [k + 1 for k, length in enumerate(atoms.cell.lengths()) if times[k] > 1 and not length]:
            raise InputError(f"repeat: the structure has no cell vector {missing[0]} to be repeated along: write 1 there.")
        atoms = atoms.repeat(times)
    for key in ("delete", "frozen"):
        if bad := [k for k in changes.get(key, ()) if not -len(atoms) <= k < len(atoms)]:
            raise InputError(f"{key}: there is no atom {bad[0]} among {len(atoms)}.")
    frozen = np.zeros(len(atoms), dtype=bool)
    frozen[changes.get("frozen", [])] = True
    frozen |= np.tile(np.asarray(system.frozen), len(atoms) // len(system))
    chosen = np.ones(len(atoms), dtype=bool)
    chosen[changes.get("delete", [])] = False
    symbols = np.tile(system.symbols, len(atoms) // len(system))
    positions = atoms.positions[:, : system.dim].copy()
    if "rattle" in changes:
        positions += np.random.default_rng(seed).normal(scale=changes["rattle"], size=positions.shape)
    return System(
        positions[chosen],
        cell=None if system.cell is None else atoms.cell.array[: system.dim, : system.dim],
        pbc=system.pbc,
        species=symbols[chosen].tolist(),
        masses=np.tile(np.asarray(system.masses), len(atoms) // len(system))[chosen] if system.masses_known else None,
        frozen=frozen[chosen],
    )


@functools.lru_cache(maxsize=10_000)
def _frames(path: str, _digest: str) -> list[System]:
    """Return the structures of a file of this content."""
    return read(path, index=":")


def _count(path: str, content: str) -> int:
    """Return the number of structures in a file: 1 for one that cannot be read, whose task will say so."""
    try:
        return len(_frames(path, content))
    except MdsensError:
        return 1


def _check_unchanged(path: str, known: str) -> str:
    """Return a path, or raise InputError if its content has another digest."""
    if digest(Path(path)) != known:
        raise InputError(f"{path!r} has changed since the study began: begin a new one, in another folder.")
    return path


def _build(name: str, arguments: Mapping[str, Any]) -> Any:
    import ase.build

    if name not in BUILDERS:
        raise InputError(f"builder: there is no {name!r}.{did_you_mean(name, BUILDERS)}")
    builder = getattr(ase.build, name)
    check_arguments(builder, arguments, name)
    tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
    counts = [k for value in tuples.values() for k in (value if isinstance(value, tuple) else (value,)) if type(k) is int and k]
    if math.prod(counts) > MAX_BLOCKS:
        raise InputError(f"{name}: {arguments!r:.120} are more than {MAX_BLOCKS} pieces: build a smaller one, and repeat it.")
    try:
        return builder(**tuples)
    except Exception as error:  # ASE's are of many kinds
        raise InputError(f"ASE's {name} does not take {dict(arguments)!r:.120} ({reason(error)}).") from None


def check_arguments(function: Callable[..., Any], arguments: Mapping[str, Any], name: str, skipped: int = 0) -> None:
    """Raise InputError for arguments that a function does not have, or lacks; the first `skipped` are given elsewhere."""
    known = list(inspect.signature(function).parameters.values())[skipped:]
    known = [p for p in known if p.kind is not p.VAR_KEYWORD and p.name != "system"]
    names = [p.name for p in known]
    for key in arguments:
        if key not in names:
            has = did_you_mean(key, names) if names else " It takes none."
            raise InputError(f"{name} has no argument {key!r}.{has}")
    needed = [p.name for p in known if p.default is p.empty and p.kind is not p.VAR_POSITIONAL and p.name not in arguments]
    if needed:
        raise InputError(f"{name} wants the argument {needed[0]!r}: add it.")


def potential_recipe(table: toml_schema.Potential, folder: Path) -> dict[str, Any]:
    """Return the recipe of a potential, with its files' digests.

    Raises:
        InputError: a file that is not there, more than one origin.
    """
    recipe = table.model_dump(exclude_none=True, exclude_defaults=True, exclude={"file", "files"})
    origins = [key for key in ("constructor", "file", "files") if getattr(table, key) is not None]
    if len(origins) > 1:
        raise InputError(f"give one of {' and '.join(origins)} only.")
    files = [table.file] if table.file is not None else table.files
    if files:
        paths = [path for name in files for path in _match_files(name, folder)]
        recipe["files"] = [digest(path) for path in paths]
        recipe[PATH] = [str(path) for path in paths]
    return recipe


def potential_of(recipe: Mapping[str, Any]) -> Potential:
    """Return the potential that a recipe describes; the same object each time in one process.

    Raises:
        InputError: a name, a constructor or arguments that are not known, parameters that the potential refuses.
    """
    return _potential(json.dumps(recipe, sort_keys=True))


@functools.lru_cache(maxsize=100)
def _potential(text: str) -> Potential:
    recipe = json.loads(text)
    name, parameters, arguments = recipe["name"], recipe.get("parameters", {}), recipe.get("arguments", {})
    if name not in SHIPPED:
        raise InputError(f"name: there is no potential {name!r}.{did_you_mean(name, SHIPPED)}")
    cls = SHIPPED[name]
    if "files" in recipe:
        paths = [_check_unchanged(path, known) for path, known in zip(recipe[PATH], recipe["files"], strict=True)]
        constructor = getattr(cls, "from_file", getattr(cls, "from_files", None))
        if constructor is None:
            raise InputError(f"{name} is not read from files: give parameters or a constructor.")
        check_arguments(constructor, arguments, f"{name}.{constructor.__name__}", skipped=len(paths))
        return with_values(constructor(*paths, **arguments), _by_path(parameters))
    if "constructor" in recipe:
        known = constructors(cls)
        if recipe["constructor"] not in known:
            hint = did_you_mean(recipe["constructor"], known) if known else " It has none."
            raise InputError(f"{name} has no constructor {recipe['constructor']!r}.{hint}")
        constructor = getattr(cls, recipe["constructor"])
        check_arguments(constructor, arguments, f"{name}.{recipe['constructor']}")
        return with_values(constructor(**arguments), _by_path(parameters))
    if arguments:
        raise InputError("arguments are those of a constructor, or for reading files: leave them out.")
    check_arguments(cls, parameters, name)
    return cls(**parameters)


def constructors(cls: type[Potential]) -> list[str]:
    """Return the names of a potential's constructors, as `silicon` of `StillingerWeber`, without those that read files."""
    return [
        name for name, value in vars(cls).items() if isinstance(value, classmethod) and not name.startswith(("_", "from_file"))
    ]


def _by_path(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return `{"epsilon.A-B": 1.0}` for `{"epsilon": {"A-B": 1.0}}`."""
    return {
        (f"{name}.{key}" if key else name): entry
        for name, value in parameters.items()
        for key, entry in (value.items() if isinstance(value, Mapping) else [("", value)])
    }


def observable_recipe(key: str, table: toml_schema.Observable) -> dict[str, Any]:
    """Return the recipe of an observable, whose name in the catalogue is that of its table by default."""
    return {"name": table.name or key, **table.model_dump(exclude_none=True, exclude_defaults=True, exclude={"name"})}


def observables_of(recipes: Mapping[str, Mapping[str, Any]], structures: tuple[str, ...]) -> ObservableVector:
    """Return the observables that recipes describe, as one function.

    Raises:
        InputError: names, arguments or structures that are not known.
    """
    return _observables(json.dumps(recipes), structures)


@functools.lru_cache(maxsize=1000)
def _observables(text: str, structures: tuple[str, ...]) -> ObservableVector:
    return ObservableVector({name: _observable(recipe, structures) for name, recipe in json.loads(text).items()})


def _observable(recipe: Mapping[str, Any], structures: tuple[str, ...]) -> Of:
    name, arguments = recipe["name"], recipe.get("arguments", {})
    if name not in OBSERVABLES:
        raise InputError(f"there is no observable {name!r}.{did_you_mean(name, OBSERVABLES)}")
    function = getattr(catalogue, name)
    if name in OBSERVABLE_FACTORIES:
        check_arguments(function, arguments, name)
        try:
            function = function(**arguments)
        except MdsensError:
            raise
        except (TypeError, ValueError) as error:
            raise InputError(f"{name} does not take {arguments!r:.120} ({reason(error)}).") from None
    else:
        check_arguments(_with_all_options(function), arguments, name, skipped=2)
        if arguments:
            function = jtu.Partial(function, **arguments)
    if "components" in recipe:
        indices = tuple((k,) if isinstance(k, int) else tuple(k) for k in recipe["components"])
        function = Components(function, indices)
    if name in COMPARISONS:
        if "states" not in recipe:
            raise InputError(f"{name} compares structures: say which, states = {{...}}.")
        return _check_names(Of(function, recipe["states"]), structures)
    if "states" in recipe:
        raise InputError(f'{name} is of one structure: say structure = "...", not states.')
    if "structure" not in recipe and len(structures) > 1:
        raise InputError(f"several structures are relaxed together: say of which it is, structure = {structures[0]!r}.")
    return _check_names(Of(function, recipe.get("structure", structures[0])), structures)


def check_observable(recipe: Mapping[str, Any], structures: Mapping[str, Mapping[str, Any]], potential: Potential) -> None:
    """Trace an observable of structures before they are relaxed.

    Raises:
        InputError: it asks for components, atoms or pairs that they do not have.
    """
    (part,) = observables_of({"observable": recipe}, tuple(structures)).parts.values()
    systems = {name: structure_of(structures[name]).with_neighbors(potential) for name in part.needed}
    try:
        jax.eval_shape(part, systems, potential)
    except MdsensError:
        raise
    except (TypeError, ValueError, IndexError) as error:
        raise InputError(f"{recipe['name']} cannot be computed ({reason(error)}).") from None


def _check_names(of: Of, structures: tuple[str, ...]) -> Of:
    """Return an observable, or raise InputError if its structures are not there."""
    for needed in of.needed:
        if needed not in structures:
            raise InputError(f"there is no structure {needed!r}.{did_you_mean(needed, structures)}")
    return of


def _with_all_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that has the signature of another, with the options of elastic constants where moduli take them."""
    signature = inspect.signature(function)
    if not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        return function
    more = list(inspect.signature(catalogue.elastic_constants).parameters.values())[2:]
    named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]

    def joined() -> None:
        pass

    joined.__signature__ = signature.replace(parameters=[*named, *more])  # type: ignore[attr-defined]
    return joined


def relax_options(*tables: toml_schema.Relax | None) -> dict[str, Any]:
    """Return options of `relax` as plain values; later tables go before earlier ones."""
    options: dict[str, Any] = {}
    for table in tables:
        options |= {} if table is None else table.model_dump(exclude_none=True)
    return options


def with_solver(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of `relax` with the solver in the place of its name."""
    return {key: getattr(solvers, value)() if key == "solver" else value for key, value in options.items()}
