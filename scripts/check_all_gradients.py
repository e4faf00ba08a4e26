"""Every potential, every parameter, in four settings: sensitivities against differences of structures relaxed again.

    python scripts/check_all_gradients.py [NAME ...]

prints one table, in which each number is the largest error of θ dX/dθ over a potential's parameters, relative to the largest
θ dX/dθ, and exits with status 1 if one exceeds 1e-6 or if a structure did not relax.
"""

import sys

import jax

from mdsens.testing import EXAMPLES
from mdsens.testing.gradients import SETTINGS, TOLERANCE, check_gradients


def main(names) -> int:
    if unknown := [name for name in names if name not in EXAMPLES]:
        print(f"There is no potential {unknown[0]!r}; there are {', '.join(EXAMPLES)}.", file=sys.stderr)
        return 2
    print(f"  {'potential':<18} {'values':>6}  " + "".join(f"{setting:<28}" for setting in SETTINGS))
    wrong = 0
    for name in names or EXAMPLES:
        cells, count = [], 0
        for setting in SETTINGS:
            found = check_gradients(name, setting)
            count = max(count, found.values)
            cells.append(f"{found!s:<28}")
            wrong += not found.is_fine
            # Programs take memory maps, of which a process has 65,000 on Linux; nothing is compiled alike anyway.
            jax.clear_caches()
        print(f"  {name:<18} {count:>6}  " + "".join(cells), flush=True)
    print("All agree." if not wrong else f"{wrong} do not agree to {TOLERANCE:g}.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
