"""TensorBoard's event files, by its own writer: one more file an export, which it reads as one run."""

from pathlib import Path

from hpcopt.export.kinds import needs
from hpcopt.export.progress import Progress
from hpcopt.export.series import Series, by_step
from hpcopt.report.read import Run


def write(_: Run, series: list[Series], progress: Progress, folder: Path) -> str:
    """Add the series to a folder of event files; its name to TensorBoard is the folder's."""
    with needs("tensorboard"):
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    writer = EventFileWriter(str(folder))
    for step, time_s, values in by_step(series):
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        writer.add_event(Event(wall_time=time_s, step=step, summary=summary))
    writer.close()
    return progress.id
