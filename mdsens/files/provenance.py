"""Provenance of a file: versions, machine, time, command."""

import functools
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import h5py
import jax
import numpy as np

from mdsens.common.version import VERSION


def current_provenance() -> dict[str, Any]:
    """Return versions (a dict by package), platform and time, as a result that is made now states them."""
    return {**_machine(), "created": time.strftime("%Y-%m-%dT%H:%M:%S%z")}


@functools.cache
def _machine() -> dict[str, Any]:
    import ase
    import jaxlib
    import scipy

    versions = {module.__name__: module.__version__ for module in (jax, jaxlib, np, scipy, ase, h5py, eqx)}
    return {"versions": {"mdsens": VERSION, **versions, "python": platform.python_version()}, "platform": platform.platform()}


def write_provenance(file: h5py.File) -> None:
    """Write the group `/provenance`: its attributes are versions (JSON), platform, created, devices, command."""
    now = current_provenance()
    devices = ", ".join(str(device) for device in jax.devices())
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    versions = json.dumps(now["versions"])
    file.create_group("provenance").attrs.update({**now, "versions": versions, "devices": devices, "command": command})
