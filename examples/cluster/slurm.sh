#!/usr/bin/env bash
#SBATCH --job-name=digits
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
# Ninety seconds before the time is over, the run saves, and is put back into the queue.
#SBATCH --signal=SIGUSR1@90
#
#   sbatch slurm.sh
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")}"
# One task for each process: `--ntasks-per-node` and the GPUs of a node are the same number.
exec srun python train.py --num-nodes "${SLURM_NNODES:?is set by sbatch}" --folder "${FOLDER:-run}" "$@"
