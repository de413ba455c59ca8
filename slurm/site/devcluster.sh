# shellcheck shell=bash disable=SC2034 # read by slurm/launch.sh
# The development cluster (make cluster-up): MPI from a wheel in the virtual environment, TCP between the hosts.
export PATH=${VIRTUAL_ENV:-$PWD/.venv}/bin:$PATH

if mpirun --version | grep --quiet --ignore-case "open.mpi"; then
    LAUNCHER=${LAUNCHER:-mpirun} # Debian's SLURM does not start it by srun --mpi=pmix
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    export PRTE_ALLOW_RUN_AS_ROOT=1 PRTE_ALLOW_RUN_AS_ROOT_CONFIRM=1
    # The hosts share one machine's cores: unless told not to, rank 0 of each would be bound to the same one.
    place=${RANKS_PER_NODE:+ppr:$RANKS_PER_NODE:node}
    MPIRUN_ARGS=(--map-by "${place:-slot}:oversubscribe" --bind-to none)
else
    MPI_KIND=${MPI_KIND:-pmi2}
    # MPICH sees that the hosts are one machine and would use shared memory instead of the links.
    export MPIR_CVAR_CH4_NETMOD=ofi FI_PROVIDER=tcp FI_TCP_IFACE=e0 MPIR_CVAR_NOLOCAL=1
fi
