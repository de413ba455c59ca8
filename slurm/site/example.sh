# shellcheck shell=bash disable=SC2034 # read by slurm/launch.sh
# The site section: copy to slurm/site/<cluster>.sh, where <cluster> is what `scontrol show config | grep ClusterName`
# says, and edit. Every batch script sources it before it starts the ranks.

# The compiler, the MPI that mpi4py was built with, and Python.
# module purge
# module load gcc openmpi python

# The environment hpcopt is installed in: a virtual environment,
# source "$HOME/venvs/hpcopt/bin/activate"
# or one of conda's. Its MPI must be the site's: conda install -c conda-forge mpi4py "mpich=*=external_*"
# source "$HOME/miniforge3/etc/profile.d/conda.sh"
# conda activate hpcopt
# or a container: apptainer, pyxis (srun --container-image) or bubblewrap, see slurm/containers/.
# CONTAINER=${CONTAINER:-apptainer}
# IMAGE=${IMAGE:-$HOME/images/hpcopt.sif}

# How ranks are started: srun with the kind that belongs to this MPI (`srun --mpi=list`), or its mpirun.
# A wrong kind is noticed: the job stops and says which would be right.
LAUNCHER=${LAUNCHER:-srun}
# MPI_KIND=${MPI_KIND:-pmix}

# Where sbatch runs with --export=NONE, the ranks need the environment of this script:
# export SLURM_EXPORT_ENV=ALL
