"""The command `mdsens run`, and what it prints."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mdsens.common.errors import InputError
from mdsens.common.text import count_text
from mdsens.studies.input.tasks import read_study
from mdsens.studies.results.tables import OVERVIEWS, overview, study_tables
from mdsens.studies.results.text_tables import MAX_NUMBERS, failure_lines, table_lines
from mdsens.studies.running import execution
from mdsens.studies.storage.collected_file import read_folder

MAX_TASKS_SHOWN = 5


def check(path: Path) -> list[str]:
    """Return lines that say what a study consists of."""
    study = read_study(path)
    repeated = sum(count - 1 for count in Counter(task.name for task in study.tasks).values())
    many = count_text(len(study.tasks), "task")
    lines = [f"{path} is in order. {study.kind}: {many}{f', {repeated} of them twice' if repeated else ''}"]
    lines += [f"  {task.label}" for task in study.tasks[:MAX_TASKS_SHOWN]]
    if len(study.tasks) > MAX_TASKS_SHOWN:
        lines.append(f"  and {len(study.tasks) - MAX_TASKS_SHOWN} more")
    return lines


def run(
    path: Path, folder: Path | None, *, shard: str, workers: int, scheduler: str | None, retry: bool
) -> tuple[list[str], bool]:
    """Run a study; return the lines to print, and whether all went well."""
    study = read_study(path)
    folder = path.with_suffix("") if folder is None else folder
    if folder.is_file():
        raise InputError(f"{str(folder)!r} is a file: name a folder for the results, -o DIR.")
    done = execution.run(study, folder, shard=_shard(shard), workers=workers, scheduler=scheduler, retry=retry)
    lines = [f"{folder}: {count_text(done.total, 'task')}, {done.done} of them done now, {len(done.failed)} failed."]
    if done.failed:
        lines += [*failure_lines(list(done.failed)), "Do them again with --retry."]
    lines += [*_result_lines(folder)]
    lines.append(f"Merge them with 'mdsens collect {folder}', then 'mdsens show {folder}.h5'; or 'mdsens report {folder}'.")
    return lines, not done.failed


def _result_lines(folder: Path) -> Iterator[str]:
    """Yield the tables of a folder; of many tasks those with a row for each."""
    study, _ = read_folder(folder)
    done = [outcome for outcome in study.outcomes if not outcome.failed]
    if study.kind in OVERVIEWS and len(done) > MAX_TASKS_SHOWN:
        tables = [overview(done, MAX_NUMBERS)]
    else:
        tables = study_tables(study.kind, done if study.kind == "sweep" else done[:MAX_TASKS_SHOWN], MAX_NUMBERS) if done else []
    if tables:
        yield ""
        for table in tables:
            yield from table_lines(table)


def _shard(text: str) -> tuple[int, int]:
    first, _, last = text.partition("/")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise InputError(f"--shard wants I/N with I from 1 to N, such as 2/8, not {text!r}.")
    return int(first), int(last)
