"""What a study costs beside relaxing: a sweep of silicon over σ, task by task, against the same relaxations in a loop.

Prints milliseconds a task after compilation, and what a task's file takes of them.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from mdsens.studies.input import recipes, tasks
from mdsens.studies.methods.observed import evaluate, relax_all
from mdsens.studies.methods.parameters import with_values
from mdsens.studies.running import execution
from mdsens.studies.running.tasks_by_kind import do_task
from mdsens.studies.storage.task_files import task_image, write_tasks

STUDY = """
[study]
kind = "sweep"
[study.parameters]
sigma = {{ start = 2.094, stop = 2.102, points = {count} }}
[structures.silicon]
builder = "bulk"
arguments = {{ name = "Si", cubic = true }}
delete = [0]
rattle = 0.01
[potential]
name = "StillingerWeber"
constructor = "silicon"
[observables.energy]
[observables.pressure]
"""


def prepared(given) -> tuple:
    """What a loop would make before it begins: a task's structure, potential, parameters, observables and options."""
    (name, recipe), *_ = given["structures"].items()
    observed = recipes.observables_of(given["observables"], (name,))
    potential = recipes.potential_of(given["potential"])
    return {name: recipes.structure_of(recipe)}, potential, given["parameters"], observed, given["relax"]


def plain(systems, potential, parameters, observed, options) -> None:
    """What a task's relaxation and its observables take by themselves."""
    evaluate(observed, relax_all(systems, with_values(potential, parameters), options))


def milliseconds(functions, chosen) -> list[float]:
    """Medians, of functions called in turn."""
    spent = [[] for _ in functions]
    for task in chosen:
        for function, times in zip(functions, spent, strict=True):
            begun = time.perf_counter()
            function(task)
            times.append(time.perf_counter() - begun)
    return [1e3 * statistics.median(times) for times in spent]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=200, help="tasks of the sweep (default: 200)")
    count = parser.parse_args().tasks
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "study.toml"
        path.write_text(STUDY.format(count=count))
        begun = time.perf_counter()
        study = tasks.read_study(path)
        reading = 1e3 * (time.perf_counter() - begun) / count
        out = Path(folder) / "out"
        do_task(study.tasks[0].input)  # compiles for all of them
        execution.make_folder(out)
        record = do_task(study.tasks[0].input)
        alone, whole, written = milliseconds(
            (
                lambda task: plain(*prepared(task.input)),
                lambda task: execution.attempt(task),
                lambda task: write_tasks(out, {task.name: task_image(task, record, "", 0.0)}),
            ),
            study.tasks,
        )
        begun = time.perf_counter()
        done = execution.run(study, Path(folder) / "again", progress=False)
        rate = 1e3 * (time.perf_counter() - begun) / count
    print(f"a sweep of {count} tasks, {len(record.arrays['structures/silicon/positions'])} atoms, ms a task")
    for what, value in (
        ("relaxed and observed in a loop", alone),
        ("the same as a task", whole),
        ("  overhead", whole - alone),
        ("writing its file, beside the next one", written),
        ("reading the study", reading),
        ("mdsens run, altogether", rate),
    ):
        print(f"  {what:34}{value:8.2f}")
    assert done.done == count and np.isfinite(whole)


if __name__ == "__main__":
    main()
