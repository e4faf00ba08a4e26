# shellcheck shell=sh
# Sourced by demo.sh and test.sh in the root of the repository. `prepare_venv demo .` makes .venv and installs `.` into
# it, unless that was done for this pyproject.toml in this folder. Needs the network the first time only.

say() {
    printf 'mdsens: %s\n' "$*" >&2
}

die() {
    say "$*"
    exit 1
}

# Sets $python to a Python that is new enough and can make a virtual environment.
find_python() {
    python=
    without_venv=
    for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
        [ -n "$candidate" ] || continue
        if ! "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            [ "$candidate" != "${PYTHON:-}" ] || say "PYTHON=$PYTHON is not a Python 3.11 or newer; looking for another one."
        elif ! "$candidate" -c 'import venv, ensurepip' >/dev/null 2>&1; then
            without_venv=${without_venv:-$candidate}
        else
            python=$candidate
            return
        fi
    done
    if [ -n "$without_venv" ]; then
        die "$without_venv lacks the modules venv and ensurepip; on Debian and Ubuntu install the package python3-venv."
    fi
    die "no Python 3.11 or newer was found; install one, or name one: PYTHON=/path/to/python3 sh $0"
}

# .venv/unfinished lies there from the first step of making .venv to the end of the installation.
venv_is_whole() {
    [ ! -e .venv/unfinished ] &&
        .venv/bin/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

make_venv() {
    find_python
    if [ -e .venv ] || [ -L .venv ]; then
        say ".venv is incomplete or its Python is gone: making it again."
    fi
    rm -rf .venv
    mkdir .venv
    fresh=yes
    : >.venv/unfinished
    say "making .venv with $("$python" --version 2>&1) ($(command -v "$python"))"
    "$python" -m venv .venv >&2 || die "$python could not make a virtual environment; its own message is above."
}

installed_from_here() {
    [ -x .venv/bin/mdsens ] && .venv/bin/python -I -c '
import importlib.util, os, sys
spec = importlib.util.find_spec("mdsens")
sys.exit(spec is None or not os.path.samefile(spec.origin, "mdsens/__init__.py"))' >/dev/null 2>&1
}

# prepare_venv NAME WHAT: WHAT is for pip, NAME (demo or test) for the stamp that says it was installed.
prepare_venv() {
    stamp=.venv/mdsens-$1.stamp
    sum=$(cksum <pyproject.toml)
    fresh=
    venv_is_whole || make_venv
    if [ -e "$stamp" ] && [ "$(cat "$stamp")" = "$sum" ] && installed_from_here; then
        return
    fi
    say "installing mdsens and what it needs into .venv (minutes, the first time)"
    : >.venv/unfinished
    if .venv/bin/python -m pip install --disable-pip-version-check -e "$2" >&2; then
        printf '%s\n' "$sum" >"$stamp"
        printf '%s\n' "$sum" >.venv/mdsens-demo.stamp # the tests' needs include the demo's
        rm .venv/unfinished
        return
    fi
    # pip fails before it touches what is there; only a .venv made just now is not worth keeping.
    [ -n "$fresh" ] || rm .venv/unfinished
    if [ -e "$stamp" ] && installed_from_here; then
        say "pip could not follow the changed pyproject.toml (no network? its message is above); going on with what is installed."
    else
        die "pip could not install what mdsens needs (its message is above); the first time this needs the network."
    fi
}
