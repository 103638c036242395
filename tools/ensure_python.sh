#!/bin/sh
# Makes sure that "$1" is a Python >= 3.11 that can make virtual environments; says what to install otherwise.
set -eu
python=$1
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "Keepwarm needs Python 3.11 or newer; '$python' is missing or older. Name another: make chat PYTHON=python3.12" >&2
    exit 1
fi
if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    exit 0
fi
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing python$version-venv ..."
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "python$version-venv" >/dev/null
else
    echo "Keepwarm needs Python's venv module. Install it with: sudo apt-get install python$version-venv" >&2
    exit 1
fi
