#!/bin/bash
# Train one job on as many ranks as SLURM gives.
#
#   sbatch slurm/train.sh jobs/quickstart.toml [options of hpcopt train]
#   sbatch -N 16 --ntasks-per-node=8 -t 4:00:00 slurm/train.sh JOB.toml --set run.seed=1
#   LAUNCHER=mpirun sbatch slurm/train.sh JOB.toml
#   sbatch slurm/train.sh train.py [options of the script]       a script with an hpcopt.Session
#
# Submit from the folder that slurm/ stands in. Edit the lines below or override them on sbatch's command line; modules
# and the like go into slurm/site/<cluster>.sh. The job checkpoints SECONDS (USR1@SECONDS) before its time limit, goes
# back into the queue and continues; the run directory is runs/<job>-<job id> unless RUN_DIR says otherwise.
#
#SBATCH --job-name=train
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

(($#)) || refuse "usage: sbatch slurm/train.sh JOB.toml [options of hpcopt train], or SCRIPT.py [its options]"
JOB=$1
shift
name=$(basename "$JOB")
RUN_DIR=${RUN_DIR:-runs/${name%.*}-$SLURM_JOB_ID}

if [[ $JOB == *.py ]]; then
    export HPCOPT_RUN_DIR=$RUN_DIR
    run_ranks "$RANKS" python "$JOB" "$@"
else
    run_ranks "$RANKS" python -m hpcopt.train "$JOB" --run-dir "$RUN_DIR" "$@"
fi
finish
