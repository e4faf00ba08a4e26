"""A study as tasks that can be done anywhere, in any order, each named by the hash of its input."""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mdsens.common.errors import InputError, MdsensError, did_you_mean
from mdsens.potentials import Potential
from mdsens.studies.input import toml_schema
from mdsens.studies.input.recipes import (
    PATH,
    check_observable,
    observable_recipe,
    observables_of,
    potential_of,
    potential_recipe,
    relax_options,
    structure_of,
    structure_recipes,
)
from mdsens.studies.input.toml_schema import Description
from mdsens.studies.methods.parameters import Selection, root_of, with_values
from mdsens.studies.methods.sweep import grid

Recipes = dict[str, dict[str, Any]]
Groups = dict[str, tuple[str, ...]]

LAYOUT = 2
"""Number to raise when the same input gives another result, so that old tasks are not taken for new ones."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One piece of a study.

    Attributes:
        label: its name for a person.
        input: plain values, all that its result depends on.
    """

    label: str
    input: dict[str, Any]

    @functools.cached_property
    def name(self) -> str:
        """The hash of the input without the places of files."""
        text = json.dumps(_without_paths(self.input), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:20]


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(entry) for key, entry in value.items() if key != PATH}
    return [_without_paths(entry) for entry in value] if isinstance(value, list) else value


@dataclasses.dataclass(frozen=True)
class Study:
    """A study without mistakes.

    Attributes:
        kind: the kind of study.
        text: the text of its TOML file.
        path: the place of the file.
        tasks: the tasks in the study's order.
    """

    kind: str
    text: str
    path: Path
    tasks: tuple[Task, ...]


def read_study(path: str | Path) -> Study:
    """Read a study and everything that it names.

    Raises:
        InputError: there are mistakes in it; all are told, one a line.
    """
    description = toml_schema.read_description(path)
    problems = list(description.problems)
    structures, options = _structures(description, problems)
    model = _attempt(problems, "potential", potential_recipe, description.potential, description.folder)
    potential = model and _attempt(problems, "potential", potential_of, model)
    if description.study is not None:
        _check_study(description, potential, problems)
    tasks: list[Task] = []
    if structures and description.observables is not None and description.study is not None:
        groups = _groups(description, structures)
        recipes = {name: observable_recipe(name, table) for name, table in description.observables.items()}
        for name, recipe in recipes.items():
            if hasattr(description.study, "joint") and (alone := _structures_apart(recipe, structures, groups)):
                problems.append(
                    f"observables.{name}: the structures {', '.join(alone)} are relaxed one by one: write joint = true in "
                    "[study] to relax all together."
                )
                continue
            for group in groups.values():
                if _attempt(problems, f"observables.{name}", observables_of, {name: recipe}, group) is None:
                    break
        if potential is not None and not problems:
            _check_together(structures, potential, recipes, next(iter(groups.values())), problems)
        if not problems:
            by_structure = {"structures": structures, "relax": options}
            tasks = [*_tasks(description, groups, by_structure, potential=model, observables=recipes)]
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise InputError("\n  ".join([f"{str(description.path)!r} has {count}:", *problems]))
    return Study(description.study.kind, description.text, description.path, tuple(tasks))


def _attempt(problems: list[str], where: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function returns; None if it refuses, which is added to the problems, or if its first argument is None."""
    try:
        return None if arguments[0] is None else function(*arguments)
    except MdsensError as error:
        problems.append(f"{where}: {error}")
        return None


def _structures(description: Description, problems: list[str]) -> tuple[Recipes, dict[str, dict[str, Any]]]:
    """Return recipes and options of `relax`, by the structures' names."""
    recipes, options = {}, {}
    for name, table in (description.structures or {}).items():
        found = _attempt(problems, f"structures.{name}", structure_recipes, name, table, description.folder)
        for label, recipe in (found or {}).items():
            if _attempt(problems, f"structures.{label}", structure_of, recipe) is not None:
                recipes[label], options[label] = recipe, relax_options(description.relax, table.relax)
    return recipes, options


def _check_study(description: Description, potential: Potential | None, problems: list[str]) -> None:
    study = description.study
    if isinstance(study, toml_schema.Calibration):
        if not description.targets and not any(problem.startswith(("targets.", "targets:")) for problem in problems):
            problems.append(f"[targets] is missing: a study of the kind {study.kind!r} wants [targets.NAME] for observables.")
        for name in description.targets or {}:
            if description.observables is not None and name not in description.observables:
                known = did_you_mean(name, description.observables)
                problems.append(f"targets.{name}: there is no observable of this name.{known}")
        if study.learning_rate is not None and study.method is None:
            problems.append('study.learning_rate is for gradient descent: add method = "adam", or leave it out.')
        if study.second_derivatives and study.method is not None:
            problems.append("study.second_derivatives is not for gradient descent: leave it or the method out.")
    elif description.targets:
        problems.append(f"[targets] is for calibration and inverse, not for {study.kind}: leave it out.")
    if isinstance(study, toml_schema.Uncertainty):
        if sum(getattr(study, key) is not None for key in ("std", "covariance", "ensemble")) != 1:
            problems.append("study: give exactly one of std, covariance and ensemble.")
        if study.indices and study.std is None:
            problems.append("study.indices: global indices are of independent parameters: give std.")
        if study.indices == "sobol" and study.index_samples and study.index_samples & (study.index_samples - 1):
            problems.append(f"study.index_samples is {study.index_samples}: Sobol's indices want a power of two, such as 64.")
    if isinstance(study, toml_schema.Sweep):
        lengths = [len(values) for values in _values(study).values()]
        many = (math.prod(lengths) if study.mode == "grid" else max(lengths, default=1)) * len(description.structures or {})
        if many > toml_schema.MAX_TASKS:
            problems.append(
                f"study.parameters: {many} tasks are more than {toml_schema.MAX_TASKS}: divide the study into several."
            )
        else:
            _attempt(problems, "study.parameters", grid, _values(study), study.mode)
    if potential is not None:
        _check_names(study, potential, problems)


def _structures_apart(recipe: Mapping[str, Any], structures: Recipes, groups: Groups) -> list[str]:
    """Return the names of an observable's structures, where all are there but no group has them together."""
    names = {*recipe.get("states", {}).values(), *([recipe["structure"]] if "structure" in recipe else [])}
    return sorted(names) if len(groups) > 1 and names <= structures.keys() else []


def _check_together(
    structures: Recipes, potential: Potential, recipes: Recipes, group: tuple[str, ...], problems: list[str]
) -> None:
    """Check that the potential knows the structures' species, and that these have what observables with arguments ask for."""
    for label, recipe in structures.items():
        _attempt(problems, f"structures.{label}", potential.check, structure_of(recipe))
    some = {label: structures[label] for label in group}
    for name, recipe in recipes.items():
        if not problems and recipe.keys() & {"components", "arguments"}:
            _attempt(problems, f"observables.{name}", check_observable, recipe, some, potential)


def _check_names(study: Any, potential: Potential, problems: list[str]) -> None:
    """Check the names and values of the parameters that a study names."""
    for key in ("parameters", "std", "bounds", "priors"):
        for name in getattr(study, key, None) or {}:
            _attempt(problems, f"study.{key}", Selection.of, potential, [name])
    for name in getattr(study, "wrt", None) or []:
        _attempt(problems, "study.wrt", Selection.of, potential, [name])
    if isinstance(study, toml_schema.Sweep | toml_schema.Continuation) and not problems:
        for point in _extreme_points(study.parameters):
            _attempt(problems, "study.parameters", with_values, potential, point)
    for k, member in enumerate(getattr(study, "ensemble", None) or []):
        _attempt(problems, f"study.ensemble.{k}", with_values, potential, member)
    if getattr(study, "covariance", None) is not None and not problems:
        names = Selection.of(potential, study.wrt).names
        if {len(study.covariance), *map(len, study.covariance)} != {len(names)}:
            problems.append(f"study.covariance: wants {len(names)} rows of {len(names)} numbers, for {', '.join(names):.80}.")
        else:
            _attempt(problems, "study.covariance", root_of, study.covariance, names)


def _extreme_points(parameters: Mapping[str, Any]) -> Iterator[dict[str, float]]:
    """Yield points with one parameter at the lowest, or the highest, of its values."""
    for name, entry in parameters.items():
        values = [entry.start, entry.stop] if isinstance(entry, toml_schema.Range) else np.atleast_1d(entry).tolist()
        yield from ({name: value} for value in sorted({min(values), max(values)}))


def _values(study: toml_schema.Sweep) -> dict[str, Any]:
    """Return a sweep's values of each parameter."""
    return {
        name: np.linspace(entry.start, entry.stop, entry.points) if isinstance(entry, toml_schema.Range) else entry
        for name, entry in study.parameters.items()
    }


def _groups(description: Description, structures: Recipes) -> Groups:
    """Return the names of structures that are relaxed together, by a group's name for a person."""
    joint = isinstance(description.study, toml_schema.Calibration) or getattr(description.study, "joint", False)
    return {"": tuple(structures)} if joint else {name: (name,) for name in structures}


def _tasks(description: Description, groups: Groups, by_structure: dict[str, Recipes], **common: Any) -> Iterator[Task]:
    """Yield a task for each group of structures, and in a sweep for each point.

    Args:
        by_structure: parts of the input that hold something for each structure.
        common: parts that all tasks share.
    """
    study = description.study
    points = grid(_values(study), study.mode) if isinstance(study, toml_schema.Sweep) else [{}]
    # A point of a sweep does not know of the others.
    aside = {"kind", "joint", "mode"} | ({"parameters"} if isinstance(study, toml_schema.Sweep) else set())
    settings = study.model_dump(exclude_none=True, exclude=aside)
    if description.targets:
        settings["targets"] = {name: target.model_dump() for name, target in description.targets.items()}
    for label, group in groups.items():
        parts = {key: {name: entries[name] for name in group} for key, entries in by_structure.items()} | common
        for point in points:
            words = [label, *(f"{name}={value:g}" for name, value in point.items())]
            yield Task(
                " ".join(word for word in words if word) or study.kind,
                {"layout": LAYOUT, "kind": study.kind, "parameters": point, "settings": settings, **parts},
            )
