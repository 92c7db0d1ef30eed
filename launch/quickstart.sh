#!/usr/bin/env bash
# From nothing to pictures: environment, first stage, latent diffusion, samples, evaluation.
# Run again, it goes on from what is there. Eight to twelve minutes on two CPU cores after the install.
set -euo pipefail
cd "$(dirname "$0")/.."

out="${1:-runs/quickstart}"
source launch/environment.sh
begin=$(date +%s)

echo "== 1/4 first stage (KL, f=4): $out/first_stage"
"$python" -m ldm_jax.train --config=configs/quickstart.py:first_stage --workdir="$out/first_stage"

echo "== 2/4 latent diffusion, class-conditional: $out/ldm"
"$python" -m ldm_jax.train --config=configs/quickstart.py:ldm --workdir="$out/ldm" \
    --config.first_stage="$out/first_stage"

echo "== 3/4 samples: $out/samples"
"$python" -m ldm_jax.sample --run="$out/ldm" --out="$out/samples" --num=256 --batch_size=64

echo "== 4/4 evaluation"
"$python" -m ldm_jax.evaluate --run="$out/first_stage"
"$python" -m ldm_jax.evaluate --samples="$out/samples"

"$python" -m ldm_jax.evaluation.quickstart "$out" "$(($(date +%s) - begin))"
