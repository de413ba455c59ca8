# shellcheck shell=bash disable=SC2034 # read by slurm/launch.sh
# Ranks in a Docker image, started by srun itself, on a site with the Pyxis plugin. The image is a registry's name, or a
# file that `enroot import` made.
[[ ${LAUNCHER:-srun} == srun ]] || refuse "CONTAINER=pyxis: srun starts these containers, so LAUNCHER=srun"
[[ -n ${IMAGE:-} ]] || refuse "CONTAINER=pyxis: give an IMAGE"
SRUN_ARGS+=(--container-image="$IMAGE" --container-mounts="$PWD:$PWD" --container-workdir="$PWD")
