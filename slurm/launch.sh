# shellcheck shell=bash
# What the batch scripts share, sourced by them: site section, launcher, wall clock and preemption. They find in RANKS how
# many ranks SLURM gave, in RANKS_PER_NODE how many on each node: nothing where nodes have different numbers.
#
# Settings, from the environment (VAR=value sbatch ...) or the site section:
#   SITE          name of the site section slurm/site/$SITE.sh, here or beside this file (default: the cluster's own name)
#   LAUNCHER      srun or mpirun (default: srun)
#   MPI_KIND      srun's --mpi kind (default: the cluster's)
#   MPIRUN_ARGS   mpirun's options, an array (default: SLURM's numbers of ranks on the nodes, with a core a thread)
#   SRUN_ARGS     more options of srun, an array
#   CONTAINER     run the ranks, and nothing else, in a container as slurm/containers/$CONTAINER.sh says: apptainer, pyxis,
#                 bubblewrap (default: in none). It sets the array WRAP, which goes before python, or SRUN_ARGS
#   IMAGE         the container's image
#   MAX_RESTARTS  how often a job may put itself back into the queue (default: 20)

EXIT_BAD_INPUT=2 EXIT_PEER=70 EXIT_REQUEUE=85 # as in hpcopt/errors.py

# refuse WHY: end the job with a message and the exit code for bad input.
refuse() {
    echo "$(basename "${SLURM_JOB_NAME:-$0}"): $*" >&2
    exit "$EXIT_BAD_INPUT"
}

# whole NAME VALUE...: refuse a setting with a value that is no whole number.
whole() {
    local name=$1 value
    shift
    for value; do
        [[ $value =~ ^(0|[1-9][0-9]*)$ ]] || refuse "$name: \"$value\" is no whole number"
    done
}

# take_job DEFAULT ARGUMENT...: JOB is the first argument if that is a job, else the default; OPTIONS are the others.
take_job() {
    JOB=$1
    shift
    if [[ ${1:-} == *.toml ]]; then
        JOB=$1
        shift
    fi
    OPTIONS=("$@")
}

[[ -n ${SLURM_JOB_ID:-} ]] || refuse "this is a batch script: submit it with sbatch"
[[ -z ${SLURM_HET_SIZE:-} ]] || refuse "heterogeneous jobs are not supported: submit one component, of one kind of node"

# ranks_on LIST: the sum of the nodes' ranks as SLURM writes them: 7 for "1,3(x2)"
ranks_on() {
    local part sum=0
    for part in ${1//,/ }; do
        [[ $part == *"(x"* ]] || part+="(x1)"
        part=${part/"(x"/ * } part=${part%")"}
        sum=$((sum + part))
    done
    echo "$sum"
}

# SLURM sets SLURM_NTASKS for some of the ways to ask for ranks, SLURM_TASKS_PER_NODE for all.
nodes_given=${SLURM_JOB_NUM_NODES:-1}
layout=${SLURM_TASKS_PER_NODE:-1(x$nodes_given)}
if [[ -z ${SLURM_NTASKS:-} && -n ${SLURM_NTASKS_PER_NODE:-} ]]; then
    layout="$SLURM_NTASKS_PER_NODE(x$nodes_given)"
fi
RANKS=${SLURM_NTASKS:-$(ranks_on "$layout")} RANKS_PER_NODE=
[[ $layout == *,* ]] || RANKS_PER_NODE=${layout%%(*}

# take FILE: source slurm/FILE of this folder, or the one beside this script; fail if there is neither. Not under set -u:
# modules and conda read variables that may not be set.
take() {
    local file=slurm/$1
    [[ -r $file ]] || file=$(dirname "${BASH_SOURCE[0]}")/$1
    [[ -r $file ]] || return
    set +u
    # shellcheck source=/dev/null
    source "$file"
    set -u
}

SITE=${SITE:-${SLURM_CLUSTER_NAME:-none}} MPIRUN_ARGS=() SRUN_ARGS=() WRAP=()
take "site/$SITE.sh" || echo "launch: no slurm/site/$SITE.sh, so the environment is that of the shell that submitted"
if [[ -n ${CONTAINER:-} ]]; then
    take "containers/$CONTAINER.sh" || refuse "CONTAINER=$CONTAINER: there is no slurm/containers/$CONTAINER.sh"
fi

LAUNCHER=${LAUNCHER:-srun}
MPI_KIND=${MPI_KIND:-}
MAX_RESTARTS=${MAX_RESTARTS:-20}
whole MAX_RESTARTS "$MAX_RESTARTS"
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
export TERM=dumb # Open MPI gives the ranks a pseudo-terminal, but nobody watches: no progress bar into the log
# The plain id of an array's last task is that of the whole array.
JOB_ID=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
JOB_ID=${JOB_ID:-$SLURM_JOB_ID}
# Where the ranks leave their exit code. Open MPI's mpirun may say 0 when a node is lost, or crash after a checkpoint.
export HPCOPT_EXIT_FILE=logs/$JOB_ID.exit
mkdir -p logs

# run_ranks N COMMAND...: start N ranks, all that SLURM gave or RANKS_PER_NODE on each of fewer nodes; pass USR1 and TERM on
# to them as USR1, on which they checkpoint and end (TERM would make Open MPI's mpirun kill them); set EXIT_CODE to theirs.
run_ranks() {
    local ranks=$1 nodes=$nodes_given launcher_pid signalled=yes
    shift
    if ((ranks != RANKS)); then
        [[ -n $RANKS_PER_NODE ]] || refuse "$ranks of $RANKS ranks, but nodes have different numbers of them: --ntasks-per-node"
        nodes=$(((ranks + RANKS_PER_NODE - 1) / RANKS_PER_NODE))
    fi
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
    elif ((EXIT_CODE > 128 || (EXIT_CODE > 3 && EXIT_CODE < 16))); then # MPICH's mpirun gives the signal itself
        echo "launch: $LAUNCHER lost a rank to a signal, exit code $EXIT_CODE, and ended the others" >&2
        EXIT_CODE=$EXIT_PEER
    fi
}

# --wait: when one rank has ended, the others get a minute to do so, but for those that go on without it. --no-kill: they
# may go on without a host too, if sbatch was told --no-kill; otherwise SLURM ends the job, not the ranks alone.
start_srun() {
    local patience_s=60
    ! is_elastic "$@" || patience_s=0
    exec srun --ntasks="$ranks" --nodes="$nodes" ${RANKS_PER_NODE:+--ntasks-per-node="$RANKS_PER_NODE"} \
        --cpus-per-task="$OMP_NUM_THREADS" --wait="$patience_s" --kill-on-bad-exit=0 --no-kill \
        ${MPI_KIND:+--mpi="$MPI_KIND"} "${SRUN_ARGS[@]}" "${WRAP[@]}" "$@"
}

# is_elastic COMMAND...: whether the job that it trains has [run] elastic = true.
is_elastic() {
    local word
    for word; do
        if [[ $word == run.elastic=true ]] || { [[ $word == *.toml ]] && grep -Eqs '^[^#]*\<elastic *= *true' "$word"; }; then
            return
        fi
    done
    return 1
}

start_mpirun() {
    if [[ ${#MPIRUN_ARGS[@]} -eq 0 ]]; then
        if mpirun --version | grep --quiet --ignore-case "open.mpi"; then
            local place=${RANKS_PER_NODE:+ppr:$RANKS_PER_NODE:node}
            MPIRUN_ARGS=(--map-by "${place:-slot}:PE=$OMP_NUM_THREADS")
        elif [[ -n $RANKS_PER_NODE ]]; then
            MPIRUN_ARGS=(-ppn "$RANKS_PER_NODE")
        fi
    fi
    exec mpirun -n "$ranks" "${MPIRUN_ARGS[@]}" "${WRAP[@]}" "$@"
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
