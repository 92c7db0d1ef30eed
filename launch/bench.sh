#!/usr/bin/env bash
# The published architectures on one accelerator, beside diffusers where it has them.
#   bash launch/bench.sh [FOLDER for the files]
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/bench}
python=${LDM_PYTHON:-python}
mkdir -p "$out"

bench() { # name, config, batch, further flags
    local name=$1 config=$2 batch=$3
    shift 3
    echo "== $name"
    "$python" -m ldm_jax.bench --config="configs/$config.py" --batch_size="$batch" \
        --json="$out/$name.json" --repeats=3 "$@" || echo "$name failed"
}

bench celebahq ldm_celebahq 128 --parts=train,sample --steps=50 --against=diffusers
# The same step by other kernels: what measures faster may become the default.
bench norms ldm_celebahq 128 --parts=train --config.model.norm_kernel=pallas
bench attention ldm_celebahq 128 --parts=train --config.model.attention_kernel=auto
bench convolutions ldm_celebahq 128 --parts=convolutions
bench churches ldm_lsun_churches 256 --parts=train,sample --steps=50
bench imagenet ldm_imagenet_f4 128 --parts=train --against=diffusers
bench sd_v1 sd_v1 32 --parts=train --against=diffusers
