#!/bin/bash
# Training with every exchange: to a test accuracy, or so many steps, one rank on each of four nodes.
#
#   sbatch --exclusive benchmarks/training.sh train --link 100mbit ring "vote, Signum"
#   sbatch --exclusive benchmarks/training.sh cost --link 100mbit
#
#SBATCH --job-name=training
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --time=00:30:00
#SBATCH --output=logs/%x-%j.out
set -euo pipefail
# shellcheck source=slurm/launch.sh
source slurm/launch.sh

run_ranks "$RANKS" python benchmarks/training.py "$@"
finish
