#!/usr/bin/env bash
# Builds the wheel, or takes the file that is given, installs it where no checkout is in sight, imports
# every module of it and runs commands. Other packages are taken from the environment of
# launch/environment.sh.
set -euo pipefail
cd "$(dirname "$0")/.."

requirements="requirements-dev.txt"
source launch/environment.sh

there="$(mktemp -d)"
trap 'rm -rf "$there"' EXIT
find ldm_jax configs -name '*.py' | sed 's,^configs/,ldm_jax/recipes/&,' | sort > "$there/expected"
pip() { "$python" -m pip --disable-pip-version-check --quiet "$@"; }
if [ $# -gt 0 ]; then cp "$1" "$there"; else pip wheel --no-deps --wheel-dir "$there" .; fi
"$python" -m venv --without-pip "$there/environment"
installed="$("$there/environment/bin/python" -c 'import site; print(site.getsitepackages()[0])')"
"$python" -c 'import site; print(*site.getsitepackages(), sep="\n")' > "$installed/beside.pth"
pip --python "$there/environment/bin/python" install --no-deps "$there"/ldm_jax-*.whl

mkdir "$there/empty"
cd "$there/empty"
unset PYTHONPATH
export JAX_PLATFORMS=cpu
diff ../expected <(cd "$installed" && find ldm_jax -name '*.py' | sort)
[ ! -e "$installed/configs" ] || { echo "the wheel takes the name configs" >&2; exit 1; }
../environment/bin/python - <<'PYTHON'
import importlib, pkgutil, sys
import ldm_jax

assert ldm_jax.__file__.startswith(sys.prefix), ldm_jax.__file__
for module in pkgutil.walk_packages(ldm_jax.__path__, "ldm_jax."):
    if module.name != "ldm_jax.__main__":
        importlib.import_module(module.name)
PYTHON
ldm() { ../environment/bin/ldm "$@" > said.txt 2>&1; }
says() { grep -q -e "$1" said.txt || { cat said.txt; exit 1; }; }
../environment/bin/python -m ldm_jax.train --help > said.txt && says --workdir
ldm --help && says '^  train '
ldm train --config=quickstart:first_stage --help && says --workdir
ldm list recipes && says kl_f4
ldm completion bash && bash -n said.txt && says quickstart:first_stage
ldm check_data --config=debug --records=8 && says '8 records read'
if ldm train --config=kl_f3 --workdir=run; then exit 1; else says 'did you mean'; fi
rm said.txt
[ -z "$(ls)" ] || { ls; exit 1; }
echo "== the wheel installs; all of it imports, and ldm runs, without the checkout"
