"""The protocols that the rooms above share, and nothing else."""

from hpcopt.shapes.batch import Batch, TensorBatch
from hpcopt.shapes.context import Context
from hpcopt.shapes.loss import Loss, OutputLoss
from hpcopt.shapes.solver import Solver, SolverConfig, StepStats, Task, Tree
from hpcopt.shapes.workload import Better, Workload, WorkloadConfig

__all__ = [
    "Batch",
    "Better",
    "Context",
    "Loss",
    "OutputLoss",
    "Solver",
    "SolverConfig",
    "StepStats",
    "Task",
    "TensorBatch",
    "Tree",
    "Workload",
    "WorkloadConfig",
]
