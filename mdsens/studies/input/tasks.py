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
from mdsens.studies.methods.parameters import Selection, root_of, with_values
from mdsens.studies.methods.sweep import grid

LAYOUT = 2
"""Raised when a task of the same input gives something else, so that old tasks are not taken for new ones."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One piece of a study.

    Attributes:
        label: what a person calls it.
        input: plain values that say all that its result depends on.
    """

    label: str
    input: dict[str, Any]

    @functools.cached_property
    def name(self) -> str:
        """The hash of the input; places of files are no part of it."""
        text = json.dumps(_without_paths(self.input), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:20]


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(entry) for key, entry in value.items() if key != PATH}
    return [_without_paths(entry) for entry in value] if isinstance(value, list) else value


@dataclasses.dataclass(frozen=True)
class Study:
    """A study that was read and found to be in order.

    Attributes:
        kind: of study.
        text: the TOML file.
        path: where it was.
        tasks: in the study's order.
    """

    kind: str
    text: str
    path: Path
    tasks: tuple[Task, ...]


def read_study(path: Any) -> Study:
    """Read a study and everything that it names.

    Raises:
        InputError: with every mistake in it, one a line.
    """
    told = toml_schema.read_description(path)
    problems = list(told.problems)
    structures, each = _structures(told, problems)
    potential = _attempt(problems, "potential", _potential, told.potential, told.folder) if told.potential is not None else None
    if told.study is not None:
        _check_study(told, potential and potential_of(potential), problems)
    tasks: list[Task] = []
    if structures and told.observables is not None and told.study is not None:
        groups = _groups(told, structures)
        recipes = {name: observable_recipe(*_named(name, given)) for name, given in told.observables.items()}
        for name, recipe in recipes.items():
            if hasattr(told.study, "joint") and (alone := _relaxed_alone(recipe, structures, groups)):
                problems.append(
                    f"observables.{name}: the structures {', '.join(alone)} are relaxed one by one: write joint = true in "
                    "[study] to relax all together."
                )
                continue
            for group in groups.values():
                if _attempt(problems, f"observables.{name}", observables_of, {name: recipe}, group) is None:
                    break
        if potential is not None and not problems:
            _check_together(structures, potential_of(potential), recipes, next(iter(groups.values())), problems)
        if not problems:
            tasks = [*_tasks(told, groups, structures, each, potential, recipes)]
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise InputError("\n  ".join([f"{str(told.path)!r} has {count}:", *problems]))
    return Study(told.study.kind, told.text, told.path, tuple(tasks))


def _named(name: str, given: Any) -> tuple[str, Any]:
    return given.name or name, given.model_copy(update={"name": None})


def _attempt(problems: Any, where: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns, or None; what it refuses is added to the problems."""
    try:
        return function(*arguments)
    except MdsensError as error:
        problems.append(f"{where}: {error}")
        return None


def _potential(given: Any, folder: Any) -> dict[str, Any]:
    recipe = potential_recipe(given, folder)
    potential_of(recipe)
    return recipe


def _structures(told: Any, problems: Any) -> tuple[Any, Any]:
    """`(recipes by name, options of relax by name)`; recipes are None where one of them is wrong."""
    if told.structures is None:
        return None, {}
    recipes, options = {}, {}
    for name, given in told.structures.items():
        found = _attempt(problems, f"structures.{name}", structure_recipes, name, given, told.folder)
        for label, recipe in (found or {}).items():
            if _attempt(problems, f"structures.{label}", structure_of, recipe) is not None:
                recipes[label] = recipe
                options[label] = relax_options(told.relax, given.relax)
    return recipes, options


def _check_study(told: Any, potential: Potential | None, problems: Any) -> None:
    study = told.study
    if isinstance(study, toml_schema.Calibration):
        if not told.targets and "targets" not in _sections(problems):
            problems.append(f"[targets] is missing: a study of the kind {study.kind!r} wants [targets.NAME] for observables.")
        for name in told.targets or {}:
            if told.observables is not None and name not in told.observables:
                known = did_you_mean(name, told.observables)
                problems.append(f"targets.{name}: there is no observable of this name.{known}")
        if study.learning_rate is not None and study.method is None:
            problems.append('study.learning_rate is for gradient descent: add method = "adam", or leave it out.')
        if study.second_derivatives and study.method is not None:
            problems.append("study.second_derivatives is not for gradient descent: leave it or the method out.")
    elif told.targets:
        problems.append(f"[targets] is for calibration and inverse, not for {study.kind}: leave it out.")
    if isinstance(study, toml_schema.Uncertainty):
        given = [what for what in ("std", "covariance", "ensemble") if getattr(study, what) is not None]
        if len(given) != 1:
            problems.append("study: give exactly one of std, covariance and ensemble.")
        if study.indices and study.std is None:
            problems.append("study.indices: global indices are of independent parameters: give std.")
        if study.indices == "sobol" and study.index_samples and study.index_samples & (study.index_samples - 1):
            problems.append(f"study.index_samples is {study.index_samples}: Sobol's indices want a power of two, such as 64.")
    if isinstance(study, toml_schema.Sweep):
        lengths = [given.points if isinstance(given, toml_schema.Range) else len(given) for given in study.parameters.values()]
        many = (math.prod(lengths) if study.mode == "grid" else max(lengths, default=1)) * len(told.structures or {})
        if many > toml_schema.MAX_TASKS:
            problems.append(
                f"study.parameters: {many} tasks are more than {toml_schema.MAX_TASKS}: divide the study into several."
            )
        else:
            _attempt(problems, "study.parameters", _points, study)
    if potential is not None:
        _check_names(study, potential, problems)


def _sections(problems: Any) -> set[str]:
    return {problem.split(".")[0].split(":")[0] for problem in problems}


def _relaxed_alone(recipe: Any, structures: Any, groups: Any) -> list[str]:
    """Names of structures that an observable is of, where all are there but none is a group that has them together."""
    asked = {*recipe.get("states", {}).values(), *([recipe["structure"]] if "structure" in recipe else [])}
    return sorted(asked) if len(groups) > 1 and asked <= structures.keys() else []


def _check_together(structures: Any, potential: Potential, recipes: Any, group: tuple[str, ...], problems: Any) -> None:
    """Whether the potential knows the structures' species, and these have what observables with arguments ask for."""
    for label, recipe in structures.items():
        _attempt(problems, f"structures.{label}", potential.check, structure_of(recipe))
    some = {label: structures[label] for label in group}
    for name, recipe in recipes.items():
        if not problems and recipe.keys() & {"components", "arguments"}:
            _attempt(problems, f"observables.{name}", check_observable, recipe, some, potential)


def _check_names(study: Any, potential: Potential, problems: Any) -> None:
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
    """Points with one parameter at the lowest, or the highest, of its values."""
    for name, given in parameters.items():
        values = [given.start, given.stop] if isinstance(given, toml_schema.Range) else np.atleast_1d(given).tolist()
        yield from ({name: value} for value in sorted({min(values), max(values)}))


def _points(study: toml_schema.Sweep) -> list[dict[str, float]]:
    values = {
        name: np.linspace(given.start, given.stop, given.points) if isinstance(given, toml_schema.Range) else given
        for name, given in study.parameters.items()
    }
    return grid(values, study.mode)


def _groups(told: Any, structures: Any) -> dict[str, tuple[str, ...]]:
    """Structures that are relaxed together, by what a person calls them."""
    joint = isinstance(told.study, toml_schema.Calibration) or getattr(told.study, "joint", False)
    return {"": tuple(structures)} if joint else {name: (name,) for name in structures}


def _tasks(told: Any, groups: Any, structures: Any, options: Any, potential: Any, observables: Any) -> Iterator[Task]:
    study = told.study
    points = _points(study) if isinstance(study, toml_schema.Sweep) else [{}]
    # A point of a sweep does not know of the others.
    aside = {"kind", "joint", "mode"} | ({"parameters"} if isinstance(study, toml_schema.Sweep) else set())
    settings = study.model_dump(exclude_none=True, exclude=aside)
    if told.targets:
        settings["targets"] = {name: target.model_dump() for name, target in told.targets.items()}
    for label, group in groups.items():
        for point in points:
            words = [label, *(f"{name}={value:g}" for name, value in point.items())]
            yield Task(
                " ".join(word for word in words if word) or study.kind,
                {
                    "layout": LAYOUT,
                    "kind": study.kind,
                    "structures": {name: structures[name] for name in group},
                    "potential": potential,
                    "parameters": point,
                    "relax": {name: options[name] for name in group},
                    "observables": observables,
                    "settings": settings,
                },
            )
