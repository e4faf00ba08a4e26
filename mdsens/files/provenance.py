"""What made a file: versions, machine, time, command."""

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


def made_with() -> dict[str, Any]:
    """Versions, platform and time, for a result's provenance."""
    return {**_machine(), "created": time.strftime("%Y-%m-%dT%H:%M:%S%z")}


@functools.cache
def _machine() -> dict[str, Any]:
    import ase
    import jaxlib
    import scipy

    versions = {module.__name__: module.__version__ for module in (jax, jaxlib, np, scipy, ase, h5py, eqx)}
    return {"versions": {"mdsens": VERSION, **versions, "python": platform.python_version()}, "platform": platform.platform()}


def write_provenance(file: Any) -> None:
    made = made_with()
    devices = ", ".join(str(device) for device in jax.devices())
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    more = {"versions": json.dumps(made["versions"]), "devices": devices, "command": command}
    file.create_group("provenance").attrs.update({**made, **more})
