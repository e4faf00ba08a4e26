"""Small faults put in by hand, one at a time: for each of them a test must fail.

    python scripts/stress/mutants.py [--only WORDS] [--jobs N] [--list]

Each mutant changes one place of a copy of the package and runs the tests that stand nearest to it, which have passed on the
copy before. Prints which test saw it; exits 1 if one survives, or if a test fails without any change.
"""

import argparse
import os
import queue
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
SECONDS = 600
"""A change may make something run for ever, which is seen too."""


class Mutant(NamedTuple):
    """A fault.

    Attributes:
        name: what would be wrong with a user's numbers.
        file: below `mdsens/`.
        old, new: the change; `old` stands once in the file.
        tests: what pytest is asked for, below `tests/`.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str


MUTANTS = (
    # What is NumPy's algebra, and what is compiled
    Mutant(
        "moving an atom does not move its bonds the other way",
        "mechanics/assembly.py",
        "blocks = np.concatenate([-blocks.sum(axis=2, keepdims=True), blocks], axis=2)",
        "blocks = np.concatenate([blocks.sum(axis=2, keepdims=True), blocks], axis=2)",
        "mechanics/test_assembly.py -k 'matrix and sites'",
    ),
    Mutant(
        "a pair's stiffness is counted once",
        "mechanics/assembly.py",
        "pairs = 2.0 * np.moveaxis(blocks[:, :, place, i], -1, 0)",
        "pairs = np.moveaxis(blocks[:, :, place, i], -1, 0)",
        "mechanics/test_assembly.py -k 'matrix and pairs'",
    ),
    Mutant(
        "forces do not turn with a strain",
        "mechanics/assembly.py",
        'columns = np.einsum("ia,kab->kib", slope, directions) / length',
        "columns = np.zeros((len(directions), *slope.shape))",
        "mechanics/test_assembly.py -k 'matrix and free'",
    ),
    Mutant(
        "a pressure has no second derivative",
        "mechanics/assembly.py",
        'return volume * (np.outer(traces, traces) - np.einsum("kab,lba->kl", turned, turned))',
        "return 0.0 * np.outer(traces, traces)",
        "mechanics/test_assembly.py -k 'matrix and free'",
    ),
    Mutant(
        "a stress is no load",
        "mechanics/evaluation.py",
        "    if freedom.tension is not None:",
        "    if False:",
        "mechanics/test_assembly.py -k forces",
    ),
    Mutant(
        "atoms that fill up a structure have energies",
        "structures/neighbors/sums_over_neighbors.py",
        "jnp.where(jnp.arange(values.size) < count, values, 0.0)",
        "values",
        "mechanics/test_programs.py -k 'fill_up and Lonely or change_nothing'",
    ),
    Mutant(
        "an energy of the user's own is filled up",
        "mechanics/programs.py",
        '    if not all(method.__module__.startswith("mdsens.") for method in methods):',
        "    if False:",
        "mechanics/test_programs.py -k left_alone",
    ),
    Mutant(
        "an observable that sees another value counts as the one before",
        "common/same_function.py",
        "    return _Seen((code, *(part.key for part in parts)), copy)",
        "    return _Seen((code,), copy)",
        "common/test_same_function.py",
    ),
    Mutant(
        "strained bonds forget what atoms do",
        "mechanics/strained_bonds.py",
        "    return form + turned + turned.T",
        "    return form",
        "mechanics/test_assembly.py -k away_from_rest",
    ),
    # The certificate
    Mutant(
        "a linear system that was not solved is trusted",
        "derivatives/certificate.py",
        "if not measured.residual <= MAX_RESIDUAL:",
        "if False:",
        "derivatives/test_certificate.py -k few_digits",
    ),
    Mutant(
        "forward and adjoint derivatives that differ are trusted",
        "derivatives/certificate.py",
        "if not mismatch <= allowed:",
        "if False:",
        "derivatives/test_certificate.py -k few_digits",
    ),
    Mutant(
        "a state without a lowest curvature is an isolated minimum",
        "derivatives/certificate.py",
        "if spectrum.index != eq.index or (eq.index == 0 and not spectrum.lowest > 0.0):",
        "if False:",
        "derivatives/test_certificate.py -k nothing_holds",
    ),
    Mutant(
        "a kink is not seen",
        "derivatives/certificate.py",
        "if kink < KINK_SHARE * float(eq.potential.range):",
        "if False:",
        "derivatives/test_certificate.py -k kink",
    ),
    Mutant(
        "an inequality that is about to switch is not seen",
        "derivatives/certificate.py",
        "< SWITCH_SHARE * neighbours:",
        "< 0.0:",
        "derivatives/test_certificate.py -k inequality",
    ),
    Mutant(
        "a derivative is trusted whatever its error beside it",
        "derivatives/certificate.py",
        "    if not sizes.size or bounds[worst] <= allowed[worst]:",
        "    if True:",
        "mechanics/test_scales.py -k 'beside_its'",
    ),
    # Units
    Mutant(
        "the default force is one in eV/Å",
        "mechanics/scales.py",
        "        return xp.where(force > 0.0, force, FALLBACK_FMAX)",
        "        return FALLBACK_FMAX",
        "mechanics/test_scales.py -k 'numbers_only'",
    ),
    Mutant(
        "constraints are counted in their own units",
        "equilibrium/constrained_descent.py",
        "jnp.asarray(np.where(steep > 0.0, steep, 1.0))",
        "jnp.ones(len(steep))",
        "mechanics/test_scales.py -k units_of_their_own",
    ),
    Mutant(
        "loose groups are not named",
        "derivatives/certificate.py",
        "    if spectrum.floppy:",
        "    if False:",
        "derivatives/test_certificate.py -k nothing_holds",
    ),
    # The bound
    Mutant(
        "the bound has no Lipschitz term",
        "implicit/bound.py",
        "return (defect + slope() * 2.0 * left / (alpha + softest)) / softest",
        "return defect / softest",
        "implicit/test_bound.py -k lipschitz",
    ),
    Mutant(
        "the bound forgets that a mode softens on the way to the root",
        "implicit/bound.py",
        "    softest = np.sqrt(max(alpha**2 - 2.0 * falling * left, 0.0))",
        "    softest = alpha",
        "implicit/test_bound.py -k double_well",
    ),
    Mutant(
        "the certificate's bound forgets that a mode softens on the way to the root",
        "derivatives/linear_response.py",
        "        at_other, alpha = alpha if other is flat else lowest_at(other), lowest_at(flat + step)",
        "        at_other = alpha",
        "implicit/test_bound.py -k buckled",
    ),
    Mutant(
        "the bound forgets rounding",
        "implicit/bound.py",
        "defect = defect + ROUNDING * eps * highest * size",
        "defect = defect + 0.0 * size",
        "implicit/test_bound.py -k rounding",
    ),
    Mutant(
        "forces that are no gradient pass",
        "mechanics/spectrum.py",
        "    if off > np.sqrt(np.finfo(columns.dtype).eps) * MAX_ASYMMETRY * size + known:",
        "    if False:",
        "derivatives/test_state_probes.py -k 'other_side or curl'",
    ),
    Mutant(
        "a site energy that forgets its mask passes",
        "mechanics/spectrum.py",
        "    _check_masks(columns, potential)",
        "    pass",
        "derivatives/test_state_probes.py -k mask",
    ),
    Mutant(
        "what was known of a state outlives its potential",
        "derivatives/linear_response.py",
        "    if not eq.is_as_relaxed:",
        "    if False:",
        "derivatives/test_state_probes.py -k replaced",
    ),
    Mutant(
        "a kink at the very state passes",
        "derivatives/roughness.py",
        "    return any(_is_jump(*both) for both in zip(near, far, noise, strict=True))",
        "    return False",
        "derivatives/test_state_probes.py -k kink",
    ),
    # Derivatives
    Mutant(
        "the explicit part of a gradient is lost",
        "derivatives/first_order.py",
        "_raveled(explicit)[0] + implicit[0]",
        "implicit[0]",
        "derivatives/test_sensitivity.py -k envelope",
    ),
    Mutant(
        "an adjoint gradient has the wrong sign",
        "derivatives/linear_response.py",
        "    gradients = -(w @ known.T)",
        "    gradients = (w @ known.T)",
        "derivatives/test_sensitivity.py -k forward_and_adjoint",
    ),
    Mutant(
        "a state that is a saddle has derivatives of a minimum",
        "derivatives/linear_response.py",
        "    if hessian.spectrum.index != eq.index:",
        "    if False:",
        "equilibrium/test_saddle.py -k 'refused or index or minimum'",
    ),
    Mutant(
        "rattlers are not taken out",
        "mechanics/null_space.py",
        "    active[np.array(rattlers, dtype=int)] = False",
        "    pass",
        "derivatives/test_sensitivity.py -m '' -k rattlers",
    ),
    Mutant(
        "second derivatives lose the factor in Taylor's series",
        "derivatives/second_order.py",
        "0.5 * t**2 * self.second",
        "t**2 * self.second",
        "derivatives/test_second_order.py -k first_and_second_order",
    ),
    Mutant(
        "the range of the second order is half of what it is",
        "derivatives/extrapolation.py",
        "bent = 2.0 * share * first / second",
        "bent = share * first / second",
        "derivatives/test_second_order.py -k makes_up",
    ),
    # Many at once
    Mutant(
        "a member is given the forces of another",
        "equilibrium/together/questions.py",
        "answers[k] = _state(members[k], questions[k].flat, jax.tree.map(lambda leaf, row=row: leaf[row], slopes))",
        "answers[k] = _state(members[k], questions[k].flat, jax.tree.map(lambda leaf: leaf[0], slopes))",
        "equilibrium/test_together.py -k 'arrive and frozen'",
    ),
    Mutant(
        "a soft minimum counts as proven",
        "mechanics/dense_system.py",
        "if not lowest > max(FLOPPY_SHARE, FACTOR_MARGIN * np.finfo(float).eps) * highest:",
        "if False:",
        "mechanics/test_dense_system.py -k soft",
    ),
    Mutant(
        "unused places of a list are not looked at",
        "equilibrium/together/questions.py",
        "    if not sound:",
        "    if False:",
        "equilibrium/test_together.py -k ones_own",
    ),
    Mutant(
        "an unsymmetric Hessian has a factor",
        "mechanics/dense_system.py",
        "return is_symmetric & (rigid",
        "return (rigid",
        "mechanics/test_dense_system.py -k gradient",
    ),
    Mutant(
        "a bound looks at the state itself",
        "derivatives/together.py",
        "force, slopes, matrix = yield DerivativesAt(member, flat)",
        "force, slopes, matrix = yield DerivativesAt(member, raveled(hessian.z))",
        "derivatives/test_sensitivities_together.py -k 'each_alone and cells'",
    ),
    # States
    Mutant(
        "smax decides nothing",
        "mechanics/unknown.py",
        "return min(fmax, smax / stress_unit(system.dim) * per_stress)",
        "return fmax",
        "equilibrium/test_cell.py -k 'stress_that'",
    ),
    Mutant(
        "half of the stress is reported as left",
        "equilibrium/relaxation.py",
        "float(np.abs(stress).max()) * stress_unit",
        "0.5 * float(np.abs(stress).max()) * stress_unit",
        "equilibrium/test_cell.py -k 'stress_that'",
    ),
    Mutant(
        "saddle points pass for minima",
        "equilibrium/relaxation.py",
        'if spectrum.index != request.get("index", 0):',
        "if False:",
        "equilibrium/test_equilibrium.py -k saddle_point_is_not",
    ),
    Mutant(
        "the load has the wrong sign",
        "mechanics/unknown.py",
        "return -float(value) * np.eye(dim)",
        "return float(value) * np.eye(dim)",
        "equilibrium/test_cell.py -k ten_gigapascal",
    ),
    Mutant(
        "a wire does not rotate about its axis",
        "mechanics/rigid_motions.py",
        "return (axis / np.linalg.norm(axis))[None]",
        "return np.zeros((0, 3))",
        "derivatives/test_sensitivity.py observables/test_phonons.py -k wire",
    ),
    Mutant(
        "walls pull",
        "equilibrium/constraints.py",
        "return system.positions[self.atoms] @ self.normal - self.offset",
        "return self.offset - system.positions[self.atoms] @ self.normal",
        "derivatives/test_certificate.py -k inequality",
    ),
    Mutant(
        "FIRE does not turn its velocity to the force",
        "solvers/fire.py",
        "p - alpha * (f * momentum_norm / force_norm + p)",
        "p - alpha * (f * momentum_norm / force_norm - p)",
        "equilibrium/test_equilibrium.py -k step_by_step",
    ),
    Mutant(
        "Newton's method takes steps that raise the residual",
        "solvers/newton.py",
        "good = problem.norm(residual) < before",
        "good = problem.norm(residual) < 1e9 * before",
        "solvers/test_solvers.py -k newton_takes",
    ),
    # Neighbours
    Mutant(
        "lists are renewed when atoms moved by the whole skin",
        "mechanics/unknown.py",
        "return (room < 0.0) | (jnp.max(moved) > room**2)",
        "return (room < 0.0) | (jnp.max(moved) > 4.0 * room**2)",
        "equilibrium/test_cell.py -k half_of_its_skin",
    ),
    # Units and tensors
    Mutant(
        "yz and xy change places",
        "common/voigt.py",
        "3: ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))}",
        "3: ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))}",
        "observables/test_sheets.py -k voigts_order",
    ),
    Mutant(
        "GPa are off in the third digit",
        "common/units.py",
        "EV_PER_CUBIC_ANGSTROM = 160.21766208",
        "EV_PER_CUBIC_ANGSTROM = 160.4",
        "observables/test_elastic.py -k silicon_has",
    ),
    Mutant(
        "Coulomb's constant is off in the fourth digit",
        "common/units.py",
        "COULOMB = 14.399645468667815",
        "COULOMB = 14.401",
        "potentials/test_coulomb.py -x",
    ),
    # Potentials
    Mutant(
        "Lennard-Jones is half as deep",
        "potentials/pairs/lennard_jones.py",
        "return 4.0 * epsilon * s6 * (s6 - 1.0)",
        "return 2.0 * epsilon * s6 * (s6 - 1.0)",
        "potentials/test_pairs.py -x",
    ),
    Mutant(
        "the quintic switch has a kink",
        "potentials/forms/switching.py",
        "x**3 * (-10.0 + x * (15.0 - 6.0 * x))",
        "x**3 * (-10.0 + x * (15.0 - 6.001 * x))",
        "potentials/test_potentials.py -k 'of_the_formula or one_to_zero'",
    ),
    Mutant(
        "Stillinger-Weber counts a pair of bonds with itself",
        "potentials/manybody/stillinger_weber.py",
        "* terms) - jnp.sum(alone)",
        "* terms)",
        "potentials/test_potentials.py -k stillinger_weber",
    ),
    Mutant(
        "Tersoff's bond order is of the wrong side",
        "potentials/manybody/tersoff.py",
        "zeta = jnp.sum(jnp.where(others, weight, 0.0), axis=1)",
        "zeta = jnp.sum(jnp.where(others, weight, 0.0), axis=0)",
        "potentials/test_tersoff.py -x",
    ),
    Mutant(
        "Tersoff's exponent does not stop growing",
        "potentials/manybody/tersoff.py",
        "jnp.where(self._cubes(i, row, column), lag * lag * lag, lag)",
        "lag",
        "potentials/test_tersoff.py -x",
    ),
    Mutant(
        "an embedding energy is constant beyond its table",
        "potentials/metals/eam.py",
        " + jnp.maximum(x - last, 0.0) * slopes[i.code, last]",
        "",
        "potentials/test_eam.py -k beyond",
    ),
    Mutant(
        "tables of pairs go on beyond their end",
        "potentials/metals/eam.py",
        "jnp.minimum(x - place, 1.0)",
        "x - place",
        "potentials/test_eam.py -k beyond",
    ),
    Mutant(
        "LAMMPS's splines have other slopes",
        "potentials/metals/eam.py",
        "(f[:-4] - f[4:] + 8.0 * (f[3:-1] - f[1:-3])) / 12.0",
        "0.5 * (f[3:-1] - f[1:-3])",
        "potentials/test_eam.py -k 'lammps_interpolation and Cu_mishin'",
    ),
    Mutant(
        "Ewald forgets what a charge does to itself",
        "potentials/electrostatics/ewald.py",
        "own = -self.alpha / math.sqrt(math.pi) * charges**2",
        "own = 0.0 * charges**2",
        "potentials/test_coulomb.py -x",
    ),
    Mutant(
        "ASE gets stresses in GPa",
        "potentials/ase_calculator.py",
        "np.asarray(self.potential.stress(system), dtype=float) / EV_PER_CUBIC_ANGSTROM",
        "np.asarray(self.potential.stress(system), dtype=float)",
        "potentials/test_calculator.py -k stress",
    ),
    # Observables
    Mutant(
        "elastic constants are those of clamped ions",
        "observables/host_strain_response.py",
        "            moved[:, acting] = -scipy.linalg.cho_solve(factor, mixed.T).T",
        "            pass",
        "observables/test_elastic.py -k silicon_has",
    ),
    Mutant(
        "derivatives of elastic constants forget that bonds stretch",
        "observables/host_strain_response.py",
        "change = StoredState(displacement, cell_change, by_atoms, stiffness)",
        "change = StoredState(0.0 * displacement, 0.0 * cell_change, by_atoms, stiffness)",
        "derivatives/test_by_values.py -k stressed",
    ),
    Mutant(
        "derivatives of elastic constants forget what atoms' slopes do",
        "mechanics/strain_algebra.py",
        "        by_atoms = by_atoms + onto_atoms(answer, listed)",
        "        pass",
        "mechanics/test_assembly.py -k along_everything",
    ),
    Mutant(
        "an energy's derivative forgets its cell",
        "derivatives/known_energies.py",
        "return change if strain is None else change + np.vdot(self.slopes.deformation, strain)",
        "return change",
        "derivatives/test_by_values.py -k 'pairs or sites'",
    ),
    Mutant(
        "other atoms in the same places have the energy of the first",
        "derivatives/known_energies.py",
        "arguments = with_fields(system, neighbors=None), potential",
        "arguments = system.positions, potential",
        "derivatives/test_by_values.py -k other_atoms",
    ),
    Mutant(
        "a stress's derivative forgets that the volume changes",
        "derivatives/known_energies.py",
        "- np.trace(strain) * _symmetric(self.slopes.deformation)",
        "",
        "derivatives/test_by_values.py -k volume",
    ),
    Mutant(
        "atoms that fill up a structure take charge",
        "mechanics/programs.py",
        "if not is_local(potential):",
        "if False:",
        "mechanics/test_programs.py -k left_alone",
    ),
    Mutant(
        "L-BFGS on the host learns from curvatures that are not positive",
        "solvers/host_lbfgs.py",
        "memory.append((move, change) if is_curved else None)",
        "memory.append((move, change))",
        "solvers/test_host_lbfgs.py",
    ),
    Mutant(
        "stress has no part in the elastic constants",
        "observables/strain_response.py",
        "return curvature + 0.5 * turning - jnp.outer(stress, jnp.trace(strains, axis1=1, axis2=2))",
        "return curvature",
        "observables/test_elastic.py -k 'birch or matscipy_under'",
    ),
    Mutant(
        "Reuss's shear modulus is Voigt's",
        "observables/moduli.py",
        "return 0.5 * _deviators(dim) / (_trace(S, dim, 0.5) - jnp.sum(S[:dim, :dim]) / dim)",
        "return voigt(jnp.linalg.inv(S), dim)",
        "observables/test_elastic.py -k three_constants",
    ),
    Mutant(
        "Grüneisen parameters in a plane are those of a volume",
        "observables/phonons.py",
        "gamma = -slope / (2.0 * system.dim *",
        "gamma = -slope / (2.0 * 3 *",
        "observables/test_acoustic_bands.py -k plane",
    ),
    Mutant(
        "Grüneisen parameters forget that atoms relax",
        "observables/phonons.py",
        "change(system.positions + _response_to_expansion(system, potential, constants), system.cell)",
        "change(system.positions, system.cell)",
        "observables/test_phonons.py -k gruneisen",
    ),
    Mutant(
        "the heat capacity has one x too few",
        "observables/thermodynamics.py",
        "units.kB * x**2 * jnp.exp(-x)",
        "units.kB * x * jnp.exp(-x)",
        "observables/test_phonons.py -k 'thermodynamics_agree or derivatives_of_the_free'",
    ),
    Mutant(
        "dihedrals turn the other way",
        "observables/geometry.py",
        "jnp.rad2deg(jnp.arctan2(sine,",
        "jnp.rad2deg(jnp.arctan2(-sine,",
        "observables/test_observables.py -k clockwise",
    ),
    Mutant(
        "the dipole tensor has the wrong sign",
        "observables/defects.py",
        "-defect.volume * ",
        "defect.volume * ",
        "observables/test_defects.py -k dipole",
    ),
    Mutant(
        "an enthalpy has its pressure in eV/Å³",
        "observables/energetics.py",
        "self.pressure / stress_unit(system.dim) * system.volume",
        "self.pressure * system.volume",
        "observables/test_observables.py -k enthalpy",
    ),
    # Files
    Mutant(
        "files of other programs are read as ours",
        "files/state_files.py",
        'if creator != "mdsens":',
        "if creator is None:",
        "files/test_store.py -k another_program",
    ),
    Mutant(
        "a loaded saddle point is a minimum",
        "files/state_files.py",
        'index=int(state.get("index", 0)),',
        "index=0,",
        "files/test_store.py -k saddle_point",
    ),
    Mutant(
        "constraints that are not met are loaded",
        "files/stored_constraints.py",
        "if values.size != bound.count or",
        "if False and values.size != bound.count or False and",
        "files/test_store.py -k constraints_that",
    ),
    Mutant(
        "an input file that changed is taken for the old one",
        "cli/rerun.py",
        "if not here.is_file() or recipes.digest(here) != digest:",
        "if not here.is_file():",
        "cli/test_rerun.py -k another_now",
    ),
    Mutant(
        "other numbers are within the tolerance",
        "cli/rerun.py",
        "off = [row for row in rows if not row.error <= tolerance]",
        "off = []",
        "cli/test_rerun.py -k another_number",
    ),
    # Studies
    Mutant(
        "intervals of global indices are twice as wide",
        "studies/methods/global_indices.py",
        "split(np.array([np.asarray(one[key], dtype=float) for one in each]), shapes)",
        'split((2.0 if "conf" in key else 1.0) * np.array([np.asarray(one[key], dtype=float) for one in each]), shapes)',
        "studies/test_indices.py -k salib",
    ),
    Mutant(
        "sampling errors are twice as large",
        "studies/methods/uncertainty.py",
        "(4.0 * len(rows))",
        "(1.0 * len(rows))",
        "studies/test_indices.py -k sampling",
    ),
    Mutant(
        "correlations of parameters do not count",
        "studies/methods/parameters.py",
        "return widths[:, None] * directions * np.sqrt(np.maximum(sizes, 0.0))",
        "return np.diag(widths)",
        "studies/test_studies.py studies/test_study_verdicts.py -k 'covariance or ensemble'",
    ),
)


class Tree:
    """A copy of what the tests need, in which one place at a time is changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("mdsens", "tests", "data", "scripts", "docs", "notebooks"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, folder)

    def run(self, tests: str, mutant: Mutant | None = None) -> tuple[bool, str]:
        """`(whether all passed, the first that failed)`, with a fault or without."""
        if mutant is not None:
            path = self.folder / "mdsens" / mutant.file
            whole = path.read_text()
            path.write_text(changed(mutant, whole))
            try:
                return self.run(tests)
            finally:
                path.write_text(whole)
        files, _, rest = tests.partition(" -")
        words = [f"tests/{file}" for file in files.split()] + shlex.split(f"-{rest}" if rest else "")
        options = ["-q", "-x", "-n", "0", "-p", "no:cacheprovider", "--tb", "no", "-m", ""]
        command = [sys.executable, "-m", "pytest", *options, *words]
        cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax"))
        variables = {**os.environ, "PYTHONPATH": str(self.folder), "JAX_COMPILATION_CACHE_DIR": cache}
        try:
            done = subprocess.run(
                command, cwd=self.folder, env=variables, capture_output=True, text=True, timeout=SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return False, "did not end"
        failed = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", done.stdout, re.MULTILINE)
        if done.returncode in (0, 1) and (failed or not done.returncode):
            return done.returncode == 0, failed[1] if failed else ""
        raise SystemExit(f"pytest {' '.join(words)} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def changed(mutant: Mutant, text: str) -> str:
    """The text of the file with the fault in it.

    Raises:
        SystemExit: the place is not there once.
    """
    if text.count(mutant.old) != 1:
        raise SystemExit(f"{mutant.name}: {mutant.old!r} stands {text.count(mutant.old)} times in mdsens/{mutant.file}.")
    return text.replace(mutant.old, mutant.new)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="mutants whose name or file has these words")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many at a time")
    parser.add_argument("--list", action="store_true", help="only see that each place is there")
    options = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if options.only in mutant.name or options.only in mutant.file]
    for mutant in chosen:
        changed(mutant, (ROOT / "mdsens" / mutant.file).read_text())
    if options.list:
        print(f"{len(chosen)} mutants, each with its place")
        return
    with tempfile.TemporaryDirectory(prefix="mdsens-mutants-") as name, ThreadPoolExecutor(options.jobs) as workers:
        free: queue.Queue[Tree] = queue.Queue()
        for job in range(options.jobs):
            free.put(Tree(Path(name) / str(job)))

        def passed(tests: str, mutant: Mutant | None = None) -> tuple[bool, str]:
            tree = free.get()
            try:
                return tree.run(tests, mutant)
            finally:
                free.put(tree)

        wanted = list(dict.fromkeys(mutant.tests for mutant in chosen))
        for tests, (fine, which) in zip(wanted, workers.map(passed, wanted), strict=True):
            if not fine:
                raise SystemExit(f"{which or tests} fails without any change")
        print(f"{len(wanted)} groups of tests pass without a change", flush=True)
        survivors = []
        verdicts = workers.map(lambda mutant: passed(mutant.tests, mutant), chosen)
        for number, (mutant, (survives, which)) in enumerate(zip(chosen, verdicts, strict=True), start=1):
            print(f"{number:3d} {mutant.name}: {'SURVIVES' if survives else f'seen by {which}'}", flush=True)
            survivors += [mutant.name] if survives else []
    print(f"{len(chosen)} mutants, {len(survivors)} survive" + "".join(f"\n  {name}" for name in survivors))
    sys.exit(bool(survivors))


if __name__ == "__main__":
    main()
