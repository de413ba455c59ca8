#!/bin/bash
# Our collectives beside their peers, one rank on each of four nodes.
#
#   sbatch --exclusive benchmarks/collectives.sh [options of benchmarks/collectives.py]
#
#SBATCH --job-name=collectives
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --time=00:05:00
#SBATCH --output=logs/%x-%j.out
set -euo pipefail
# shellcheck source=slurm/launch.sh
source slurm/launch.sh

run_ranks "$RANKS" python benchmarks/collectives.py "$@"
finish
