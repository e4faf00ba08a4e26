"""Studies of a dimer of Lennard-Jones atoms, whose length is 2^(1/6) σ and whose energy is -ε, as files."""

from typer.testing import CliRunner

from mdsens.cli.app import app
from mdsens.studies.input.tasks import read_study
from mdsens.studies.running import execution
from mdsens.studies.storage import collected_file, task_files

DIMER = """
[study]
kind = "sweep"
[study.parameters]
sigma = {sigma}
epsilon = [0.5, 1.0]
[structures.dimer]
builder = "molecule"
arguments = {{ name = "N2" }}
[potential]
name = "LennardJones"
parameters = {{ epsilon = 1.0, sigma = 1.0, cutoff = 6.0, onset = 5.0 }}
[relax]
fmax = 1e-10
[observables.energy]
[observables.distances]
arguments = {{ pairs = [[0, 1]] }}
"""


def dimers(folder, sigma="[1.0, 1.1, 1.2]", name="dimers.toml"):
    path = folder / name
    path.write_text(DIMER.format(sigma=sigma))
    return path


def mdsens(*arguments):
    """The command in this process: `(exit status, what it says)`."""
    done = CliRunner().invoke(app, list(map(str, arguments)))
    return done.exit_code, f"{done.output}{done.exception or ''}"


def numbers(folder):
    """All that the tasks of a folder found, by task and path."""
    found = {}
    for path in (folder / task_files.TASKS).glob("*.h5"):
        outcome = task_files.read_task(path)
        found |= {(outcome.name, key): value for key, value in outcome.record.arrays.items()}
    return found


def same(a, b):
    return a.keys() == b.keys() and all(a[key].tobytes() == b[key].tobytes() for key in a)


OTHERS = {
    "sensitivity": ("", "sigma"),
    "uncertainty": ("std = { sigma = 0.01, epsilon = 0.1 }\nsamples = 10", "10 samples"),
    "calibration": ('wrt = ["sigma"]\nbounds = { sigma = [0.5, 2.0] }\n[targets.distances]\nvalue = [1.2]', "1.0690"),
    "inverse": ("[targets.energy]\nvalue = -2.0\n[targets.distances]\nvalue = [1.2]", "1.0690"),
    "calibration by gradient": (
        'wrt = ["sigma"]\nmethod = "adam"\nlearning_rate = 0.02\nmax_steps = 20\n[targets.distances]\nvalue = [1.2]',
        "not converged: the steps ran out",
    ),
    "continuation": ("parameters = { sigma = 1.1 }\nfirst_step = 0.5\nlargest_step = 0.5", "were reached"),
}


def study(folder, kind):
    settings, _ = OTHERS[kind]
    text = DIMER.format(sigma="[1.0]").replace('kind = "sweep"\n', f'kind = "{kind}"\n{settings}\n')
    text = text.replace("[study.parameters]\nsigma = [1.0]\nepsilon = [0.5, 1.0]\n", "")
    (folder / "study.toml").write_text(text)
    execution.run(read_study(folder / "study.toml"), folder / "out", progress=False)
    collected_file.collect(folder / "out", folder / "all.h5")
    return folder / "all.h5"
