#!/usr/bin/env bash
# The batch script of launch.slurm, submitted with the shipped code as its working directory.
# slurm_job.sh cpu|cuda ARGUMENTS OF launch.start; LDM_PYTHON names an environment that exists.
set -euo pipefail
kind="$1"
shift

source launch/environment.sh
code=0
srun --kill-on-bad-exit=1 "$python" -m launch.start launch.json "$@" || code=$?
# 42 is "restart me"; above 128 a signal ended a process, which says nothing of the job.
if [ "$code" -eq 42 ] || [ "$code" -gt 128 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
