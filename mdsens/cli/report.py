"""A report of a study, or of a stored result: one HTML file that needs nothing else, not even the network.

All that comes from files is escaped, and the page's own policy forbids it to load anything.
"""

import base64
import dataclasses
import html
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mdsens.cli.show import describe, pictures
from mdsens.common.errors import InputError
from mdsens.common.paths import is_file
from mdsens.common.text import count_text
from mdsens.files.state_files import load_one, read_provenance
from mdsens.studies.pictures import study_pictures
from mdsens.studies.results.record import Collected, Outcome
from mdsens.studies.results.tables import Column, Table, study_tables
from mdsens.studies.storage.collected_file import is_collected, read_collected, read_folder

ROWS, COLUMNS, PICTURES, HASHES = 200, 6, 12, 5
"""At most in a report: rows of a table, numbers of an observable in a row, tasks that have pictures, tasks' names."""

STYLE = """
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #1b1f24; background: #fff; max-width: 68rem;
  margin: 2rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; margin-bottom: 0; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid #d0d7de; }
.lead { color: #57606a; margin: .2rem 0 .4rem; }
table { border-collapse: collapse; margin: .4rem 0 1.4rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #eaeef2; }
th { border-bottom: 1px solid #8c959f; font-weight: 600; } th:first-child, td:first-child { text-align: left; padding-left: 0; }
th.text, td.text { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(28rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figure img { width: 100%; max-width: 40rem; } figcaption { color: #57606a; font-size: .9rem; }
pre { background: #f6f8fa; padding: .8rem 1rem; overflow-x: auto; font-size: .85rem; line-height: 1.45; }
pre.good, pre.bad { white-space: pre-wrap; }
.good { color: #1a7f37; } .bad { color: #b35900; }
@media print { body { max-width: none; margin: 0; } figure, table { break-inside: avoid; } }
"""

GENERATOR = '<meta name="generator" content="mdsens">'
"""Mark of a report, in its first 1000 bytes."""

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def is_report(path: Path) -> bool:
    """Return whether a file is a report of mdsens."""
    if not is_file(path):
        return False
    with path.open("rb") as file:
        return GENERATOR.encode() in file.read(1000)


def html_report(path: Path) -> str:
    """Return the report of a study's folder, a collected study, or a stored result; raise StoreError for anything else."""
    if path.is_dir():
        study, missing = read_folder(path)
        return _page(f"{study.kind.capitalize()}: {path.resolve().name}", _study(study, missing))
    if is_collected(path):
        study = read_collected(path)
        return _page(f"{study.kind.capitalize()}: {path.stem}", _study(study, []))
    return _page(f"Equilibrium: {path.stem}", _result(path))


def _page(title: str, parts: Iterable[str]) -> str:
    head = [
        '<meta charset="utf-8">',
        GENERATOR,
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width">',
        _tag("title", title),
        f"<style>{STYLE}</style>",
    ]
    return "\n".join(
        ["<!DOCTYPE html>", '<html lang="en">', "<head>", *head, "</head>", "<body>", _tag("h1", title), *parts, "</body></html>"]
    )


def _study(study: Collected, missing: Sequence[str]) -> Iterator[str]:
    outcomes = study.outcomes
    done, failed = [o for o in outcomes if not o.failed], [o for o in outcomes if o.failed]
    count = count_text(len(outcomes) + len(missing), "task")
    left = f", {len(missing)} still to be done" if missing else ""
    yield _tag("p", f"A study of the kind {study.kind}, {count}: {len(done)} done, {len(failed)} failed{left}.", "lead")
    if done:
        yield from _certificates(done)
        # A sweep's pictures are of all tasks together, the others' of each.
        drawn = study if study.kind == "sweep" else dataclasses.replace(study, outcomes=tuple(done[:PICTURES]))
        yield from _figures(lambda: study_pictures(drawn))
        if len(drawn.outcomes) < len(done):
            yield _tag("p", f"Of the first {PICTURES} tasks; 'mdsens plot' draws all of them.", "lead")
        yield _tag("h2", "Results")
        yield from map(_table, sorted(study_tables(study.kind, done, COLUMNS), key=lambda table: table.name != "values"))
        yield from _states(done)
    if failed:
        yield _tag("h2", "Tasks that failed")
        yield _columns("failed", Column("task", [o.label for o in failed]), Column("reason", [o.reason for o in failed]))
    if missing:
        yield _tag("h2", "Tasks still to be done")
        yield _columns("missing", Column("task", missing))
    if outcomes:
        yield _tag("h2", "Provenance")
        yield from _provenance(outcomes)
    yield _tag("h2", "The study")
    yield _tag("pre", study.toml)


def _certificates(done: Sequence[Outcome]) -> Iterator[str]:
    verdicts = [(o.label, *verdict) for o in done if (verdict := _verdict(o.record.facts)) is not None]
    if not verdicts:
        return
    yield _tag("h2", "Can it be trusted?")
    bad = [(label, words) for label, good, words in verdicts if not good]
    if not bad:
        words = verdicts[0][2]
        yield _tag("p", f"{words[0].upper()}{words[1:]}." if len(verdicts) == 1 else f"All {len(verdicts)}: {words}.", "good")
    for label, words in bad[:ROWS]:
        yield _tag("p", f"{label}: {words}", "bad")
    departures = [(o.label, name, share) for o in done for name, share in o.record.facts.get("nonlinearity", {}).items()]
    if departures:
        labels, names, shares = zip(*departures, strict=True)
        columns = Column("task", labels), Column("observable", names), Column("departure", shares, ".1%")
        title = "Departure from a straight line, one standard deviation out in the direction that moves it most"
        yield _columns("nonlinearity", *columns, title=title)


def _verdict(facts: Mapping[str, Any]) -> tuple[bool, str] | None:
    """Return whether all is well, and a sentence; None without a certificate."""
    if facts.get("trusted") is not None:
        return facts["trusted"], "trusted" if facts["trusted"] else f"not trusted: {'; '.join(facts['reasons'])}"
    if "converged" in facts:
        return facts["converged"], str(facts["message"])
    return (facts["complete"], str(facts["end"])) if "complete" in facts else None


def _states(done: Sequence[Outcome]) -> Iterator[str]:
    rows = [(o.label, name, state) for o in done for name, state in o.record.facts.get("states", {}).items()]
    if not rows:
        return
    labels, names, states = zip(*rows, strict=True)
    lowest = [state.get("lowest_curvature") for state in states]
    yield _tag("h2", "Equilibria")
    yield _columns(
        "states",
        Column("unit", labels),
        Column("structure", names),
        Column("energy", [state["energy"] for state in states], ".8g", unit="eV"),
        Column("largest force", [state["fmax"] for state in states], ".1e", unit="eV Angstrom-1"),
        Column("lowest curvature", [float("nan") if value is None else value for value in lowest], ".4g", unit="eV Angstrom-2"),
        Column("steps", [state["steps"] for state in states], "d"),
    )


def _provenance(outcomes: Sequence[Outcome]) -> Iterator[str]:
    origins = [outcome.provenance for outcome in outcomes]
    versions = (", ".join(f"{name} {version}" for name, version in origin.get("versions", {}).items()) for origin in origins)
    created = sorted(str(origin.get("created", "")) for origin in origins)
    recipe = outcomes[0].input
    rows = {
        "versions": " | ".join(dict.fromkeys(versions)),
        "platform": " | ".join(dict.fromkeys(str(origin.get("platform", "")) for origin in origins)),
        "made": created[0] if created[0] == created[-1] else f"{created[0]} to {created[-1]}",
        "computing time": f"{sum(origin.get('seconds', 0.0) for origin in origins):.3g} s",
        "potential": _plain(recipe["potential"]),
        "relaxation": _plain(next(iter(recipe["relax"].values()), {})),
        "settings": _plain({key: value for key, value in recipe["settings"].items() if value not in (None, {}, [])}),
    }
    structures = {name: recipe for outcome in outcomes for name, recipe in outcome.input["structures"].items()}
    names = [outcome.name for outcome in outcomes]
    rows["hashes of the input"] = ", ".join(names[:HASHES]) + (f" and {len(names) - HASHES} more" if len(names) > HASHES else "")
    rows |= {f"structure {name}": _plain(recipe) for name, recipe in list(structures.items())[:ROWS]}
    yield _facts(rows)


def _result(path: Path) -> Iterator[str]:
    eq, sensitivity = load_one(path)
    yield _tag("p", f"An equilibrium{' and its sensitivity' if sensitivity is not None else ''}, stored by mdsens.", "lead")
    if sensitivity is not None:
        certificate = sensitivity.certificate
        yield _tag("h2", "Can it be trusted?")
        yield _tag("pre", str(certificate), "good" if certificate.trusted else "bad")
        yield from _figures(lambda: pictures(eq, sensitivity, None))
    yield _tag("h2", "Results")
    lines = itertools.takewhile(lambda line: not line.startswith("Certificate"), describe(eq, sensitivity))
    yield _tag("pre", "\n".join(lines).rstrip())
    yield _tag("h2", "Provenance")
    yield _facts({key: _plain(value) for key, value in read_provenance(path).items()})


def _images(draw: Callable[[], Mapping[str, Any]]) -> dict[str, str]:
    """Return pictures by name, as SVG in base 64; none where they cannot be drawn. Dollars in names are no mathematics."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    with mpl.rc_context({"text.parse_math": False, "svg.hashsalt": "mdsens", "figure.max_open_warning": 0}):
        try:
            figures = draw()
        except InputError:
            return {}
        images = {}
        for name, ax in list(figures.items())[: 2 * PICTURES]:
            image = io.BytesIO()
            ax.figure.savefig(image, format="svg", metadata={"Date": None})
            images[name] = base64.b64encode(image.getvalue()).decode()
        for ax in figures.values():
            plt.close(ax.figure)
        return images


def _figures(draw: Callable[[], Mapping[str, Any]]) -> Iterator[str]:
    if not (images := _images(draw)):
        return
    yield _tag("h2", "Pictures")
    yield '<div class="pictures">'
    for name, image in images.items():
        alt = html.escape(name, quote=True)
        yield f'<figure><img alt="{alt}" src="data:image/svg+xml;base64,{image}"><figcaption>{alt}</figcaption></figure>'
    yield "</div>"


def _columns(name: str, *columns: Column, title: str = "") -> str:
    return _table(Table(name, "", columns, title))


def _table(table: Table) -> str:
    columns = [column for column in table.columns if column.shown]
    texts = [column.texts[:ROWS] for column in columns]
    words = [any(isinstance(value, str) for value in column.values[:ROWS]) for column in columns]
    head = "".join(_tag("th", column.head, "text" if word else "") for column, word in zip(columns, words, strict=True))
    rows = [
        "".join(_tag("td", cell, "text" if word else "") for cell, word in zip(row, words, strict=True))
        for row in zip(*texts, strict=True)
    ]
    more = [f"{len(table) - ROWS} more rows are in the file"] if len(table) > ROWS else []
    notes = "".join(_tag("p", note, "lead") for note in [table.note, *more] if note)
    title = _tag("p", table.title, "lead") if table.title else ""
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'{title}<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{notes}'


def _facts(rows: Mapping[str, str]) -> str:
    body = "".join(f"<tr>{_tag('td', key)}{_tag('td', value, 'text')}</tr>" for key, value in rows.items() if value)
    return f'<div class="wide"><table><tbody>{body}</tbody></table></div>'


def _plain(value: Any) -> str:
    """Return `{"a": {"b": 1}}` as `a: (b: 1)`."""
    if isinstance(value, Mapping):
        texts = {key: f"({_plain(item)})" if isinstance(item, Mapping) else _plain(item) for key, item in value.items()}
        return ", ".join(f"{key}: {text}" for key, text in texts.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _tag(name: str, text: str, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f"<{name}{attribute}>{html.escape(str(text))}</{name}>"
