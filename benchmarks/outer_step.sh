#!/bin/bash
# An outer step of DiLoCo, ours beside torchft's, one rank on each of four nodes.
#
#   TORCHFT=FOLDER sbatch --exclusive benchmarks/outer_step.sh --link 1mbit       FOLDER: of pip install torchft --target
#
#SBATCH --job-name=outer_step
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --time=00:10:00
#SBATCH --output=logs/%x-%j.out
set -euo pipefail
# shellcheck source=slurm/launch.sh
source slurm/launch.sh

export PYTHONPATH=${PYTHONPATH:-}:${TORCHFT:-} GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-e0}
run_ranks "$RANKS" python benchmarks/outer_step.py "$@"
finish
