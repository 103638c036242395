#!/bin/sh
# A C compiler for tests: what it has compiled from the same sources with the same flags it copies from
# $KEPT_LIBRARIES. Each test has a cache directory of its own, and compiling takes seven seconds.
real=$(command -v gcc || command -v cc) || exit 127
for argument; do
    case $previous in -o) target=$argument ;; esac
    case $argument in
    *.c) source=$argument ;;
    *) [ "$argument" = -o ] || [ "$previous" = -o ] || flags="$flags $argument" ;;
    esac
    previous=$argument
done
kept=$KEPT_LIBRARIES/$({ echo "$flags"; cat "${source%/*}"/*.[ch]; } | sha256sum | cut -c 1-32).so
if [ ! -f "$kept" ]; then
    "$real" "$@" || exit
    mkdir -p "$KEPT_LIBRARIES" && cp "$target" "$kept.$$" && mv "$kept.$$" "$kept"
fi
cp "$kept" "$target"
