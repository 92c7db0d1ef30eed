# shellcheck shell=bash
# Sourced: makes .venv with requirements.txt (or the file in $requirements) where that is not done yet,
# and sets $python. kind=tpu|cuda adds that plugin; PYTHON chooses the interpreter; LDM_PYTHON uses an
# environment that exists.
requirements="${requirements:-requirements.txt}"
case "${kind:-cpu}" in cpu) plugin=() ;; *) plugin=(".[$kind]") ;; esac
if [ -n "${LDM_PYTHON:-}" ]; then
    python="$LDM_PYTHON"
else
    base="${PYTHON:-python3}"
    "$base" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || {
        echo "ldm_jax needs Python 3.11 to 3.13; $base is $("$base" --version 2>&1). Set PYTHON=..." >&2
        exit 2
    }
    [ -x .venv/bin/python ] || "$base" -m venv .venv
    python=.venv/bin/python
    stamp=".venv/$requirements.sha"
    want="$(cat requirements*.txt | sha256sum)${kind:+ $kind}"
    if [ "$(cat "$stamp" 2>/dev/null)" != "$want" ]; then
        echo "== installing $requirements into .venv"
        "$python" -m pip install --quiet --disable-pip-version-check -r "$requirements" \
            ${plugin[@]+"${plugin[@]}"}
        echo "$want" > "$stamp"
    fi
fi
