#!/bin/sh
# The tests; arguments go to pytest. Installs mdsens with its test tools into .venv the first time.
#   sh scripts/test.sh          what runs before a change goes in
#   sh scripts/test.sh --slow   the rest: longer checks of physics, the scripts, the long pages of the site
set -eu
CDPATH='' cd -- "$(dirname -- "$0")/.."
. scripts/venv.sh
prepare_venv test ".[test]"
if [ "${1:-}" = --slow ]; then
    shift
    set -- -m slow --dist load "$@"
fi
exec .venv/bin/python -m pytest "$@"
