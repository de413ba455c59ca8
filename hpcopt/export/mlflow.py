"""A run in a database of MLflow's, in one file: ``mlflow ui --backend-store-uri sqlite:///RUN/mlflow.db`` shows it."""

import itertools
from pathlib import Path
from typing import Any

from hpcopt.export.kinds import needs
from hpcopt.export.progress import Progress
from hpcopt.export.series import Series
from hpcopt.report.read import Run
from hpcopt.report.summary import flat

BATCH = 1000  # points, the most that MLflow takes at once
PARAMS, VALUE_CHARACTERS = 100, 6000  # settings at once, and the most of one


def write(run: Run, series: list[Series], progress: Progress, file: Path) -> str:
    """Add the series to the run; give MLflow's id of it."""
    with needs("mlflow"):
        from mlflow.entities import Metric
        from mlflow.tracking import MlflowClient
    file.parent.mkdir(parents=True, exist_ok=True)
    client = MlflowClient(tracking_uri=f"sqlite:///{file.resolve()}")
    run_id = progress.id if progress.begun else _create(client, run)
    points = (
        Metric(each.name, value, round(1e3 * time_s), step)
        for each in series
        for step, time_s, value in zip(each.steps.tolist(), each.times_s, each.values.tolist(), strict=True)
    )
    while batch := list(itertools.islice(points, BATCH)):
        client.log_batch(run_id, metrics=batch)
    if "outcome" in run.attributes:
        client.set_terminated(run_id, "FINISHED" if run.attributes.get("exit_code", 0) == 0 else "FAILED")
    else:
        client.update_run(run_id, "RUNNING")
    return run_id


def _create(client: Any, run: Run) -> str:
    """Make the run, with the job's settings as its parameters."""
    from mlflow.entities import Param

    known = client.get_experiment_by_name("hpcopt")
    experiment = client.create_experiment("hpcopt") if known is None else known.experiment_id
    run_id = str(client.create_run(experiment, run_name=run.name).info.run_id)
    params = iter([Param(key, value[:VALUE_CHARACTERS]) for key, value in flat(run.config).items()])
    while batch := list(itertools.islice(params, PARAMS)):
        client.log_batch(run_id, params=batch)
    return run_id
