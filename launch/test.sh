#!/usr/bin/env bash
# The linter and the whole test suite, in an environment that it makes if need be.
# Arguments go to pytest; the wheel is tried without them: launch/test.sh -m slow -n 0
set -euo pipefail
cd "$(dirname "$0")/.."

requirements="requirements-dev.txt"
source launch/environment.sh

"$python" -m ruff check .
"$python" -m ruff format --check .
[ $# -gt 0 ] || LDM_PYTHON="$python" bash launch/wheel.sh
# Two processes, a file of tests to each: what they share is made once a file.
"$python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
