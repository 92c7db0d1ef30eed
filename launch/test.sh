#!/usr/bin/env bash
# The linter and the whole test suite, in an environment that it makes if need be.
# Arguments go to pytest: launch/test.sh -m slow -n 0; launch/test.sh tests/engine
set -euo pipefail
cd "$(dirname "$0")/.."

requirements="requirements-dev.txt"
source launch/environment.sh

"$python" -m ruff check .
"$python" -m ruff format --check .
# Two processes, a file of tests to each: what they share is made once a file.
"$python" -m pytest -n 2 --dist loadfile "$@"
