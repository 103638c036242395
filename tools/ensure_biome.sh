#!/bin/sh
# Installs the pinned formatter and linter of the page's scripts into "$1/biome", "$1" being the virtual environment.
# tools/biome/package-lock.json has its checksums.
set -eu
sh tools/ensure_npm.sh "$1"
PATH="$1/bin:$PATH"
mkdir -p "$1/biome"
cp tools/biome/package.json tools/biome/package-lock.json "$1/biome/"
cd "$1/biome"
npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null
