"""Tables of a study: for a person, for a report, for a data frame."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mdsens.common.units import unit_text, with_unit
from mdsens.studies.results.record import Outcome, entries

ROUNDING = 1e-9
"""Share of the largest number of a column below which a number is rounding of what is zero by symmetry."""

ROUNDING_OF_VALUE = 1e-11
"""Share of an observable's value up to which its derivatives are rounding."""


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: its head.
        values: texts or numbers, NaN where there is none.
        form: format of a number.
        meaning: its name where the table's title is not seen.
        shown: whether it is printed.
        unit: unit of its numbers, as files have it; empty for pure numbers, None where it is unknown or each row has its own.
    """

    name: str
    values: Sequence[Any] | np.ndarray
    form: str = ".8g"
    meaning: str = ""
    shown: bool = True
    unit: str | None = None

    @property
    def head(self) -> str:
        """The head with its unit."""
        return with_unit(self.name, self.unit)

    @property
    def texts(self) -> list[str]:
        """The values as a person reads them."""
        return [value if isinstance(value, str) else "-" if np.isnan(value) else f"{value:{self.form}}" for value in self.values]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: the kind of table.
        task: label of the task whose table it is; empty where each task has a row.
        columns: the columns, of one length.
        title: the line above it.
        note: the line below it.
    """

    name: str
    task: str
    columns: tuple[Column, ...]
    title: str = ""
    note: str = ""

    def __len__(self) -> int:
        return len(self.columns[0].values)


def study_tables(kind: str, outcomes: Sequence[Outcome], most: int | None = None) -> list[Table]:
    """Return the tables of a study's tasks, with the first `most` numbers of each observable."""
    if kind == "sweep":
        return [_points(outcomes, most)]
    done = [outcome for outcome in outcomes if not outcome.failed]
    tables = [table for outcome in done for table in _TABLES_OF_TASK[kind](outcome, most)]
    return [*tables, overview(done, most)] if done and kind in OVERVIEWS else tables


def overview(done: Sequence[Outcome], most: int | None) -> Table:
    """Return the table of the observables' values, a row for each task, with what certificates say."""
    columns = _number_columns(done, most, "values")
    if any(numbers_of(outcome, "std") for outcome in done):
        spread = {column.name: column for column in _number_columns(done, most, "std")}
        std = [dataclasses.replace(spread[column.name], name=f"std of {column.name}", form=".3g") for column in columns]
        columns = [column for pair in zip(columns, std, strict=True) for column in pair]
    verdicts = Column("verdict", [_verdict(outcome) for outcome in done])
    return Table("values", "", (Column("task", [outcome.label for outcome in done]), *columns, verdicts), "Values")


def numbers_of(outcome: Outcome, group: str) -> dict[str, np.ndarray]:
    """Return the arrays of a group by name."""
    prefix = f"{group}/"
    return {path.removeprefix(prefix): value for path, value in outcome.record.arrays.items() if path.startswith(prefix)}


def _numbers_by_label(arrays: dict[str, np.ndarray], most: int | None) -> dict[str, float]:
    """Return the first numbers of each array, by `name[i,j]`."""
    return {
        label: float(number)
        for name, value in arrays.items()
        for label, number in list(zip(entries(name, value.shape), np.ravel(value), strict=True))[:most]
    }


def _rows(arrays: dict[str, np.ndarray], most: int | None, axis: int) -> dict[str, np.ndarray]:
    """Return the first columns of each array, by `name[i,j]`, along one more axis of the arrays, the first or the last."""
    columns: dict[str, np.ndarray] = {}
    for name, value in arrays.items():
        shape = np.delete(value.shape, axis)
        numbers = np.moveaxis(value, axis, -1).reshape(-1, value.shape[axis])
        columns |= dict(list(zip(entries(name, tuple(shape)), numbers, strict=True))[:most])
    return columns


def _points(outcomes: Sequence[Outcome], most: int | None) -> Table:
    units: dict[str, str | None] = {}
    for outcome in outcomes:
        units |= outcome.record.units_of_parameters()
    names = dict.fromkeys(name for outcome in outcomes for name in outcome.input["parameters"])
    parameters = [
        Column(name, [outcome.input["parameters"].get(name, np.nan) for outcome in outcomes], shown=False, unit=units.get(name))
        for name in names
    ]
    observed = _number_columns(outcomes, most, "values")
    reasons = Column("failed", [outcome.reason for outcome in outcomes], shown=False)
    return Table("points", "", (Column("task", [outcome.label for outcome in outcomes]), *parameters, *observed, reasons))


def _number_columns(outcomes: Sequence[Outcome], most: int | None, group: str) -> list[Column]:
    """Return a column for each number of a group, with a row for each task."""
    rows = [_numbers_by_label(numbers_of(outcome, group), most) for outcome in outcomes]
    units: dict[str, str | None] = {}
    for outcome, values in zip(outcomes, rows, strict=True):
        units |= {label: unit_of(outcome, label) for label in values if label not in units}
    return [Column(label, [values.get(label, np.nan) for values in rows], unit=unit) for label, unit in units.items()]


def _derivatives(outcome: Outcome, most: int | None) -> Iterator[Table]:
    names, theta = outcome.record.facts["names"], outcome.record.arrays["parameters"]
    columns = _rows({name: theta * slope for name, slope in numbers_of(outcome, "derivatives").items()}, most, -1)
    values = _numbers_by_label(numbers_of(outcome, "values"), most)
    scales = {label: np.abs(column).max(initial=0.0) for label, column in columns.items()}
    # Derivatives of an observable that nothing moves are rounding of its value.
    scales = {label: scale if scale > ROUNDING_OF_VALUE * abs(values[label]) else np.inf for label, scale in scales.items()}
    sizes = sum(np.abs(column) / (scales[label] or 1.0) for label, column in columns.items())
    order = np.argsort(-sizes, kind="stable")
    units = outcome.record.units_of_parameters()
    cleaned = {label: np.where(np.abs(c) < ROUNDING * scales[label], 0.0, c)[order] for label, c in columns.items()}
    yield Table(
        "derivatives",
        outcome.label,
        (
            Column("parameter", [names[k] for k in order]),
            Column("value", theta[order], ".6g"),
            _unit_column([units.get(names[k]) for k in order]),
            *(
                Column(label, column, ".4g", f"θ d({label})/dθ", unit=unit_of(outcome, label))
                for label, column in cleaned.items()
            ),
        ),
        f"{outcome.label}: θ dg/dθ, {_verdict(outcome)}",
    )


def _observables(outcome: Outcome, most: int | None) -> Iterator[Table]:
    arrays, facts = outcome.record.arrays, outcome.record.facts
    names, groups = facts["names"], ("values", "std", "sampling/std")
    values, std, sampled = (_numbers_by_label(numbers_of(outcome, group), most) for group in groups)
    shares = _rows(numbers_of(outcome, "shares"), most, -1)
    samples = f"std of {facts['sampling']['count']} samples" if sampled else ""
    largest = [names[int(np.argmax(np.abs(shares[label])))] if np.any(shares[label]) else "-" for label in values]
    columns = (
        Column("observable", list(values)),
        Column("value", list(values.values())),
        Column("std", [std[label] for label in values], ".3g"),
        *([Column(samples, [sampled[label] for label in values], ".3g")] if sampled else []),
        _unit_column([unit_of(outcome, label) for label in values]),
        Column("mostly from", largest),
        *(Column(f"share of {name}", [shares[label][k] for label in values], ".2f", shown=False) for k, name in enumerate(names)),
    )
    note = "the covariance of all of them is in the file" if not sampled and arrays["covariance"].size > 1 else ""
    yield Table("observables", outcome.label, columns, f"{outcome.label}: {_verdict(outcome)}", note)
    if whole := facts.get("indices"):
        yield _indices(outcome, whole, most)


def _indices(outcome: Outcome, whole: Mapping[str, Any], most: int | None) -> Table:
    sobol = whole["method"] == "sobol"
    shown, form = (("S1", "ST"), ".3f") if sobol else (("mu_star", "sigma"), ".3g")
    tables = {index: _rows(numbers_of(outcome, f"indices/{index}"), most, -1) for index in shown}
    rows = [(label, k, name) for label in tables[shown[0]] for k, name in enumerate(whole["names"])]
    return Table(
        "indices",
        outcome.label,
        (
            Column("observable", [label for label, _, _ in rows]),
            Column("parameter", [name for _, _, name in rows]),
            *(Column(index, [table[label][k] for label, k, _ in rows], form) for index, table in tables.items()),
            *([] if sobol else [_unit_column([unit_of(outcome, label) for label, _, _ in rows])]),
        ),
        f"{whole['method']}, {whole['count']} structures relaxed, {whole['failed']} of them failed",
    )


def _fit(outcome: Outcome, most: int | None, *, design: bool = False) -> Iterator[Table]:
    # Targets of a design have no error; they are off by a share of themselves.
    arrays, facts = outcome.record.arrays, outcome.record.facts
    parameters = (
        Column("parameter", facts["names"]),
        Column("start", arrays["start"], ".8g"),
        Column("found", arrays["parameters"], ".10g"),
        Column("std", arrays["std"], ".3g", shown=not design),
        _unit_column([outcome.record.units_of_parameters().get(name) for name in facts["names"]]),
    )
    title = f"{facts['message']}; cost {facts['cost']:.4g}, {facts['relaxations']} relaxations"
    yield Table("parameters", outcome.label, parameters, title)
    targets = (
        Column("target", facts["labels"]),
        Column("wanted", arrays["wanted"]),
        Column("found", arrays["found"]),
        Column("sigma", arrays["sigma"], shown=False),
        _unit_column([unit_of(outcome, label) for label in facts["labels"]]),
        Column("relative error" if design else "off [σ]", (arrays["found"] - arrays["wanted"]) / arrays["sigma"], ".3g"),
    )
    yield Table("targets", outcome.label, targets)
    if not arrays["singular_values"].size:
        return
    yield Table(
        "directions",
        outcome.label,
        (
            Column("singular value", arrays["singular_values"], ".3g"),
            *(Column(name, arrays["directions"][:, k], ".2f") for k, name in enumerate(facts["names"])),
        ),
        "What the targets determine: relative changes of parameters, from the stiffest to the sloppiest direction",
    )


def _path(outcome: Outcome, most: int | None) -> Iterator[Table]:
    arrays, facts = outcome.record.arrays, outcome.record.facts
    values = _rows(numbers_of(outcome, "values"), most, 0)
    vanishes = f"; {facts['kind']}: the lowest curvature vanishes at t = {facts['critical']:.6g}"
    yield Table(
        "path",
        outcome.label,
        (
            Column("t", arrays["t"], ".6g"),
            Column("lowest curvature", arrays["lowest"], ".4g", unit="eV Angstrom-2"),
            Column("speed", arrays["speed"], shown=False, unit="Angstrom"),
            *(Column(label, column, unit=unit_of(outcome, label)) for label, column in values.items()),
        ),
        f"{outcome.label}: {facts['end']}{vanishes if facts['kind'] != 'none' else ''}",
    )


def unit_of(outcome: Outcome, label: str) -> str | None:
    """Return the unit of a number of an observable."""
    return outcome.record.unit_of_number(label, outcome.input["observables"])


def _unit_column(units: Sequence[str | None]) -> Column:
    """Return the column of each row's own unit; `units` in data frames."""
    known = [unit_text(unit) for unit in units]
    return Column("unit", known, meaning="units", shown=any(known))


def _verdict(outcome: Outcome) -> str:
    facts = outcome.record.facts
    if facts["trusted"] is None:
        return "not looked at (check = false)" if "nonlinearity" in facts else "no certificate was asked for"
    return "trusted" if facts["trusted"] else "not trusted: " + "; ".join(facts["reasons"])


OVERVIEWS = ("sensitivity", "uncertainty")
"""Kinds of study whose tasks have a table in common."""

_TABLES_OF_TASK: dict[str, Callable[[Outcome, int | None], Iterator[Table]]] = {
    "sensitivity": _derivatives,
    "uncertainty": _observables,
    "calibration": _fit,
    "inverse": functools.partial(_fit, design=True),
    "continuation": _path,
}
