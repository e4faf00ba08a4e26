"""How much of two cores a study keeps: a sweep of 1,000 small units by two workers, after compilation.

    python scripts/bench/study_rate.py [--units 1000] [--workers 2]

What a unit takes is the difference of a large study and a small one over that of their units, so that starting and
compiling, which both do, drop out. The ideal is the same relaxations and observables in plain loops, in as many processes at
once with a thread each, before and after the study, since a machine's speed drifts. Wall time says so on a quiet machine only;
the processor's time says so on any.
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from study_overhead import STUDY, plain

from mdsens.studies import execution, units

FLOOR = 0.85
OVERHEAD = 5.0
"""Milliseconds a unit may cost beside its work."""
SMALL = 100


def processor_time() -> float:
    """Of this process and of those of its children that ended [s]."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def in_a_loop(inputs) -> tuple[float, float]:
    """`(wall, processor time)` a unit [s], after a first round."""
    for given in inputs[:: max(1, len(inputs) // 10)]:
        plain(given)
    begun, spent = time.perf_counter(), time.process_time()
    for given in inputs:
        plain(given)
    return (time.perf_counter() - begun) / len(inputs), (time.process_time() - spent) / len(inputs)


def in_loops(inputs, workers: int) -> tuple[float, float]:
    """The same in several processes at once, the mean of them."""
    context = multiprocessing.get_context("spawn")
    with execution._bounded_threads(1), ProcessPoolExecutor(workers, mp_context=context) as pool:
        found = [loop.result() for loop in [pool.submit(in_a_loop, inputs) for _ in range(workers)]]
    return tuple(sum(times) / workers for times in zip(*found, strict=True))


def as_a_study(folder: Path, count: int, workers: int) -> tuple[float, float]:
    """`(wall, processor time)` of a whole study [s]."""
    path = folder / f"of{count}.toml"
    path.write_text(STUDY.format(count=count))
    study = units.read_study(path)
    begun, spent = time.perf_counter(), processor_time()
    done = execution.run(study, path.with_suffix(""), workers=workers, progress=False)
    assert done.done == count and not done.failed
    return time.perf_counter() - begun, processor_time() - spent


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "study.toml"
        path.write_text(STUDY.format(count=300))
        inputs = [unit.input for unit in units.read_study(path).units]
        as_a_study(folder, 20, options.workers)  # compiles for all of them, where compiled programs are kept
        before = in_loops(inputs, options.workers)
        small, large = (as_a_study(folder, count, options.workers) for count in (SMALL, options.units))
        after = in_loops(inputs, options.workers)
    wall, spent = ((a + b) / 2 for a, b in zip(before, after, strict=True))
    of_study = [(b - a) / (options.units - SMALL) for a, b in zip(small, large, strict=True)]
    keeps = {"wall time": wall / options.workers / of_study[0], "processor time": spent / of_study[1]}
    overhead = 1e3 * (of_study[1] - spent)
    print(f"a sweep of {options.units} units by {options.workers} workers, ms a unit{'wall':>12}{'processor':>12}")
    print(f"  {'relaxed and observed in loops, each of one core':52}{1e3 * wall:10.2f}{1e3 * spent:12.2f}")
    print(f"  {'as a study':52}{1e3 * of_study[0]:10.2f}{1e3 * of_study[1]:12.2f}")
    print(
        f"  {'share of the ideal rate (floor %.0f %%)' % (100 * FLOOR):52}" + "".join(f"{keep:11.0%} " for keep in keeps.values())
    )
    print(f"  overhead of a unit, of the processor {overhead:.2f} ms (at most {OVERHEAD:g})")
    print(f"  the whole study {large[0]:.1f} s, of which starting and compiling {large[0] - options.units * of_study[0]:.1f} s")
    sys.exit(0 if max(keeps.values()) >= FLOOR and overhead <= OVERHEAD else 1)


if __name__ == "__main__":
    main()
