#!/bin/bash
# Block-ADMM with one batch in flight and with four, a block on each of four nodes.
#
#   sbatch --exclusive benchmarks/block_admm/pipeline.sh [options of benchmarks/block_admm/pipeline.py]
#
#SBATCH --job-name=pipeline
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --time=00:10:00
#SBATCH --output=logs/%x-%j.out
set -euo pipefail
# shellcheck source=slurm/launch.sh
source slurm/launch.sh

run_ranks "$RANKS" python -m benchmarks.block_admm.pipeline "$@"
finish
