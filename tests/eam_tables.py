"""Files of embedded atoms that a test writes."""

import numpy as np


def write_setfl(path, F, rho, phi, *, cutoff, densest, size) -> None:
    """An `eam/alloy` or `eam/fs` file of functions, whichever the keys of `rho` are for; `phi` in the file's order."""
    drho, dr = densest / (size - 1), cutoff / (size - 1)
    at_rho, at_r = drho * np.arange(size), dr * np.arange(size)
    lines = ["a", "b", "c", f"{len(F)} {' '.join(F)}", f"{size} {drho!r} {size} {dr!r} {cutoff!r}"]
    for a in F:
        lines.append("1 1.0 1.0 fcc")
        lines += [*map(repr, F[a](at_rho).tolist())]
        # The density that an atom makes: of eam/fs at each other element in turn.
        for made in [rho[a]] if a in rho else [rho[a, b] for b in F]:
            lines += [*map(repr, made(at_r).tolist())]
    for function in phi.values():
        lines += [*map(repr, (at_r * function(at_r)).tolist())]
    path.write_text("\n".join(lines) + "\n")
