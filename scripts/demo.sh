#!/bin/sh
# The main job on shipped data; arguments go to `mdsens demo`. Installs mdsens into .venv the first time.
set -eu
CDPATH='' cd -- "$(dirname -- "$0")/.."
. scripts/venv.sh
prepare_venv demo .
exec .venv/bin/mdsens demo "$@"
