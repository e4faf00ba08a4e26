"""What silicon's potential is calibrated to, in a test and in a bench."""

import numpy as np
from ase.build import bulk

import mdsens as ms
from mdsens import studies

TIGHT = {"fmax": 1e-12}


def silicon_targets():
    """`(structures, observables, options of relax)`: a crystal, and the bonds around a vacancy whose neighbours moved inward."""
    atoms = bulk("Si", cubic=True) * 2
    arms = atoms.get_distances(0, range(len(atoms)), mic=True, vector=True)
    lengths = np.linalg.norm(arms, axis=1)
    near, shell = np.split(np.argsort(lengths)[1:11], [4])
    atoms.positions[near] -= 0.4 * arms[near] / lengths[near, None]
    del atoms[0]
    pairs = [(a - 1, b - 1) for k, a in enumerate(near) for b in [*near[k + 1 :], *shell]]
    systems = {"crystal": ms.System.from_ase(bulk("Si")), "vacancy": ms.System.from_ase(atoms)}
    observables = {
        "a": studies.Of(ms.observables.lattice_constants, "crystal"),
        "C": studies.Of(ms.observables.elastic_constants, "crystal"),
        "bonds": studies.Of(ms.observables.distances(pairs), "vacancy"),
    }
    return systems, observables, {"crystal": {"cell": "free", **TIGHT}, "vacancy": TIGHT}
