"""Reading what jobs wrote: ``python -m hpcopt.report RUN ...``. Needs neither torch nor MPI."""
