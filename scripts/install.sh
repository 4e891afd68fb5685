#!/usr/bin/env bash
# Make .venv with exactly the versions of requirements.lock, and this checkout in it. Does nothing when that is done.
# PYTHON=... chooses the interpreter (3.11 or 3.12); UV_TORCH_BACKEND=cpu takes the smaller builds of torch.
set -euo pipefail
cd "$(dirname "$0")/.."

UV_VERSION=0.13.8
venv=.venv
stamp=$venv/installed
wanted=$(cat requirements.lock setup.py "$0" | cksum)

fits() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' >/dev/null 2>&1; }

if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && fits "$venv/bin/python"; then
    exit 0
fi

python=
for candidate in "${PYTHON:-python3}" python3.12 python3.11; do
    if fits "$candidate"; then python=$candidate; break; fi
done
if [ -z "$python" ]; then
    echo 'error: Python 3.11 or 3.12 is needed (PYTHON=/path/to/python make install names one).' >&2
    exit 1
fi
# Debian and Ubuntu ship venv without ensurepip until python3-venv is there.
if ! "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
    echo "error: $python cannot make a virtual environment: run 'apt install python3-venv' (as root), then this again." >&2
    exit 1
fi

SECONDS=0
echo "Installing into $venv with $("$python" --version) ..."
if ! fits "$venv/bin/python" || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    rm -rf "$venv"
    "$python" -m venv "$venv"
fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$UV_VERSION"
"$venv/bin/uv" pip install --quiet --python "$venv/bin/python" -r requirements.lock
"$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --no-deps --no-build-isolation -e .
echo "$SECONDS" > "$venv/install-seconds"
echo "$wanted" > "$stamp"
echo "Installed in $SECONDS s."
