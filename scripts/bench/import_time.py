"""What `import mdsens` and `mdsens --help` cost beside `import jax`: fresh processes in turn, medians.

    python scripts/bench/import_time.py [REPETITIONS]

Exit 1 if `import mdsens` takes more than 1.5 times what `import jax` takes.
"""

import importlib.metadata
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

LIMIT = 1.5
ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {
    "import jax": ["-c", "import jax"],
    "import mdsens": ["-c", "import mdsens"],
    "ms.sensitivity": ["-c", "import mdsens as ms; ms.System, ms.relax, ms.sensitivity"],  # loaded on first use
    "mdsens --help": ["-m", "mdsens.cli.app", "--help"],
}


def seconds(arguments: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main(repetitions: int = 15) -> int:
    versions = (f"{name} {importlib.metadata.version(name)}" for name in ("jax", "jaxlib", "equinox", "typer"))
    print(f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {', '.join(versions)}")
    for arguments in COMMANDS.values():  # a warm-up: file caches, .pyc files
        seconds(arguments)
    times = {name: [] for name in COMMANDS}
    for _ in range(repetitions):
        for name, arguments in COMMANDS.items():
            times[name].append(seconds(arguments))
    medians = {name: statistics.median(found) for name, found in times.items()}
    print(f"median of {repetitions} fresh processes each, in turn:")
    for name, median in medians.items():
        low, high = min(times[name]), max(times[name])
        print(f"  {name:<14} {median:6.3f} s  ({low:.3f} to {high:.3f})  {median / medians['import jax']:5.2f} × import jax")
    over = medians["import mdsens"] > LIMIT * medians["import jax"]
    print(f"import mdsens is {'OVER' if over else 'within'} {LIMIT} × import jax")
    return int(over)


if __name__ == "__main__":
    raise SystemExit(main(*map(int, sys.argv[1:2])))
