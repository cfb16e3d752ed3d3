#!/usr/bin/env bash
# One process for each slot of MPI. Needs the package mpi4py, built for the MPI whose mpiexec this is.
#
#   MACHINES=2 PROCESSES=8 ./mpi.sh --folder /shared/run
set -euo pipefail

exec "${MPIEXEC:-mpiexec}" -n "${PROCESSES:-2}" ${MPI_OPTIONS:-} \
  python "$(dirname "$0")/train.py" --num-nodes "${MACHINES:-1}" "$@"
