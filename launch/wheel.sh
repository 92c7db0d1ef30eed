#!/usr/bin/env bash
# Builds the wheel, installs it where no checkout is in sight, imports every module of it and runs a
# command. Other packages are taken from the environment of launch/environment.sh.
set -euo pipefail
cd "$(dirname "$0")/.."

requirements="requirements-dev.txt"
source launch/environment.sh

there="$(mktemp -d)"
trap 'rm -rf "$there"' EXIT
mkdir "$there/source"
cp -r ldm_jax pyproject.toml README.md "$there/source" # building writes beside what it builds
(cd ldm_jax && find . -name '*.py' | sort) > "$there/expected"
pip() { "$python" -m pip --disable-pip-version-check --quiet "$@"; }
pip wheel --no-deps --wheel-dir "$there" "$there/source"
"$python" -m venv --without-pip "$there/environment"
installed="$("$there/environment/bin/python" -c 'import site; print(site.getsitepackages()[0])')"
"$python" -c 'import site; print(*site.getsitepackages(), sep="\n")' > "$installed/beside.pth"
pip --python "$there/environment/bin/python" install --no-deps "$there"/ldm_jax-*.whl

cd "$there"
unset PYTHONPATH
export JAX_PLATFORMS=cpu
diff expected <(cd "$installed/ldm_jax" && find . -name '*.py' | sort)
environment/bin/python - <<'PYTHON'
import importlib, pkgutil, sys
import ldm_jax

assert ldm_jax.__file__.startswith(sys.prefix), ldm_jax.__file__
for module in pkgutil.walk_packages(ldm_jax.__path__, "ldm_jax."):
    importlib.import_module(module.name)
PYTHON
environment/bin/python -m ldm_jax.train --help > help.txt
grep -q -- --workdir help.txt
echo "== the wheel installs, and all of it imports without the checkout"
