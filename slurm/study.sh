#!/bin/bash
# Do the points of a study, on all ranks of all tasks of a job array.
#
#   sbatch slurm/study.sh FILE.toml [options of hpcopt study]
#   sbatch --array=0-15 --ntasks-per-node=32 slurm/study.sh jobs/study_rates.toml
#   python -m hpcopt.study report studies/study_rates
#
# Submit from the folder that slurm/ stands in, and edit the lines below as in slurm/train.sh. The tasks need not know of
# each other, nor run at the same time: each rank takes points that nobody has. What is not done SECONDS (USR1@SECONDS)
# before the time limit is done by the others, or by the same job, which goes back into the queue.
#
#SBATCH --job-name=study
#SBATCH --array=0-3
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=1
#SBATCH --time=01:00:00
##SBATCH --account=ACCOUNT
##SBATCH --partition=PARTITION
#SBATCH --output=logs/%x-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
set -euo pipefail
# shellcheck source=slurm/launch.sh
source slurm/launch.sh

(($#)) || refuse "usage: sbatch slurm/study.sh FILE.toml [options of hpcopt study]"
run_ranks "$RANKS" python -m hpcopt.study "$@"
finish
