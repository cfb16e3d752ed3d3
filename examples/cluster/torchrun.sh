#!/usr/bin/env bash
# Run the same on every machine. They may come and go between MIN and MAX, and workers may die:
# torchrun starts all of them again, and train.py goes on from its newest checkpoint.
#
#   HOST=node0 MIN=1 MAX=4 PER_MACHINE=8 ./torchrun.sh --folder /shared/run
set -euo pipefail

# By default torchrun of torch 2.13 keeps the address of the first meeting. When a machine comes or goes and another one
# has rank 0, the others wait at the old address for ever. With this, every meeting has its own.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

exec torchrun \
  --nnodes="${MIN:-1}:${MAX:-1}" \
  --nproc-per-node="${PER_MACHINE:-2}" \
  --max-restarts="${RESTARTS:-3}" \
  --rdzv-backend=c10d \
  --rdzv-id="${JOB:-digits}" \
  --rdzv-endpoint="${HOST:-localhost}:${PORT:-29400}" \
  "$(dirname "$0")/train.py" "$@"
