"""The protocols that the rooms above share, and nothing else."""

from hpcopt.shapes.batch import Batch, TensorBatch
from hpcopt.shapes.context import Context
from hpcopt.shapes.discrete import Discrete
from hpcopt.shapes.graph_batch import GraphBatch
from hpcopt.shapes.loss import Loss, OutputLoss
from hpcopt.shapes.samples import Samples
from hpcopt.shapes.simulation import Ended, Environments, Layout, Simulation, Transitions
from hpcopt.shapes.solver import Solver, SolverConfig, Task, Tree
from hpcopt.shapes.stats import Rows, Scalar, StepStats, Table
from hpcopt.shapes.workload import Better, Workload, WorkloadConfig

__all__ = [
    "Batch",
    "Better",
    "Context",
    "Discrete",
    "Ended",
    "Environments",
    "GraphBatch",
    "Layout",
    "Loss",
    "OutputLoss",
    "Rows",
    "Samples",
    "Scalar",
    "Simulation",
    "Solver",
    "SolverConfig",
    "StepStats",
    "Table",
    "Task",
    "TensorBatch",
    "Transitions",
    "Tree",
    "Workload",
    "WorkloadConfig",
]
