"""hpcopt: distributed optimizers and compressed MPI collectives for training networks as batch jobs."""

__version__ = "0.1.0"
