"""The schema of a study's TOML file. All mistakes in a file are told at once, each named by its key, with a remedy."""

import re
import tomllib
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import ConfigDict, Field

from mdsens.common.errors import InputError, did_you_mean
from mdsens.common.paths import is_file

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")

MAX_ATOMS, MAX_TASKS = 5_000_000, 100_000
"""Atoms of a structure that a study makes, and tasks of a study."""

Number = float
Seed = Annotated[int, Field(ge=0)]
Triple = Annotated[list[int], Field(min_length=2, max_length=3)]
Positive = Annotated[float, Field(gt=0.0)]


class _Table(pydantic.BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Relax(_Table):
    """Options of `mdsens.relax`."""

    solver: Literal["FIRE", "LBFGS", "Newton", "TruncatedNewton"] | None = None
    fmax: Positive | None = None
    smax: Positive | None = None
    cell: Literal["fixed", "isotropic", "free"] | list[bool] | list[list[bool]] | None = None
    pressure: Number | list[Number] | list[list[Number]] | None = None
    max_steps: Annotated[int, Field(ge=1)] | None = None
    polish: bool | None = None
    check_minimum: bool | None = None


class Packing(_Table):
    """Arguments of `random_packing`."""

    n: Annotated[int, Field(ge=1, le=MAX_ATOMS)]
    diameters: dict[str, Positive]
    packing_fraction: Positive = 1.0
    dim: Literal[2, 3] = 2


class Structure(_Table):
    """A structure: from a file (or several, by a pattern), from ASE's builder, or a random packing; and changes to it."""

    file: str | None = None
    builder: str | None = None
    arguments: dict[str, Any] = {}
    packing: Packing | None = None
    repeat: Annotated[int, Field(ge=1)] | Triple | None = None
    delete: list[int] = []
    rattle: Annotated[float, Field(ge=0.0)] | None = None
    frozen: list[int] = []
    seed: Seed | Annotated[list[Seed], Field(min_length=1)] | None = None
    relax: Relax | None = None


class Potential(_Table):
    """A potential by its class's name: with parameters, from a named constructor, or from files."""

    name: str
    parameters: dict[str, Any] = {}
    constructor: str | None = None
    file: str | None = None
    files: list[str] | None = None
    arguments: dict[str, Any] = {}


class Observable(_Table):
    """An observable of the catalogue; its structure, where several are relaxed together; the components that are wanted."""

    name: str | None = None
    arguments: dict[str, Any] = {}
    structure: str | None = None
    states: dict[str, str] | None = None
    components: list[int] | list[list[int]] | None = None


class Target(_Table):
    """The value that the observable of this name should have."""

    value: Number | list[Any]
    sigma: Number | list[Any] | None = None


class Range(_Table):
    """Evenly spaced values."""

    start: Number
    stop: Number
    points: Annotated[int, Field(ge=1, le=MAX_TASKS)]


Values = Annotated[
    Annotated[list[Number], Field(min_length=1), pydantic.Tag("list")] | Annotated[Range, pydantic.Tag("range")],
    pydantic.Discriminator(lambda values: "range" if isinstance(values, dict | Range) else "list"),
]


class Sweep(_Table):
    kind: Literal["sweep"]
    parameters: dict[str, Values] = {}
    mode: Literal["grid", "list"] = "grid"
    joint: bool = False
    derivatives: bool = False


class Sensitivity(_Table):
    kind: Literal["sensitivity"]
    wrt: list[str] | None = None
    joint: bool = False


class Uncertainty(_Table):
    kind: Literal["uncertainty"]
    std: dict[str, Annotated[float, Field(ge=0.0)]] | None = None
    covariance: list[list[Number]] | None = None
    ensemble: list[dict[str, Number]] | None = None
    wrt: list[str] | None = None
    joint: bool = False
    check: bool = True
    samples: Annotated[int, Field(ge=0)] = 0
    indices: Literal["sobol", "morris"] | None = None
    index_samples: Annotated[int, Field(ge=2)] | None = None
    seed: Seed = 0


class Calibration(_Table):
    kind: Literal["calibration", "inverse"]
    wrt: list[str] | None = None
    bounds: dict[str, Annotated[list[Number], Field(min_length=2, max_length=2)]] = {}
    priors: dict[str, Annotated[list[Number], Field(min_length=2, max_length=2)]] = {}
    max_steps: Annotated[int, Field(ge=1)] = 50
    tolerance: Positive = 1e-8
    method: Literal["adam"] | None = None
    learning_rate: Positive | None = None
    second_derivatives: bool | None = None


class Continuation(_Table):
    kind: Literal["continuation"]
    parameters: dict[str, Number]
    first_step: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    largest_step: Annotated[float, Field(gt=0.0, le=1.0)] = 0.25
    max_steps: Annotated[int, Field(ge=1)] = 200


KINDS: dict[str, type[_Table]] = {
    "sweep": Sweep,
    "sensitivity": Sensitivity,
    "uncertainty": Uncertainty,
    "calibration": Calibration,
    "inverse": Calibration,
    "continuation": Continuation,
}

SECTIONS = ("study", "structures", "potential", "relax", "observables", "targets")


class Description(typing.NamedTuple):
    """A TOML file's content, checked key by key; sections with mistakes are None, and `problems` says why.

    Attributes:
        folder: the folder from which paths in it start.
        text: the file's text.
    """

    path: Path
    folder: Path
    text: str
    study: Any
    structures: dict[str, Structure] | None
    potential: Potential | None
    relax: Relax | None
    observables: dict[str, Observable] | None
    targets: dict[str, Target] | None
    problems: list[str]


def read_description(path: str | Path) -> Description:
    """Read a study's TOML file.

    Raises:
        InputError: no such file, or no TOML. All other mistakes are in `problems`.
    """
    path = Path(path)
    if not is_file(path):
        if path.is_dir():
            raise InputError(f"{str(path)!r} is a folder: give the TOML file of a study, and -o DIR for where its results go.")
        raise InputError(f"There is no study {str(path)!r}: 'mdsens new sweep -o {path.name}' writes one to begin with.")
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text)
    except UnicodeDecodeError:
        raise InputError(f"{str(path)!r} is no text: give the TOML file of a study ('mdsens new sweep' writes one).") from None
    except (ValueError, RecursionError) as error:  # of numbers with thousands of digits, of tables in tables without end
        raise InputError(f"{str(path)!r} is no TOML: {error}.") from None
    problems = [f"[{name}] is no section.{did_you_mean(name, SECTIONS)}" for name in content if name not in SECTIONS]
    problems += [
        f"[{name}] is missing: add it ('mdsens new sweep' writes an example)."
        for name in ("study", "structures", "potential", "observables")
        if name not in content
    ]
    study = _study(content["study"], problems) if "study" in content else None
    tables: dict[str, Any] = {
        name: _named_tables(content[name], model, name, problems) if name in content else ({} if name == "targets" else None)
        for name, model in (("structures", Structure), ("observables", Observable), ("targets", Target))
    }
    single: dict[str, Any] = {
        name: _validate(model, content[name], name, problems) if name in content else None
        for name, model in (("potential", Potential), ("relax", Relax))
    }
    if "relax" not in content:
        single["relax"] = Relax()
    return Description(path, path.resolve().parent, text, study, problems=problems, **tables, **single)


def _study(content: Any, problems: list[str]) -> _Table | None:
    if not isinstance(content, dict):
        problems.append("study must be a table: write [study].")
        return None
    kind = content.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        known = did_you_mean(str(kind), KINDS)
        problems.append(f"study.kind is missing.{known}" if kind is None else f"study.kind cannot be {kind!r:.80}.{known}")
        return None
    return _validate(KINDS[kind], content, "study", problems)


def _named_tables(content: Any, model: type[_Table], section: str, problems: list[str]) -> dict[str, Any] | None:
    """Check a section of named tables; None if there is a mistake in it."""
    if not isinstance(content, dict) or not content:
        problems.append(f"{section} must hold named tables: write [{section}.NAME].")
        return None
    tables = {}
    for name, table in content.items():
        if not NAME.fullmatch(name):
            problems.append(f"{section}.{name!r} is no name: begin with a letter; then letters, digits, '_' and '-'.")
            continue
        tables[name] = _validate(model, table, f"{section}.{name}", problems)
    return tables if len(tables) == len(content) and None not in tables.values() else None


def _validate(model: type[_Table], content: Any, where: str, problems: list[str]) -> Any:
    """Return the content as a model, or None; mistakes are added to `problems`."""
    try:
        return model.model_validate(content)
    except pydantic.ValidationError as error:
        messages: dict[str, str] = {}
        for mistake in error.errors(include_url=False):
            key, message = _explain(model, content, mistake, where)
            # Each alternative of a union has a message of its own: the first will do.
            messages.setdefault(key, message)
        problems += messages.values()
        return None


def _explain(model: Any, content: Any, error: Any, where: str) -> tuple[str, str]:
    """Return the key of a mistake, and the sentence about it."""
    kind, value, location, path = error["type"], error.get("input"), error["loc"], [where]
    for k, part in enumerate(location):
        inside = content[part] if _holds(content, part) else None
        # Parts that are not inside are pydantic's names of alternatives.
        if inside is not None or (kind == "missing" and k == len(location) - 1):
            path.append(str(part))
            if kind != "extra_forbidden" or k < len(location) - 1:
                model = _table_of_field(model, part)
            content = inside
    key = ".".join(path)
    if kind == "extra_forbidden":
        return key, f"{key} is not known.{did_you_mean(path[-1], getattr(model, 'model_fields', {}))}"
    if kind == "missing":
        return key, f"{key} is missing: add it."
    if kind == "literal_error":
        return key, f"{key} cannot be {value!r:.60}: it must be {error['ctx']['expected']}."
    return key, f"{key} is {value!r:.60}: {error['msg'].replace('Input should', 'it should')}."


def _holds(content: Any, part: Any) -> bool:
    if isinstance(content, dict):
        return part in content
    return isinstance(content, list) and isinstance(part, int) and part < len(content)


def _table_of_field(model: Any, part: Any) -> Any:
    """Return the model of the table that a field holds; the model itself where the part is no field."""
    field = getattr(model, "model_fields", {}).get(part)
    return model if field is None else _table_in(field.annotation)


def _table_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return annotation
    return next((table for part in typing.get_args(annotation) if (table := _table_in(part)) is not None), None)
