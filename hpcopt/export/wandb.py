"""An offline run of Weights & Biases: nothing leaves this machine until somebody says ``wandb sync``."""

from pathlib import Path

from hpcopt.export.kinds import needs
from hpcopt.export.progress import Progress
from hpcopt.export.series import Series, by_step
from hpcopt.report.read import Run


def write(run: Run, series: list[Series], progress: Progress, folder: Path) -> str:
    """Log the series under the run's id. A second export is one more offline folder of the same id: ``wandb sync
    --append`` puts them together.
    """
    with needs("wandb"):
        import wandb
    folder.mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(mode="offline", silent=True, console="off", disable_git=True, x_disable_stats=True)
    with wandb.init(
        project="hpcopt", id=progress.id, name=run.name, dir=str(folder), config=run.config, settings=settings
    ) as theirs:
        for step, time_s, values in by_step(series):
            theirs.log({**values, "_timestamp": time_s}, step=step)
    return progress.id
