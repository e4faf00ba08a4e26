"""A running study that is killed at random instants: what was finished stays, and the end is the same, bit for bit.

    python scripts/stress/kill.py [--kills 60] [--seed 0] [--workers 1]

A study of 200 small tasks is run to its end undisturbed. Then it is run again and again, each time SIGKILL comes at a
random instant, of starting up, of work, of writing. After each kill all tasks that are there are read whole and are those
that were there before, and more; the last run completes the study. Prints a table; exits 1 where anything differs.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mdsens.common.errors import MdsensError
from mdsens.studies.storage import collected_file, task_files

STUDY = """
[study]
kind = "sweep"
[study.parameters]
sigma = { start = 0.9, stop = 1.3, points = 100 }
epsilon = [0.5, 1.0]
[structures.dimer]
builder = "molecule"
arguments = { name = "N2" }
[potential]
name = "LennardJones"
parameters = { epsilon = 1.0, sigma = 1.0, cutoff = 6.0, onset = 5.0 }
[relax]
fmax = 1e-10
[observables.energy]
[observables.distances]
arguments = { pairs = [[0, 1]] }
"""


def command(folder: Path, out: str, workers: int) -> subprocess.Popen:
    program = [sys.executable, "-m", "mdsens.cli.app", "run", "study.toml", "-o", out, "--workers", str(workers)]
    return subprocess.Popen(program, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def contents(folder: Path) -> dict[str, dict[str, bytes]]:
    """The numbers of all tasks that are there; each must be whole."""
    tasks = (task_files.read_task(path) for path in sorted((folder / task_files.TASKS).glob("*.h5")))
    return {task.name: {path: value.tobytes() for path, value in task.record.arrays.items()} for task in tasks}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    draw, problems, instants = random.Random(options.seed), [], []
    with tempfile.TemporaryDirectory(prefix="mdsens-kill-") as name:
        folder = Path(name)
        (folder / "study.toml").write_text(STUDY)
        begun = time.monotonic()
        if command(folder, "whole", options.workers).wait():
            sys.exit("the undisturbed study does not run")
        whole, alone = contents(folder / "whole"), time.monotonic() - begun
        before: dict = {}
        while (kill := sum(not finished for _, finished in instants)) < options.kills and not problems:
            process = command(folder, "killed", options.workers)
            # Most of a short run is starting up: half of the kills wait until it works.
            here = len(before)
            if kill % 2:
                while process.poll() is None and len(list(folder.glob("killed/tasks/*.h5"))) == here:
                    time.sleep(0.001)
                delay = draw.uniform(0.0, 0.05)
            else:
                delay = draw.uniform(0.0, alone)
            time.sleep(delay)
            finished = process.poll() is not None
            if not finished:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            try:
                after = contents(folder / "killed")
            except MdsensError as error:
                problems.append(f"kill {kill}: {error}")
                continue
            if lost := [task for task, arrays in before.items() if after.get(task) != arrays]:
                problems.append(f"kill {kill}: {len(lost)} tasks were lost or changed")
            instants.append(("work" if len(after) > here else "start", finished))
            before = after
            if finished and len(after) == len(whole):  # begin anew
                before = {}
                subprocess.run(["rm", "-r", str(folder / "killed")], check=True)
        there = len(before)
        if command(folder, "killed", options.workers).wait():
            problems.append("it does not resume")
        if contents(folder / "killed") != whole:
            problems.append("resumed numbers are not those of the undisturbed run")
        collected = collected_file.collect(folder / "killed", folder / "all.h5")
        left = list(folder.rglob("*.part"))
        if left:
            problems.append(f"left behind: {left[0].name}")
    print(f"kills                          {sum(not end for _, end in instants):6}")
    print(f"  while it began               {sum(what == 'start' and not end for what, end in instants):6}")
    print(f"  while it worked              {sum(what == 'work' and not end for what, end in instants):6}")
    print(f"runs that ended before         {sum(end for _, end in instants):6}")
    print(f"tasks of the study             {len(whole):6}")
    print(f"  there before the last resume {there:6}")
    print(f"  in the collected file        {collected[0]:6}")
    print(f"problems                       {len(problems):6}")
    for problem in problems:
        print(f"  {problem}")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
