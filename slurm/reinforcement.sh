#!/bin/bash
# Train an agent with several seeds: one run a task of the array, whose number is the seed. In each, the first rank learns
# and the others collect.
#
#   sbatch slurm/reinforcement.sh [JOB.toml] [options of hpcopt train]     (default: jobs/hopper.toml)
#   python -m hpcopt.report runs/hopper-seed*                              returns of all seeds, with intervals
#
# Submit from the folder that slurm/ stands in; what to edit, and how preemption works, is as in slurm/train.sh.
#
#SBATCH --job-name=reinforcement
#SBATCH --array=0-4
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=1
#SBATCH --time=24:00:00
##SBATCH --account=ACCOUNT
##SBATCH --partition=PARTITION
##SBATCH --gpus-per-node=1
#SBATCH --output=logs/%x-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
set -euo pipefail
# shellcheck source=slurm/launch.sh
source slurm/launch.sh

take_job jobs/hopper.toml "$@"
[[ -r $JOB ]] || refuse "there is no $JOB"
SEED=${SLURM_ARRAY_TASK_ID:-0}
RUN_DIR=${RUN_DIR:-runs/$(basename "$JOB" .toml)-seed$SEED}
COLLECTORS=$((RANKS > 1 ? RANKS - 1 : 1))

run_ranks "$RANKS" python -m hpcopt.train "$JOB" --run-dir "$RUN_DIR" --set run.seed="$SEED" \
    --set workload.environments="$COLLECTORS" --set workload.batch="$((2 * COLLECTORS))" --set solver.updates=2 "${OPTIONS[@]}"
finish
