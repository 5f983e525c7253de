#!/usr/bin/env bash
# Writes the locks anew from pyproject.toml: `make lock`. Needs uv.
set -eu
cd "$(dirname "$0")/.."
without_torch=$(mktemp)
trap 'rm -f "$without_torch"' EXIT
echo "torch ; sys_platform == 'no-such-platform'" > "$without_torch"
export UV_CUSTOM_COMPILE_COMMAND="make lock"
compile() { uv pip compile --quiet --universal --python-version 3.11 "$@"; }
compile pyproject.toml requirements/torch-needs.in --extra train --extra deepspeed --extra serve \
    --extra orchestration --extra notebook --extra evaluation --extra dev \
    --override "$without_torch" --output-file requirements/test.lock
compile pyproject.toml --constraint requirements/test.lock --output-file requirements/build.lock
