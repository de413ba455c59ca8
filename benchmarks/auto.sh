#!/bin/bash
# The set-ups of benchmarks/auto.py on the development cluster: every rate with two and with four hosts, each a job.
#
#   benchmarks/auto.sh SECONDS [RATE...]      seconds for a set-up; by default four rates. As root
set -euo pipefail
seconds=$1
shift
[[ $# -gt 0 ]] || set -- 1gbit 100mbit 10mbit 1mbit
for rate in "$@"; do
    python3 -m slurm.devcluster up --rate "$rate"
    for hosts in 2 4; do
        sbatch --exclusive --wait --nodes="$hosts" --ntasks-per-node=1 --wrap \
            "srun python benchmarks/auto.py --seconds $seconds --links $rate --out auto.jsonl"
    done
done
python benchmarks/auto.py --table auto.jsonl
