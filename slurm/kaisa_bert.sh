#!/bin/bash
# Pretrain BERT with KAISA: phase 1 on short sequences, then phase 2 on long ones, a second job that waits for the first
# and begins with its weights.
#
#   sbatch slurm/kaisa_bert.sh [JOB.toml] [options of hpcopt train]     (default: jobs/kaisa_bert.toml)
#   PHASE=2 PHASE1_DIR=runs/... sbatch slurm/kaisa_bert.sh              phase 2 alone
#
# The job of phase 2 is JOB_phase2.toml. A job that reads data/bert gets it made, by all ranks, if it is not there.
# Submit from the folder that slurm/ stands in; what to edit, and how preemption works, is as in slurm/train.sh.
#
#SBATCH --job-name=kaisa_bert
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --time=04:00:00
##SBATCH --account=ACCOUNT
##SBATCH --partition=PARTITION
##SBATCH --gpus-per-node=1
#SBATCH --output=logs/%x-%j.out
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
set -euo pipefail
# shellcheck source=slurm/launch.sh
source slurm/launch.sh

take_job jobs/kaisa_bert.toml "$@"
PHASE=${PHASE:-1}
[[ $PHASE == [12] ]] || refuse "PHASE=$PHASE: write 1 or 2"
[[ $PHASE == 1 || -n ${PHASE1_DIR:-} ]] || refuse "PHASE1_DIR: give the run directory of phase 1"
RUN_DIR=${RUN_DIR:-runs/$(basename "$JOB" .toml)-phase$PHASE-$SLURM_JOB_ID}
job_file=$JOB begin_with=() runs=("$RUN_DIR")
((PHASE == 1)) || job_file=${JOB%.toml}_phase2.toml
[[ -r $job_file ]] || refuse "there is no $job_file"

if ((PHASE == 2)); then
    begin_with=(--set "workload.start_from=$PHASE1_DIR")
    runs=("$PHASE1_DIR" "$RUN_DIR")
elif ((${SLURM_RESTART_COUNT:-0} == 0)); then
    export PHASE1_DIR=$RUN_DIR
    env --unset=RUN_DIR PHASE=2 sbatch --dependency="afterok:$SLURM_JOB_ID" --kill-on-invalid-dep=yes \
        --nodes="$nodes_given" --ntasks="$RANKS" ${RANKS_PER_NODE:+--ntasks-per-node="$RANKS_PER_NODE"} \
        --cpus-per-task="$OMP_NUM_THREADS" ${SLURM_GPUS_PER_NODE:+--gpus-per-node="$SLURM_GPUS_PER_NODE"} \
        ${SLURM_JOB_PARTITION:+--partition="$SLURM_JOB_PARTITION"} ${SLURM_JOB_ACCOUNT:+--account="$SLURM_JOB_ACCOUNT"} \
        slurm/kaisa_bert.sh "$JOB" "${OPTIONS[@]}"
fi

if [[ ! -e data/bert ]] && grep --quiet '^data = "data/bert/' "$job_file"; then
    ranks=$RANKS nodes=$nodes_given
    (start_"$LAUNCHER" python -m hpcopt.prepare bert --words 1024) # few words: the text is small
fi
run_ranks "$RANKS" python -m hpcopt.train "$job_file" --run-dir "$RUN_DIR" "${begin_with[@]}" "${OPTIONS[@]}"
if ((EXIT_CODE == 0)); then
    "${WRAP[@]}" python -m hpcopt.report "${runs[@]}"
    "${WRAP[@]}" python -m hpcopt.report "${runs[@]}" --html "$RUN_DIR/report.html"
fi
finish
