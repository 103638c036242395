#!/bin/sh
# Puts the script that draws the documentation's diagrams at "$1/mermaid.min.js", "$1" being the virtual environment, so
# that the site asks no other site for it.
set -eu
version=11.12.0
checksum=93492e4d609be83653a41c435f4cbd7e74419f7fa6b4fc90a8c983195f64af82
sh tools/ensure_npm.sh "$1"
PATH="$1/bin:$PATH"
cd "$1"
npm pack --silent "mermaid@$version" >/dev/null
echo "$checksum  mermaid-$version.tgz" | sha256sum --check --quiet
tar -xzf "mermaid-$version.tgz" --strip-components=2 package/dist/mermaid.min.js
rm "mermaid-$version.tgz"
