"""How much of two cores a study keeps: sweeps of 1,000 small tasks by two workers, after compilation.

    python scripts/bench/study_rate.py [--tasks 1000] [--sweeps 4] [--workers 2] [--turn 2.5]

`mdsens run` beside plain loops, as many processes as workers, each with a thread: what they relax and observe is the same.
Since a machine's speed drifts, both are there at the same time and take turns of a few seconds: one is stopped (SIGSTOP)
while the other goes on, study, loops, loops, study, ... What is reported are medians of the ratios of neighbouring turns, in
wall time and in the processor's time of all processes of either side. Wall time says so on a quiet machine only: where the
loops did not get all of their cores, the processor's time decides. Linux only.
"""

import argparse
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from study_overhead import STUDY, plain, prepared

from mdsens.studies.input import tasks
from mdsens.studies.running import execution
from mdsens.studies.storage import task_files

FLOOR = 0.85
OVERHEAD = 5.0
"""Milliseconds of the processor that a task may cost beside its work."""
QUIET = 0.97
"""Share of their cores that loops have on a quiet machine."""
BEGUN = 0.15
"""Of a sweep, after which all workers have compiled what they need."""


class Loops:
    """Plain loops over the tasks' inputs in processes of their own."""

    def __init__(self, inputs, workers: int):
        context = multiprocessing.get_context("spawn")
        self.counters = [context.Value("q", 0, lock=False) for _ in range(workers)]
        self.processes = [context.Process(target=_loop, args=(inputs, counter), daemon=True) for counter in self.counters]
        with execution._thread_limit(max(1, (os.cpu_count() or 1) // workers)):
            for process in self.processes:
                process.start()

    def tell(self, what: int) -> None:
        for process in self.processes:
            os.kill(process.pid, what)

    def count(self) -> int:
        return sum(counter.value for counter in self.counters)

    def spent(self) -> float:
        return sum(_processor_time(process.pid) for process in self.processes)

    def begin(self, count: int) -> None:
        while min(counter.value for counter in self.counters) < count:
            time.sleep(0.1)


def _loop(inputs, counter):
    given = [prepared(one) for one in inputs]
    while True:
        for one in given:
            plain(*one)
            counter.value += 1


class Command:
    """`mdsens run STUDY`, with its workers."""

    def __init__(self, study: Path, out: Path, workers: int):
        program = [sys.executable, "-m", "mdsens.cli.app", "run", str(study), "-o", str(out), "--workers", str(workers)]
        self.tasks = out / task_files.TASKS
        self.process = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)

    def tell(self, what: int) -> None:
        os.killpg(self.process.pid, what)

    def count(self) -> int:
        return sum(entry.name.endswith(".h5") for entry in os.scandir(self.tasks)) if self.tasks.exists() else 0

    def spent(self) -> float:
        return sum(_processor_time(int(path.name)) for path in Path("/proc").glob("[0-9]*") if _group(path) == self.process.pid)

    def begin(self, count: int) -> None:
        while self.count() < count and self.process.poll() is None:
            time.sleep(0.1)


def _stat(path: Path) -> list[str]:
    """What /proc says of a process, from its state on."""
    try:
        return (path / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["", "0", "0"]


def _group(path: Path) -> int:
    return int(_stat(path)[2])


def _processor_time(pid: int) -> float:
    """Of a process that is there [s]."""
    fields = _stat(Path("/proc") / str(pid))
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def turn(side, length: float) -> tuple[float, float, float]:
    """`(tasks a second, processor time a task [s], cores had)` of a turn."""
    before, spent = side.count(), side.spent()
    begun = time.perf_counter()
    side.tell(signal.SIGCONT)
    time.sleep(length)
    side.tell(signal.SIGSTOP)
    seconds = time.perf_counter() - begun
    time.sleep(0.02)  # signals take a moment
    done, spent = side.count() - before, side.spent() - spent
    return done / seconds, spent / max(done, 1), spent / seconds


def turns(command: Command, loops: Loops, first: int, length: float):
    """Neighbouring turns of the study, from so many tasks on, and the loops until it ends, pairs of what `turn` says."""
    pairs = []
    try:
        command.begin(first)
        command.tell(signal.SIGSTOP)
        while True:
            order = (command, loops) if len(pairs) % 2 == 0 else (loops, command)
            found = {side: turn(side, length) for side in order}
            if command.process.poll() is not None:
                break
            pairs.append((found[command], found[loops]))
    finally:
        if command.process.poll() is None:
            command.tell(signal.SIGKILL)
    assert command.process.returncode == 0, f"the study failed after {command.count()} tasks"
    # The study ended in a turn that does not count; nor does the one before, with the last and smallest shares.
    return pairs[:-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=1000, help="of a sweep")
    parser.add_argument("--sweeps", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--turn", type=float, default=2.5, help="seconds (default: 2.5)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        study = folder / "study.toml"
        study.write_text(STUDY.format(count=options.tasks))
        loops = Loops([task.input for task in tasks.read_study(study).tasks[::5]], options.workers)
        first = int(BEGUN * options.tasks)
        loops.begin(first)
        loops.tell(signal.SIGSTOP)
        pairs = []
        for k in range(options.sweeps):
            pairs += turns(Command(study, folder / f"sweep{k}", options.workers), loops, first, options.turn)
        loops.tell(signal.SIGKILL)
    if not pairs:
        sys.exit("the sweeps ended before two turns were over: give more tasks, or shorter turns")
    of_study, of_loops = ([statistics.median(column) for column in zip(*side, strict=True)] for side in zip(*pairs, strict=True))
    wall = statistics.median(study[0] / loop[0] for study, loop in pairs)
    spent = statistics.median(loop[1] / study[1] for study, loop in pairs)
    overhead = 1e3 * statistics.median(study[1] - loop[1] for study, loop in pairs)
    had = of_loops[2] / options.workers
    quiet = had >= QUIET
    print(f"{options.sweeps} sweeps of {options.tasks} tasks by {options.workers} workers, {len(pairs)} pairs of turns; medians")
    print(f"  {'':44}{'tasks a second':>16}{'processor, ms a task':>22}{'cores':>8}")
    for what, (rate, each, cores) in (("relaxed and observed in plain loops", of_loops), ("as a study", of_study)):
        print(f"  {what:44}{rate:16.1f}{1e3 * each:22.2f}{cores:8.2f}")
    print(f"  {'share of the ideal (floor %.0f %%)' % (100 * FLOOR):44}{wall:16.1%}{spent:22.1%}")
    print(f"  overhead of a task, of the processor {overhead:.2f} ms (at most {OVERHEAD:g})")
    decides = "wall time counts" if quiet else "the machine is not quiet, so the processor's time counts"
    print(f"  the loops had {had:.0%} of their cores: {decides}")
    sys.exit(0 if (wall if quiet else spent) >= FLOOR and overhead <= OVERHEAD else 1)


if __name__ == "__main__":
    main()
