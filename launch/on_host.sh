#!/usr/bin/env bash
# On a host of a job, in the code that was shipped there: the environment, then the command.
# on_host.sh cpu|tpu|cuda ARGUMENTS OF launch.start
set -euo pipefail
cd "$(dirname "$0")/.."
kind="$1"
shift

source launch/environment.sh
if [ "${SKYPILOT_NUM_NODES:-1}" -gt 1 ]; then
    export JAX_NUM_PROCESSES="$SKYPILOT_NUM_NODES" JAX_PROCESS_ID="$SKYPILOT_NODE_RANK"
    export JAX_COORDINATOR_ADDRESS="${SKYPILOT_NODE_IPS%%$'\n'*}:${LDM_PORT:-8476}"
fi
exec "$python" -m launch.start launch.json "$@"
