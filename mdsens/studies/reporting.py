"""A collected study as a table that a person reads."""

from collections.abc import Iterator

import numpy as np

from mdsens.studies.collecting import Collected
from mdsens.studies.observing import counted, entries
from mdsens.studies.records import Outcome

COLUMNS = 6
"""Numbers of an observable that a table has room for; the file has all of them."""

ROWS = 60


def describe_study(study: Collected) -> Iterator[str]:
    """The table, line by line."""
    failed = [outcome for outcome in study.outcomes if outcome.failed]
    yield f"Study        {study.kind}, {counted(len(study.outcomes), 'unit')}, {len(failed)} of them failed"
    first = next((outcome for outcome in study.outcomes if not outcome.failed), None)
    if first is not None:
        versions = first.provenance.get("versions", {})
        yield f"Made with    mdsens {versions.get('mdsens')}, jax {versions.get('jax')}, {first.provenance.get('created')}"
        yield f"Potential    {_potential(first)}"
    yield ""
    done = [outcome for outcome in study.outcomes if not outcome.failed]
    yield from _TABLES[study.kind](done)
    if failed:
        yield ""
        yield from failure_table([(outcome.label, outcome.reason) for outcome in failed])


def failure_table(failures: list[tuple[str, str]]) -> Iterator[str]:
    """What failed, and why."""
    yield f"Failed ({len(failures)}):"
    width = min(max(len(label) for label, _ in failures), 40)
    for label, reason in failures[:ROWS]:
        yield f"  {label:<{width}}  {reason.splitlines()[0][:160]}"
    if len(failures) > ROWS:
        yield f"  and {len(failures) - ROWS} more"


def _potential(outcome):
    recipe = outcome.input["potential"]
    made = recipe.get("constructor") or ", ".join(recipe.get("path", [])) or "parameters given"
    return f"{recipe['name']} ({made})"


def _table(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    shown = rows[:ROWS]
    widths = [max(map(len, column)) for column in zip(head, *shown, strict=True)]
    for row in (head, *shown):
        cells = [
            f"{cell:<{width}}" if k == 0 else f"{cell:>{width}}" for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield ("  " + "  ".join(cells)).rstrip()
    if len(rows) > ROWS:
        yield f"  and {len(rows) - ROWS} more rows, in the file's /table"


def numbers_of(outcome: Outcome, group: str) -> dict[str, np.ndarray]:
    """Arrays of a group by name."""
    prefix = f"{group}/"
    return {path.removeprefix(prefix): value for path, value in outcome.record.arrays.items() if path.startswith(prefix)}


def _flat(arrays: dict[str, np.ndarray], columns: int = COLUMNS) -> dict[str, float]:
    """The first numbers of each array, by `name[i,j]`."""
    return {
        label: float(number)
        for name, value in arrays.items()
        for label, number in list(zip(entries(name, value.shape), np.ravel(value), strict=True))[:columns]
    }


def _sweep(done: list[Outcome]):
    labels = dict.fromkeys(label for outcome in done for label in _flat(numbers_of(outcome, "values")))
    rows = []
    for outcome in done:
        found = _flat(numbers_of(outcome, "values"))
        rows.append([outcome.label, *(f"{found[label]:.8g}" if label in found else "-" for label in labels)])
    yield from _table(["unit", *labels], rows)


def _sensitivity(done: list[Outcome]):
    for outcome in done:
        names, theta = outcome.record.facts["names"], outcome.record.arrays["parameters"]
        derivatives = numbers_of(outcome, "derivatives")
        yield f"{outcome.label}: θ dg/dθ, {_trust(outcome)}"
        scaled = {name: (theta * slope).reshape(-1, len(names)) for name, slope in derivatives.items()}
        shapes = {name: slope.shape[:-1] for name, slope in derivatives.items()}
        labels = [label for name, shape in shapes.items() for label in entries(name, shape)[:COLUMNS]]
        columns = [column for table in scaled.values() for column in table[:COLUMNS]]
        scales = [np.abs(column).max(initial=0.0) for column in columns]
        sizes = sum(np.abs(column) / (scale or 1.0) for column, scale in zip(columns, scales, strict=True))
        rows = [
            [
                names[k],
                f"{theta[k]:.6g}",
                *(_zeroed(column[k], scale) for column, scale in zip(columns, scales, strict=True)),
            ]
            for k in np.argsort(-sizes, kind="stable")
        ]
        yield from _table(["parameter", "value", *labels], rows)
        yield ""


def _zeroed(value, scale) -> str:
    """Rounding noise of what is zero by symmetry reads as zero."""
    return f"{0.0 if abs(value) < 1e-9 * scale else value:.4g}"


def _uncertainty(done: list[Outcome]):
    for outcome in done:
        arrays, facts = outcome.record.arrays, outcome.record.facts
        yield f"{outcome.label}: {_trust(outcome)}"
        values, std = _flat(numbers_of(outcome, "values")), _flat(numbers_of(outcome, "std"))
        sampled = _flat(numbers_of(outcome, "sampling/std"))
        head = ["observable", "value", "std"]
        if sampled:
            head.append(f"std of {facts['sampling']['count']} samples")
        shares = numbers_of(outcome, "shares")
        most = {
            label: facts["names"][int(np.argmax(row))]
            for name, share in shares.items()
            for label, row in zip(entries(name, share.shape[:-1]), share.reshape(-1, share.shape[-1]), strict=True)
        }
        rows = [
            [label, f"{values[label]:.8g}", f"{std[label]:.3g}", *([f"{sampled[label]:.3g}"] if sampled else []), most[label]]
            for label in values
        ]
        yield from _table([*head, "mostly from"], rows)
        if not sampled and arrays["covariance"].size > 1:
            yield "  the covariance of all of them is in the file"
        if whole := facts.get("indices"):
            shown = ("S1", "ST") if whole["method"] == "sobol" else ("mu_star", "sigma")
            tables = [numbers_of(outcome, f"indices/{index}") for index in shown]
            rows = [
                [label, name, *(f"{table[observable][at]:.3f}" for table in tables)]
                for observable, found in tables[0].items()
                for label, index in zip(entries(observable, found.shape[:-1]), np.ndindex(found.shape[:-1]), strict=True)
                for name, at in ((name, (*index, k)) for k, name in enumerate(whole["names"]))
            ]
            yield f"  {whole['method']}, {whole['count']} structures relaxed, {whole['failed']} of them failed"
            yield from _table(["observable", "parameter", *shown], rows)
        yield ""


def _calibration(done: list[Outcome]):
    for outcome in done:
        arrays, facts = outcome.record.arrays, outcome.record.facts
        yield f"{facts['message']}; cost {facts['cost']:.4g}, {facts['relaxations']} relaxations"
        columns = (arrays[name] for name in ("start", "parameters", "std"))
        rows = [[name, f"{a:.8g}", f"{b:.10g}", f"{c:.3g}"] for name, a, b, c in zip(facts["names"], *columns, strict=True)]
        yield from _table(["parameter", "start", "found", "std"], rows)
        yield ""
        columns = (arrays[name] for name in ("wanted", "found", "sigma"))
        rows = [
            [label, f"{a:.8g}", f"{b:.8g}", f"{(b - a) / c:.3g}"]
            for label, a, b, c in zip(facts["labels"], *columns, strict=True)
        ]
        yield from _table(["target", "wanted", "found", "off [σ]"], rows)
        yield ""
        yield "What the targets determine: relative changes of parameters, from the stiffest to the sloppiest direction"
        sizes = arrays["singular_values"]
        rows = [[f"{size:.3g}", *(f"{part:.2f}" for part in row)] for size, row in zip(sizes, arrays["directions"], strict=True)]
        yield from _table(["singular value", *facts["names"]], rows)


def _continuation(done: list[Outcome]):
    for outcome in done:
        arrays, facts = outcome.record.arrays, outcome.record.facts
        yield f"{outcome.label}: {facts['end']}"
        if facts["kind"] != "none":
            yield f"  {facts['kind']}: the lowest curvature vanishes at t = {facts['critical']:.6g}"
        values = numbers_of(outcome, "values")
        labels = [label for name, value in values.items() for label in entries(name, value.shape[1:])[:COLUMNS]]
        columns = [row for value in values.values() for row in value.reshape(len(value), -1).T[:COLUMNS]]
        rows = [
            [f"{t:.6g}", f"{low:.4g}", *(f"{column[k]:.8g}" for column in columns)]
            for k, (t, low) in enumerate(zip(arrays["t"], arrays["lowest"], strict=True))
        ]
        yield from _table(["t", "lowest curvature", *labels], rows)
        yield ""


def _trust(outcome) -> str:
    facts = outcome.record.facts
    return "trusted" if facts["trusted"] else "not trusted: " + "; ".join(facts["reasons"])


_TABLES = {
    "sweep": _sweep,
    "sensitivity": _sensitivity,
    "uncertainty": _uncertainty,
    "calibration": _calibration,
    "inverse": _calibration,
    "continuation": _continuation,
}
