#!/bin/bash
# The set-ups of benchmarks/auto.py on the development cluster: every rate with two and with four hosts, each a job.
#
#   benchmarks/auto.sh SECONDS [RATE...]      seconds for the turns of a set-up; by default four rates. As root
#
#SBATCH --job-name=auto
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --output=logs/%x-%j.out
set -euo pipefail
if [[ -n ${SLURM_JOB_ID:-} ]]; then # one of the jobs
    # shellcheck source=slurm/launch.sh
    source slurm/launch.sh
    run_ranks "$RANKS" python benchmarks/auto.py "$@"
    finish
fi

seconds=$1
shift
[[ $# -gt 0 ]] || set -- 1gbit 100mbit 10mbit 1mbit
for rate in "$@"; do
    python3 -m slurm.devcluster up --rate "$rate"
    for hosts in 2 4; do
        sbatch --exclusive --wait --nodes="$hosts" benchmarks/auto.sh --seconds "$seconds" --links "$rate" --out auto.jsonl ||
            echo "auto.sh: $hosts hosts at $rate ended early, see logs/: the others go on"
    done
done
python benchmarks/auto.py --table auto.jsonl
