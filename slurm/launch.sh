# shellcheck shell=bash
# What the batch scripts share, sourced by them: site section, launcher, wall clock and preemption.
#
# Settings, from the environment (VAR=value sbatch ...) or the site section:
#   SITE          name of the site section slurm/site/$SITE.sh (default: the cluster's own name)
#   LAUNCHER      srun or mpirun (default: srun)
#   MPI_KIND      srun's --mpi kind (default: the cluster's)
#   MPIRUN_ARGS   mpirun's options, an array (default: RANKS_PER_NODE on each node, with a core a thread)
#   MAX_RESTARTS  how often a job may put itself back into the queue (default: 20)

EXIT_BAD_INPUT=2 EXIT_PEER=70 EXIT_REQUEUE=85 # as in hpcopt/errors.py

# refuse WHY: end the job with a message and the exit code for bad input.
refuse() {
    echo "$(basename "${SLURM_JOB_NAME:-$0}"): $*" >&2
    exit "$EXIT_BAD_INPUT"
}

[[ -n ${SLURM_JOB_ID:-} ]] || refuse "this is a batch script: submit it with sbatch"
[[ -z ${SLURM_HET_SIZE:-} ]] || refuse "heterogeneous jobs are not supported: submit one component, of one kind of node"

SITE=${SITE:-${SLURM_CLUSTER_NAME:-none}}
MPIRUN_ARGS=()
if [[ -r slurm/site/$SITE.sh ]]; then
    # shellcheck source=/dev/null
    source "slurm/site/$SITE.sh"
else
    echo "launch: no slurm/site/$SITE.sh, so the environment is that of the shell that submitted"
fi

LAUNCHER=${LAUNCHER:-srun}
MPI_KIND=${MPI_KIND:-}
MAX_RESTARTS=${MAX_RESTARTS:-20}
RANKS_PER_NODE=${SLURM_NTASKS_PER_NODE:-${SLURM_TASKS_PER_NODE%%[(,]*}} # "2(x4)", or "2,1" if ragged: the first
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
export TERM=dumb # Open MPI gives the ranks a pseudo-terminal, but nobody watches: no progress bar into the log
# The plain id of an array's last task is that of the whole array.
JOB_ID=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
JOB_ID=${JOB_ID:-$SLURM_JOB_ID}
# Where the ranks leave their exit code. Open MPI's mpirun may say 0 when a node is lost, or crash after a checkpoint.
export HPCOPT_EXIT_FILE=logs/$JOB_ID.exit

# run_ranks N COMMAND...: start N ranks, RANKS_PER_NODE on a node; pass USR1 and TERM on to them as USR1, on which they
# checkpoint and end (TERM would make Open MPI's mpirun kill them); set EXIT_CODE to theirs.
run_ranks() {
    local ranks=$1 nodes=$((($1 + RANKS_PER_NODE - 1) / RANKS_PER_NODE)) launcher_pid signalled=yes
    shift
    echo "launch: $(date --utc +%FT%TZ) $LAUNCHER, $ranks ranks on $nodes of ${SLURM_JOB_NODELIST:-?}," \
        "restart ${SLURM_RESTART_COUNT:-0}: $*"
    rm -f "$HPCOPT_EXIT_FILE"
    start_"$LAUNCHER" "$@" &
    launcher_pid=$!
    trap 'signalled=yes; echo "launch: asking the ranks to checkpoint and end"; kill -USR1 $launcher_pid || true' USR1 TERM
    while [[ $signalled == yes ]]; do # a trapped signal ends wait before the ranks have ended
        signalled=no EXIT_CODE=0
        wait "$launcher_pid" || EXIT_CODE=$?
    done
    trap - USR1 TERM
    if [[ -r $HPCOPT_EXIT_FILE ]]; then
        EXIT_CODE=$(<"$HPCOPT_EXIT_FILE")
        rm -f "$HPCOPT_EXIT_FILE"
    elif ((EXIT_CODE == 0)); then
        echo "launch: $LAUNCHER reports success, but the ranks did not come to their end" >&2
        EXIT_CODE=$EXIT_PEER
    fi
}

# --wait: when one rank has ended, the others get a minute to do so.
start_srun() {
    exec srun --ntasks="$ranks" --nodes="$nodes" --ntasks-per-node="$RANKS_PER_NODE" \
        --cpus-per-task="$OMP_NUM_THREADS" --wait=60 --kill-on-bad-exit=0 ${MPI_KIND:+--mpi="$MPI_KIND"} "$@"
}

start_mpirun() {
    if [[ ${#MPIRUN_ARGS[@]} -eq 0 ]]; then
        if mpirun --version | grep --quiet --ignore-case "open.mpi"; then
            MPIRUN_ARGS=(--map-by "ppr:$RANKS_PER_NODE:node:PE=$OMP_NUM_THREADS")
        else
            MPIRUN_ARGS=(-ppn "$RANKS_PER_NODE")
        fi
    fi
    exec mpirun -n "$ranks" "${MPIRUN_ARGS[@]}" "$@"
}

# finish: report, put the job back into the queue if its ranks asked for that, and end with their exit code.
finish() {
    sacct --jobs="$JOB_ID" --format=jobid,elapsed,maxrss,state 2>/dev/null ||
        squeue --noheader --jobs="$JOB_ID" --format="launch: job %i, elapsed %M on %D nodes"
    if ((EXIT_CODE == EXIT_REQUEUE)); then
        requeue
    fi
    echo "launch: exit code $EXIT_CODE"
    exit "$EXIT_CODE"
}

requeue() {
    local restarts=${SLURM_RESTART_COUNT:-0}
    if ! scontrol show job "$JOB_ID" | grep --quiet "JobState=RUNNING"; then
        echo "launch: checkpointed; SLURM is ending this job, so it is not put back into the queue here"
    elif ((restarts >= MAX_RESTARTS)); then
        echo "launch: checkpointed, but this was restart $restarts of at most $MAX_RESTARTS; to go on, submit again with" \
            "the same run directory" >&2
    else
        echo "launch: checkpointed; back into the queue"
        scontrol requeue "$JOB_ID"
        sleep 60 # SLURM ends this script, and nothing after this line runs
    fi
}

case $LAUNCHER in
    srun | mpirun) ;;
    *) refuse "LAUNCHER=$LAUNCHER: write srun or mpirun" ;;
esac
