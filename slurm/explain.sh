#!/bin/bash
# Explain what a trained network looks at, on as many ranks as SLURM gives.
#
#   sbatch slurm/explain.sh RUN [options of hpcopt explain]
#   sbatch -N 4 --ntasks-per-node=32 slurm/explain.sh runs/fashion --rows 0:10000 --methods integrated,lime --html page.html
#
# Submit from the folder that slurm/ stands in, and edit the lines below as in slurm/train.sh. The ranks share the work
# out by themselves; what is not done SECONDS (USR1@SECONDS) before the time limit is done by the same job, which goes
# back into the queue.
#
#SBATCH --job-name=explain
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=1
#SBATCH --time=01:00:00
##SBATCH --account=ACCOUNT
##SBATCH --partition=PARTITION
#SBATCH --output=logs/%x-%j.out
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
set -euo pipefail
# shellcheck source=slurm/launch.sh
source slurm/launch.sh

(($#)) || refuse "usage: sbatch slurm/explain.sh RUN [options of hpcopt explain]"
run_ranks "$RANKS" python -m hpcopt.explain "$@"
finish
