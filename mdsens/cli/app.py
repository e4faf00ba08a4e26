"""The command line. An error is one sentence; --debug shows its traceback."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from mdsens.common.errors import InputError, MdsensError, StoreError, did_you_mean, nearest_name
from mdsens.common.version import VERSION

app = typer.Typer(
    name="mdsens",
    help="From a structure and an interatomic potential to the derivative of its equilibrium.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

INTERRUPT_STATUS = 130

REPEAT_DELAY = 0.05
"""Seconds until an interrupt that was dropped is repeated."""


def _existing(path: Path) -> Path:
    """Return the path of a result; raise StoreError where it does not exist, or is a study's description."""
    exists = False
    names: list[str] = []
    with contextlib.suppress(OSError, ValueError):  # no file has a name of 5,000 letters, or one with a NUL in it
        exists = path.exists()
        names = [] if exists else [other.name for other in path.parent.iterdir()]
    if exists and path.suffix == ".toml":
        raise StoreError(f"{str(path)!r} is the description of a study, and no result: 'mdsens run {path}' does it.")
    if exists:
        return path
    raise StoreError(f"There is no {'file' if path.suffix else 'file or folder'} {str(path)!r}.{nearest_name(path.name, names)}")


def _file(path: Path) -> Path:
    """Return the path of a file that mdsens wrote; raise StoreError for a folder, and as `_existing`."""
    if not _existing(path).is_dir():
        return path
    if (path / "study.json").is_file():
        raise StoreError(f"{str(path)!r} is the folder of a study: 'mdsens collect {path}' makes a file of it.")
    raise StoreError(f"{str(path)!r} is a folder: give a file that mdsens wrote.")


def _existing_path(help: str) -> Any:
    return typer.Argument(help=help, show_default=False, callback=_existing)


def _output(help: str) -> Any:
    return typer.Option("--output", "-o", help=help, show_default=False)


ResultFile = Annotated[Path, typer.Argument(help="A file that mdsens wrote.", show_default=False, callback=_file)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")]


def _finish(lines: Iterable[str], good: bool = True) -> None:
    """Print lines, and exit with status 1 if something is wrong."""
    for line in lines:
        typer.echo(line)
    if not good:
        raise typer.Exit(1)


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mdsens {VERSION}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version.", callback=_say_version, is_eager=True)] = False,
) -> None:
    if debug:
        os.environ["MDSENS_DEBUG"] = "1"


@app.command()
def demo(
    output: Annotated[Path | None, _output("Folder to write into; by default a fresh mdsens-demo.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist in the folder.")] = False,
) -> None:
    """Demonstrate mdsens on shipped data: relax, differentiate, store, draw. About a minute."""
    folder = _demo_folder(output, overwrite)
    from tqdm import tqdm

    from mdsens.cli.demo import run as run_demo

    with tqdm(total=4, desc="starting", bar_format="{desc:<24} |{bar:30}| {n_fmt}/{total_fmt} {elapsed}", file=sys.stderr) as bar:
        lines = run_demo(folder, bar, overwrite=overwrite)
    _finish(lines)


@app.command()
def show(file: ResultFile) -> None:
    """Show a stored result, or a collected study, as a table."""
    from mdsens.cli.show import describe
    from mdsens.common.untrusted_hdf5 import explain_damage
    from mdsens.files.state_files import load_one
    from mdsens.studies.results.text_tables import describe_study
    from mdsens.studies.storage.collected_file import is_collected, read_collected

    with explain_damage(file, "file that mdsens can show"):
        lines = [*(describe_study(read_collected(file)) if is_collected(file) else describe(*load_one(file)))]
    _finish(lines)


@app.command()
def new(
    kind: Annotated[
        str,
        typer.Argument(help="sweep, sensitivity, uncertainty, calibration, inverse or continuation.", show_default=False),
    ] = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="The TOML file to write.")] = Path("study.toml"),
    overwrite: Overwrite = False,
) -> None:
    """Write a study to begin with: a commented TOML file that runs as it is."""
    from mdsens.files.atomic_write import check_writable, write_whole
    from mdsens.studies.input.toml_schema import KINDS
    from mdsens.studies.templates import template

    if not kind:
        raise InputError(f"Say which kind of study, 'mdsens new sweep' for one. There are: {', '.join(KINDS)}.")
    if kind not in KINDS:
        raise InputError(f"There is no kind of study {kind!r}.{did_you_mean(kind, KINDS)}")
    text = template(kind).encode()
    if not (output.is_file() and output.read_bytes() == text):
        check_writable(output, overwrite=overwrite)
        write_whole(output, text, overwrite=overwrite)
    typer.echo(f"{output}: now 'mdsens run {output}'.")


@app.command()
def run(
    study: Annotated[Path, typer.Argument(help="The study's TOML file; 'mdsens new' writes one.", show_default=False)],
    output: Annotated[Path | None, _output("Folder of its results; by default beside it, of its name.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Only read the study, and say what it consists of.")] = False,
    shard: Annotated[str, typer.Option("--shard", help="I/N: only every N-th task from the I-th, for arrays of jobs.")] = "1/1",
    workers: Annotated[int, typer.Option("--workers", "-w", help="Processes that share the work.", min=1)] = 1,
    scheduler: Annotated[
        str | None,
        typer.Option("--scheduler", help="A Dask scheduler, tcp://host:8786, whose workers do the work.", show_default=False),
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Do tasks that failed again, too.")] = False,
) -> None:
    """Do a study, or the part of it that is missing. Exit 1 if a task failed."""
    from mdsens.studies.running import commands

    if check:
        _finish(commands.check(study))
    else:
        _finish(*commands.run(study, output, shard=shard, workers=workers, scheduler=scheduler, retry=retry))


@app.command()
def collect(
    folder: Annotated[Path, _existing_path("The folder that 'mdsens run' wrote into.")],
    output: Annotated[Path | None, _output("The HDF5 file to write; by default FOLDER.h5.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Merge the tasks of a finished study into one file."""
    from mdsens.common.text import count_text
    from mdsens.studies.storage import collected_file

    output = _sibling(folder, ".h5") if output is None else output
    count, failed = collected_file.collect(folder, output, overwrite=overwrite)
    failures = f", {failed} of them failed" if failed else ""
    typer.echo(f"{output}: {count_text(count, 'task')}{failures}; see 'mdsens show {output}'.")


@app.command()
def export(
    file: ResultFile,
    output: Annotated[Path, _output("What to write: .csv, .extxyz (OVITO, ASE) or .nc (netCDF).")],
    table: Annotated[
        str | None, typer.Option("--table", "-t", help="Which table a .csv is to hold; by default the first.", show_default=False)
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a stored result, or a collected study, for other programs."""
    from mdsens.studies.export import write

    typer.echo(write(file, output, table=table, overwrite=overwrite))


@app.command()
def rerun(
    file: ResultFile,
    output: Annotated[Path | None, _output("Folder to do a study in; by default beside it, NAME-rerun.")] = None,
    tolerance: Annotated[float, typer.Option("--tolerance", help="Largest difference allowed.", min=0.0)] = 1e-6,
    workers: Annotated[int, typer.Option("--workers", "-w", help="Processes that share a study's work.", min=1)] = 1,
) -> None:
    """Repeat a collected study, or a stored result, from its file. Exit 1 if the numbers differ."""
    from mdsens.cli.rerun import compare_again

    _finish(*compare_again(file, output, tolerance=tolerance, workers=workers))


@app.command()
def report(
    path: Annotated[Path, _existing_path("A study's folder, or a file that mdsens wrote.")],
    output: Annotated[Path | None, _output("The HTML file to write; by default PATH.html.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a report in one HTML file: tables, pictures, certificates, failures, provenance. It replaces an older one."""
    from mdsens.cli.report import html_report, is_report
    from mdsens.files.atomic_write import check_writable, write_whole

    output = _sibling(path, ".html") if output is None else output
    overwrite = overwrite or is_report(output)
    check_writable(output, overwrite=overwrite)
    write_whole(output, html_report(path).encode(), overwrite=overwrite)
    typer.echo(output)


@app.command()
def plot(
    file: ResultFile,
    output: Annotated[Path | None, _output("Folder for the PNG files; by default beside the file.")] = None,
    parameter: Annotated[
        str | None, typer.Option("--parameter", "-p", help="Whose derivative to draw; by default the most influential.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace pictures that exist.")] = False,
) -> None:
    """Draw a stored result, or a collected study."""
    from mdsens.cli.show import pictures
    from mdsens.common.untrusted_hdf5 import explain_damage
    from mdsens.files.atomic_write import check_writable, save_picture
    from mdsens.files.state_files import load_one
    from mdsens.studies.pictures import study_pictures
    from mdsens.studies.storage.collected_file import is_collected, read_collected

    if is_collected(file):
        with explain_damage(file, "study that can be drawn"):
            figures = study_pictures(read_collected(file))
    else:
        eq, sensitivity = load_one(file)
        if sensitivity is None:
            raise InputError(f"{str(file)!r} holds no sensitivity to draw: store one with ms.save(path, eq, S).")
        figures = pictures(eq, sensitivity, parameter)
    folder = file.parent if output is None else output
    if output is not None:
        folder.mkdir(parents=True, exist_ok=True)
    paths = {folder / f"{file.stem}_{name}.png": ax for name, ax in figures.items()}
    for path in paths:
        check_writable(path, overwrite=overwrite)
    for path, ax in paths.items():
        typer.echo(save_picture(ax, path, overwrite=overwrite))


@app.command()
def verify(file: ResultFile) -> None:
    """Compare a stored sensitivity with finite differences of structures relaxed again. Exit 1 if they disagree."""
    from tqdm import tqdm

    from mdsens.derivatives.verification import TOLERANCE, check_sensitivity
    from mdsens.files.state_files import load_one
    from mdsens.studies.storage.collected_file import is_collected

    if is_collected(file):
        raise InputError(f"{str(file)!r} is a collected study: 'mdsens rerun' does it again; verify is for what ms.save wrote.")
    eq, sensitivity = load_one(file)
    if sensitivity is None:
        raise InputError(f"{str(file)!r} holds no sensitivity to verify.")
    typer.echo(f"Error of θ dX/dθ against central differences, on the scale of the largest (at most {TOLERANCE:g}):")
    checks = []
    for check in tqdm(check_sensitivity(eq, sensitivity), desc="relaxing again", leave=False, disable=None):
        verdict = "agrees" if check.agrees else (check.note or "DISAGREES")
        tqdm.write(f"  {check.parameter:<24} {check.error:9.1e}  {verdict}", file=sys.stdout)
        checks.append(check)
    failed = sum(not check.agrees for check in checks)
    _finish([f"{failed} of {len(checks)} do not agree." if failed else f"All {len(checks)} agree."], not failed)


@app.command()
def potentials(name: Annotated[str | None, typer.Argument(help="Whose page to show.", show_default=False)] = None) -> None:
    """List the potentials; with a NAME show its page: formula, parameters, restrictions, paper."""
    from mdsens.cli import potential_pages

    _finish(potential_pages.listing() if name is None else potential_pages.page(name))


@app.command()
def doctor() -> None:
    """Check versions, precision, devices, and whether this JAX computes correctly. Exit 1 if something is wrong."""
    from mdsens.cli.doctor import report

    healthy = True
    for name, finding, good in report():
        typer.echo(f"  {name:<20} {finding}{'' if good else '   <-- problem'}")
        healthy &= good
    _finish(["Everything is in order." if healthy else "Something is not in order; see above."], healthy)


def _sibling(path: Path, suffix: str) -> Path:
    """Return the path of a file beside a folder or a file, of its name."""
    path = path.resolve() if path.name in ("", "..") else path
    return path.with_name((path.name if path.is_dir() else path.stem) + suffix)


def _demo_folder(output: Path | None, overwrite: bool) -> Path:
    """Make the demo's folder and return it; raise StoreError where it may not be written into."""
    if output is None:
        names = (Path(f"mdsens-demo{suffix}") for suffix in ["", *(f"-{k}" for k in range(2, 10_000))])
        output = next(path for path in names if not path.exists())
    elif output.is_dir() and any(output.iterdir()):
        if not overwrite:
            raise StoreError(f"The folder {str(output)!r} is not empty: choose another one, or allow it with --overwrite.")
    elif output.exists() and not output.is_dir():
        raise StoreError(f"{str(output)!r} is a file: give the name of a folder.")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"The folder {str(output)!r} cannot be made ({error.strerror}).") from error
    return output


def main() -> None:
    """Run the command line; an error becomes one sentence and an exit status (1; 130 after Ctrl-C)."""
    os.environ.setdefault("MPLBACKEND", "agg")  # pictures go to files; no display is needed
    _repeat_dropped_interrupts()
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPT_STATUS:  # typer's status after Ctrl-C
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
            typer.echo("mdsens: interrupted; every file that was written is complete.", err=True)
        raise
    except Exception as error:
        if os.environ.get("MDSENS_DEBUG"):
            raise
        typer.echo(f"mdsens: {error if isinstance(error, MdsensError) else _unexpected(error)}", err=True)
        raise SystemExit(1) from None


def _repeat_dropped_interrupts() -> None:
    """Repeat a Ctrl-C that Python drops since it came in a callback of the garbage collector; JAX has one."""
    original = sys.unraisablehook

    def hook(dropped: Any) -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            timer = threading.Timer(REPEAT_DELAY, signal.raise_signal, [signal.SIGINT])
            timer.daemon = True
            timer.start()
        else:
            original(dropped)

    sys.unraisablehook = hook


def _unexpected(error: Exception) -> str:
    """Describe an error that is none of mdsens's own in a sentence."""
    if isinstance(error, OSError):
        return f"{error.strerror or error} ({error.filename})." if error.filename else f"{error}."
    first = str(error).splitlines()[0] if str(error) else "no message"
    return f"an unexpected {type(error).__name__}: {first} (run with --debug before the command for the whole story)."


if __name__ == "__main__":
    main()
