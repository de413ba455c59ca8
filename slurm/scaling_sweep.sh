#!/bin/bash
# A scaling study: a job array with one task for each number of nodes and each seed, one run directory a task.
#
#   sbatch slurm/scaling_sweep.sh JOB.toml [options of hpcopt train]
#   NODES="1 2 4 8 16" SEEDS="0 1 2 3" sbatch -N 16 --array=0-19%2 slurm/scaling_sweep.sh JOB.toml
#   python -m hpcopt.report runs/sweep-<job id>/*
#
# Strong scaling: the ranks share the job's batch. Weak scaling: BATCH_PER_RANK=64 makes the batch grow with them.
# Every task is given the nodes of the largest point; those that a smaller one leaves idle are paid for all the same.
# Where that matters, submit an array for each size, into one folder:
#   for n in 1 2 4 8; do SWEEP=mine NODES=$n sbatch -N $n --array=0-2 slurm/scaling_sweep.sh JOB.toml; done
#
#SBATCH --job-name=sweep
#SBATCH --array=0-8
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --time=01:00:00
##SBATCH --account=ACCOUNT
##SBATCH --partition=PARTITION
##SBATCH --gpus-per-node=1
##SBATCH --exclusive
#SBATCH --output=logs/%x-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
set -euo pipefail
# shellcheck source=slurm/launch.sh
source slurm/launch.sh

(($#)) || refuse "usage: sbatch slurm/scaling_sweep.sh JOB.toml [options of hpcopt train]"
JOB=$1
shift
read -ra nodes <<<"${NODES:-1 2 4}"
read -ra seeds <<<"${SEEDS:-0 1 2}"
whole NODES "${nodes[@]}"
whole SEEDS "${seeds[@]}"
points=$((${#nodes[@]} * ${#seeds[@]}))
if [[ ${SLURM_ARRAY_TASK_COUNT:-none} != "$points" || $SLURM_ARRAY_TASK_ID -ge $points ]]; then
    refuse "${#nodes[@]} sizes and ${#seeds[@]} seeds: --array=0-$((points - 1))"
fi

n=${nodes[SLURM_ARRAY_TASK_ID / ${#seeds[@]}]}
seed=${seeds[SLURM_ARRAY_TASK_ID % ${#seeds[@]}]}
((n <= nodes_given)) || refuse "a point of $n nodes does not fit into $nodes_given: sbatch -N $n"
[[ -n $RANKS_PER_NODE ]] || refuse "nodes have different numbers of ranks, $SLURM_TASKS_PER_NODE: give --ntasks-per-node"
ranks=$((n * RANKS_PER_NODE))
weak=()
if [[ -n ${BATCH_PER_RANK:-} ]]; then
    whole BATCH_PER_RANK "$BATCH_PER_RANK"
    weak=(--set "workload.batch=$((BATCH_PER_RANK * ranks))")
fi

run_ranks "$ranks" python -m hpcopt.train "$JOB" --run-dir "runs/${SWEEP:-sweep-$SLURM_ARRAY_JOB_ID}/nodes$n-seed$seed" \
    --set "run.seed=$seed" "${weak[@]}" "$@"
finish
