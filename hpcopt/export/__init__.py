"""Runs for other programs: ``hpcopt export RUN --to tensorboard``. Needs neither torch nor MPI."""
