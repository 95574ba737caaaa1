#!/usr/bin/env bash
# Places where the notebook must run too, in quick mode, by hand:  bash tests/measure/odd_machines.sh
# Needs the requirements installed. Prints one line a place, and stops at the first that fails.
set -euo pipefail
repository=$(cd "$(dirname "$0")/../.." && pwd)
scratch=$(mktemp -d)
trap 'chmod -R u+w "$scratch"; rm -rf "$scratch"' EXIT
chmod 755 "$scratch"
export GAN_QUICK=1
unset GAN_OUTPUT GAN_DEVICE GAN_SEED

copy() {  # a clean copy of what is committed or about to be
    mkdir -p "$1"
    (cd "$repository" && git ls-files -z --cached --others --exclude-standard |
        while IFS= read -r -d '' file; do [ ! -f "$file" ] || printf '%s\0' "$file"; done |
        tar -c --null -T -) | tar -x -C "$1"
}
place() {  # name, command...
    local name=$1 began=$SECONDS
    shift
    "$@" > "$scratch/log" 2>&1 || { cat "$scratch/log"; echo "FAILED: $name"; exit 1; }
    if grep Traceback "$scratch/log"; then echo "FAILED (said something): $name"; exit 1; fi
    echo "ok, $((SECONDS - began)) s: $name"
}
execute() {
    jupyter execute "$1/HandwrittenNumberGAN.ipynb" --output="$scratch/executed.ipynb"
}

copy "$scratch/plain"
elsewhere() { (cd / && execute "$scratch/plain"); }
place "another working directory" elsewhere
test -s "$scratch/plain/output/quick/scores.json"

copy "$scratch/mit Leerzeichen und Ümläuten"
place "a path with spaces and umlauts" execute "$scratch/mit Leerzeichen und Ümläuten"

in_c_locale() { LC_ALL=C LANG=C execute "$scratch/plain"; }
place "a C locale" in_c_locale

if command -v taskset > /dev/null; then
    place "one core" taskset -c 0 jupyter execute "$scratch/plain/HandwrittenNumberGAN.ipynb" \
        --output="$scratch/executed.ipynb"
fi

dark() {  # pictures stay as they are meant
    mkdir -p "$scratch/mpl"
    printf 'image.origin: lower\nfigure.facecolor: black\n' > "$scratch/mpl/matplotlibrc"
    MPLCONFIGDIR="$scratch/mpl" MPLBACKEND=agg execute "$scratch/plain"
    [ "$(grep -c '"image/png": "' "$scratch/executed.ipynb")" -gt 30 ]
}
place "another backend and style of matplotlib" dark

jupyter nbconvert --to script "$scratch/plain/HandwrittenNumberGAN.ipynb" > /dev/null 2>&1
place "a script in IPython" env -C "$scratch/plain" ipython HandwrittenNumberGAN.py

# Permission bits do not bind root, so root mounts the copy read-only, in a mount namespace that ends
# with the command.
copy "$scratch/readonly"
chmod -R a-w "$scratch/readonly"
mkdir "$scratch/elsewhere"
export GAN_OUTPUT="$scratch/elsewhere/output" IPYTHONDIR="$scratch/elsewhere/ipython"
export MPLCONFIGDIR="$scratch/elsewhere/mpl"
run="jupyter execute '$scratch/readonly/HandwrittenNumberGAN.ipynb'"
run="$run --output='$scratch/elsewhere/executed.ipynb'"
if [ "$(id -u)" = 0 ]; then
    mount="mount --bind '$scratch/readonly' '$scratch/readonly'"
    mount="$mount && mount -o remount,ro,bind '$scratch/readonly'"
    place "a read-only checkout, output elsewhere" \
        unshare -m bash -c "$mount && ! touch '$scratch/readonly/x' && $run"
else
    place "a read-only checkout, output elsewhere" \
        bash -c "! touch '$scratch/readonly/x' && $run"
fi
test -s "$GAN_OUTPUT/quick/scores.json"
