#!/bin/bash
# Train by stochastic Block-ADMM.
#
#   sbatch slurm/block_admm.sh [JOB.toml] [options of hpcopt train]     (default: jobs/block_admm.toml)
#
# Submit from the folder that slurm/ stands in; what to edit, and how preemption works, is as in slurm/train.sh.
#
#SBATCH --job-name=block_admm
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --time=01:00:00
##SBATCH --account=ACCOUNT
##SBATCH --partition=PARTITION
##SBATCH --gpus-per-node=1
#SBATCH --output=logs/%x-%j.out
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
set -euo pipefail
# shellcheck source=slurm/launch.sh
source slurm/launch.sh

take_job jobs/block_admm.toml "$@"
[[ -r $JOB ]] || refuse "there is no $JOB"
RUN_DIR=${RUN_DIR:-runs/$(basename "$JOB" .toml)-$SLURM_JOB_ID}

run_ranks "$RANKS" python -m hpcopt.train "$JOB" --run-dir "$RUN_DIR" "${OPTIONS[@]}"
finish
