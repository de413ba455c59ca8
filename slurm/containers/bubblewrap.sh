# shellcheck shell=bash disable=SC2034 # read by slurm/launch.sh
# Ranks in an unpacked image, a folder, where the site has no container program but Debian's bubblewrap; by default in
# this host's system, which they can then read and not write.
IMAGE=${IMAGE:-/}
# USR1 goes to all processes of a step. Python sets a handler; bubblewrap itself would die of the signal.
WRAP=(env --ignore-signal=USR1 bwrap --die-with-parent --ro-bind "$IMAGE" / --dev-bind /dev /dev --proc /proc
    --ro-bind /etc/hosts /etc/hosts --ro-bind /etc/resolv.conf /etc/resolv.conf --tmpfs /tmp --bind "$PWD" "$PWD" --chdir "$PWD")
