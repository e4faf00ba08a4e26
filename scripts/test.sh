#!/bin/sh
# The tests; arguments go to pytest. Installs mdsens with its test tools into .venv the first time.
set -eu
CDPATH='' cd -- "$(dirname -- "$0")/.."
. scripts/venv.sh
prepare_venv test ".[test]"
exec .venv/bin/python -m pytest "$@"
