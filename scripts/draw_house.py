"""Draws which package of mdsens imports which, from the imports themselves.

    python scripts/draw_house.py [docs/explanation/house.svg]

A row imports the columns where it has a dot, the larger the more imports. All dots lie below the diagonal: nothing imports what
stands above it (`tests/test_house.py` sees to that).
"""

import sys
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from test_house import FLOORS, IMPORTS, MODULES  # noqa: E402


def package(module: str) -> str:
    """The room of a module; empty for `mdsens` itself."""
    return (module.split(".") + [""])[1]  # noqa: RUF005


def main(path: Path) -> None:
    arrows = Counter((package(a), package(b)) for a, others in IMPORTS.items() for b in others)
    lines = Counter()
    for module, file in MODULES.items():
        lines[package(module)] += len(file.read_text(encoding="utf-8").splitlines())
    plt.rcParams.update({"svg.hashsalt": "mdsens", "svg.fonttype": "none"})
    _, ax = plt.subplots(figsize=(8.0, 6.6), layout="constrained")
    for y, above in enumerate(FLOORS):
        ax.plot([-0.5, y], [y, y], color="0.9", zorder=0)
        ax.plot([y, y], [y, len(FLOORS) - 0.5], color="0.9", zorder=0)
        ax.text(y + 0.25, y, f"{above}  ({lines[above]:,} lines)", va="center", fontsize=9)
        ax.plot(y, y, "s", color="tab:blue", markersize=8)
        for x, below in enumerate(FLOORS[:y]):
            if count := arrows[above, below]:
                ax.plot(x, y, "o", color="tab:orange", markersize=2.0 + 1.2 * count**0.5)
    ax.set_yticks(range(len(FLOORS)), FLOORS)
    ax.set_xticks(range(len(FLOORS)), FLOORS, rotation=45, ha="right")
    ax.set_xlim(-0.7, len(FLOORS) + 2.2)
    ax.set_ylim(-0.7, len(FLOORS) - 0.3)
    ax.set_xlabel("is imported")
    ax.set_ylabel("imports")
    ax.spines[["top", "right"]].set_visible(False)
    ax.figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "explanation" / "house.svg")
