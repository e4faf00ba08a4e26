"""Collected studies as text."""

import textwrap
from collections.abc import Iterator

from mdsens.common.text import WIDTH, count_text
from mdsens.studies.results.record import Collected, Outcome
from mdsens.studies.results.tables import Table, study_tables

MAX_NUMBERS = 6
"""Numbers of an observable that a table shows; the file has all of them."""

MAX_ROWS = 60


def describe_study(study: Collected) -> Iterator[str]:
    """Describe a study: its tables below a few lines about it."""
    failed = [outcome for outcome in study.outcomes if outcome.failed]
    yield f"Study        {study.kind}, {count_text(len(study.outcomes), 'task')}, {len(failed)} of them failed"
    first = next((outcome for outcome in study.outcomes if not outcome.failed), None)
    if first is not None:
        versions = first.provenance.get("versions", {})
        yield f"Made with    mdsens {versions.get('mdsens')}, jax {versions.get('jax')}, {first.provenance.get('created')}"
        yield f"Potential    {_potential(first)}"
    yield ""
    yield from study_lines(study)


def study_lines(study: Collected) -> Iterator[str]:
    """Yield the tables of a study, line by line."""
    done, failed = ([outcome for outcome in study.outcomes if outcome.failed == failed] for failed in (False, True))
    for table in study_tables(study.kind, done, MAX_NUMBERS):
        yield from table_lines(table)
    if failed:
        yield from failure_lines([(outcome.label, outcome.reason) for outcome in failed])


def failure_lines(failures: list[tuple[str, str]]) -> Iterator[str]:
    """Yield labels of failed tasks with their reasons, line by line."""
    yield f"Failed ({len(failures)}):"
    width = min(max(len(label) for label, _ in failures), 40)
    for label, reason in failures[:MAX_ROWS]:
        first, *more = textwrap.wrap(reason.splitlines()[0], WIDTH) or [""]
        yield f"  {label:<{width}}  {first}"
        yield from (f"  {'':<{width}}  {line}" for line in more)
    if len(failures) > MAX_ROWS:
        yield f"  and {len(failures) - MAX_ROWS} more"


def _potential(outcome: Outcome) -> str:
    recipe = outcome.input["potential"]
    origin = recipe.get("constructor") or ", ".join(recipe.get("path", [])) or "parameters given"
    return f"{recipe['name']} ({origin})"


def table_lines(table: Table) -> Iterator[str]:
    """Yield a table, line by line."""
    if table.title:
        yield table.title
    columns = [column for column in table.columns if column.shown]
    cells = [[column.head, *column.texts[:MAX_ROWS]] for column in columns]
    widths = [max(map(len, column)) for column in cells]
    for row in zip(*cells, strict=True):
        padded = [
            f"{cell:<{width}}" if k == 0 else f"{cell:>{width}}" for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield ("  " + "  ".join(padded)).rstrip()
    if len(table) > MAX_ROWS:
        yield f"  and {len(table) - MAX_ROWS} more rows, in the file's /table"
    if table.note:
        yield f"  {table.note}"
    yield ""
