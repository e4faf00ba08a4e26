"""Studies on a cluster: a real one of Dask, with two worker processes, one of which is killed while it works."""

import os
import signal
import sys
import threading
import time

import pytest
from study_files import dimers, numbers, same

import mdsens as ms
from mdsens.studies.input import tasks
from mdsens.studies.running import dask_cluster, execution
from mdsens.studies.storage import task_files

distributed = pytest.importorskip("distributed")

SOME = "{ start = 0.9, stop = 1.1, points = 15 }"


@pytest.fixture(scope="module")
def workers():
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as running:
        yield running


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serial")
    study = tasks.read_study(dimers(folder, SOME))
    execution.run(study, folder / "out", progress=False)
    return study, numbers(folder / "out")


def kill_one(address, folder, killed):
    """SIGKILL for a worker as soon as there is a result."""
    with distributed.Client(address, set_as_default=False) as client:
        pids = client.run(os.getpid)
        end = time.monotonic() + 60.0
        while not list((folder / "tasks").glob("*.h5")) and time.monotonic() < end:
            time.sleep(0.002)
        busy = next((at for at, keys in client.processing().items() if keys), next(iter(pids)))
        os.kill(pids[busy], signal.SIGKILL)
        killed.append(pids[busy])


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_worker_that_is_killed_loses_nothing_and_changes_nothing(workers, serial, tmp_path):
    study, alone = serial
    killed = []
    killer = threading.Thread(target=kill_one, args=(workers.scheduler_address, tmp_path / "out", killed), daemon=True)
    killer.start()
    done = execution.run(study, tmp_path / "out", scheduler=workers.scheduler_address, progress=False)
    killer.join()
    assert killed and done.done == done.total == len(study.tasks) and not done.failed
    assert same(numbers(tmp_path / "out"), alone)
    with distributed.Client(workers.scheduler_address, set_as_default=False) as client:
        pids, bounds = client.run(os.getpid), client.run(lambda: [os.environ[name] for name in dask_cluster.THREAD_VARIABLES])
        assert set(pids.values()).isdisjoint(killed) and all(bound == ["1"] * 3 for bound in bounds.values())


def test_failed_tasks_are_recorded_and_the_rest_goes_on(workers, tmp_path):
    study = tasks.read_study(dimers(tmp_path, "[1.0, 1e60]"))
    done = execution.run(study, tmp_path / "out", scheduler=workers.scheduler_address, progress=False)
    assert done.done == 4 and sorted(label for label, _ in done.failed) == [
        "dimer sigma=1e+60 epsilon=0.5",
        "dimer sigma=1e+60 epsilon=1",
    ]
    again = execution.run(study, tmp_path / "out", scheduler=workers.scheduler_address, progress=False)
    assert again.done == 0 and again.failed == done.failed
    assert all(task_files.read_task(path).provenance["versions"]["mdsens"] == ms.__version__ for path in tmp_path.rglob("*.h5"))


def test_work_that_takes_every_worker_down_is_given_up(workers):
    """Dask gives up what killed four workers, one after the other."""
    found = list(dask_cluster.spread(os._exit, [9], workers.scheduler_address))
    assert found[0][:2] == (9, None) and "its worker was lost" in found[0][2]


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(dask_cluster, "CONNECTION_TIMEOUT", 1.0)
    study = tasks.read_study(dimers(tmp_path))
    with pytest.raises(ms.InputError, match=r"No Dask scheduler answers at 'tcp://127.0.0.1:9'.*dask scheduler"):
        execution.run(study, tmp_path / "out", scheduler="tcp://127.0.0.1:9", progress=False)
    with pytest.raises(ms.InputError, match="workers of its own"):
        execution.run(study, tmp_path / "out", scheduler="tcp://127.0.0.1:9", workers=2, progress=False)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ms.InputError, match=r"pip install 'mdsens\[dask\]'"):
        execution.run(study, tmp_path / "out", scheduler="tcp://127.0.0.1:9", progress=False)
