#!/usr/bin/env bash
# Writes requirements/clients-*.lock, tests/conformance/node/ and requirements/browser/package-lock.json anew:
# `requirements/lock-clients.sh path/to/uv`. Each client has an environment of its own: they want different
# versions of the same packages.
set -euo pipefail
uv=${1:?usage: lock-clients.sh PATH_OF_UV}
cd "$(dirname "$0")"

lock() {
    local name=$1
    shift
    printf '%s\n' "$@" |
        "$uv" pip compile -q --universal --python-version 3.11 --no-annotate --no-header -o "clients-$name.lock" -
}

lock openai2 "openai>=2,<3"
lock openai3 "openai>=3,<4"
# Without its extra for MCP it fails on every request with tools.
lock litellm "litellm[mcp]>=1.100,<2"
lock langchain "langchain-openai>=1.7,<2"
lock schemathesis "schemathesis>=4.32,<5"

if command -v npm >/dev/null; then
    # Without the registry's address: npm's own settings decide where packages come from.
    for folder in ../tests/conformance/node browser; do
        (cd "$folder" && npm install --package-lock-only --omit-lockfile-registry-resolved --silent)
    done
else
    echo "no npm: tests/conformance/node/ and requirements/browser/package-lock.json stay as they are" >&2
fi
