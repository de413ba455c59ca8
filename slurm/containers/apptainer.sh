# shellcheck shell=bash disable=SC2034 # read by slurm/launch.sh
# Ranks in an Apptainer (or Singularity) image. Apptainer hands signals on to the command, keeps the environment, and
# shares /dev/shm and process numbers between the ranks of a node, which MPI needs.
IMAGE=${IMAGE:-hpcopt.sif}
WRAP=(apptainer exec --bind "$PWD" --pwd "$PWD" ${SLURM_GPUS_PER_NODE:+--nv} "$IMAGE")
