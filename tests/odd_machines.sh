#!/usr/bin/env bash
# Places where the notebook must run too, in quick mode, by hand:  bash tests/odd_machines.sh
# Needs the requirements installed; the read-only checkout needs root or a user without write permission. Prints one line
# a place, and stops at the first that fails.
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
scratch=$(mktemp -d)
trap 'chmod -R u+w "$scratch"; rm -rf "$scratch"' EXIT
chmod 755 "$scratch"
export GAN_QUICK=1 PYTHONWARNINGS=ignore
unset GAN_OUTPUT GAN_DEVICE GAN_PRECISION

copy() {  # a clean copy of what is committed or about to be
    mkdir -p "$1"
    (cd "$repository" && git ls-files -z --cached --others --exclude-standard | tar -c --null -T -) | tar -x -C "$1"
}
place() {  # name, command...
    local name=$1 began=$SECONDS
    shift
    "$@" > "$scratch/log" 2>&1 || { cat "$scratch/log"; echo "FAILED: $name"; exit 1; }
    if grep -E "Warning|Traceback" "$scratch/log"; then echo "FAILED (said something): $name"; exit 1; fi
    echo "ok, $((SECONDS - began)) s: $name"
}
execute() { jupyter execute "$1/HandwrittenNumberGAN.ipynb" --output="$scratch/executed.ipynb"; }

copy "$scratch/plain"
place "another working directory" bash -c "cd / && jupyter execute '$scratch/plain/HandwrittenNumberGAN.ipynb' --output='$scratch/x.ipynb'"
test -s "$scratch/plain/output/quick/scores.json"

copy "$scratch/mit Leerzeichen und Ümläuten"
place "a path with spaces and umlauts" execute "$scratch/mit Leerzeichen und Ümläuten"

place "a C locale" env LC_ALL=C LANG=C PYTHONUTF8=0 jupyter execute "$scratch/plain/HandwrittenNumberGAN.ipynb" --output="$scratch/x.ipynb"

if command -v taskset > /dev/null; then
    place "one core" taskset -c 0 jupyter execute "$scratch/plain/HandwrittenNumberGAN.ipynb" --output="$scratch/x.ipynb"
fi

jupyter nbconvert --to script "$scratch/plain/HandwrittenNumberGAN.ipynb" > /dev/null 2>&1
place "a plain Python script" env -C "$scratch/plain" MPLBACKEND=agg python HandwrittenNumberGAN.py

copy "$scratch/readonly"
chmod -R a-w,a+rX "$scratch/readonly"
mkdir -m 777 "$scratch/elsewhere"
other=()
if [ "$(id -u)" = 0 ]; then other=(setpriv --reuid=65534 --regid=65534 --clear-groups); fi
place "a read-only checkout, output elsewhere" env HOME="$scratch/elsewhere" GAN_OUTPUT="$scratch/elsewhere/output" \
    MPLCONFIGDIR="$scratch/elsewhere/mpl" "${other[@]}" \
    jupyter execute "$scratch/readonly/HandwrittenNumberGAN.ipynb" --output="$scratch/elsewhere/x.ipynb"
test -s "$scratch/elsewhere/output/quick/scores.json"
test -z "$(find "$scratch/readonly" -newer "$scratch/elsewhere" -type f)"
