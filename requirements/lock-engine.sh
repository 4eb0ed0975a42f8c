#!/usr/bin/env bash
# Writes requirements/engine-cpu.lock anew: `requirements/lock-engine.sh path/to/uv`.
# The resolver must see a CPU build of torch (UV_EXTRA_INDEX_URL or UV_FIND_LINKS, as PIP_* for pip).
set -euo pipefail
uv=${1:?usage: lock-engine.sh PATH_OF_UV}
cd "$(dirname "$0")/engine-cpu"
{
    echo "# Written by requirements/lock-engine.sh from engine-cpu/pyproject.toml; do not edit."
    # What other kinds of machine would need (CUDA on odd processors, Windows, WebAssembly) is of no use here.
    "$uv" pip compile -q --universal --python-version 3.11 --no-annotate --no-header pyproject.toml |
        grep -v -E "^(cuda-|nvidia-)|sys_platform == '(win32|emscripten)'"
} > ../engine-cpu.lock.new
mv ../engine-cpu.lock.new ../engine-cpu.lock
