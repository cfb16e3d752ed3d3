#!/usr/bin/env bash
# One process for each slot of MPI. Needs the package mpi4py, built for the MPI whose mpiexec this is.
#
#   MACHINES=2 PROCESSES=8 MPI_OPTIONS="--hostfile hosts" ./mpi.sh --folder /shared/run
set -euo pipefail

# shellcheck disable=SC2086  # options are words of their own
exec "${MPIEXEC:-mpiexec}" -n "${PROCESSES:-2}" ${MPI_OPTIONS:-} \
  python "$(dirname "$0")/train.py" --num-nodes "${MACHINES:-1}" "$@"
