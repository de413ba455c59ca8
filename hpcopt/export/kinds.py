"""What runs can be exported to, and the libraries that this takes."""

from collections.abc import Iterator
from contextlib import contextmanager

from hpcopt.errors import MetricsError

KINDS = {
    "tensorboard": "event files, as RUN/tensorboard",
    "wandb": "an offline run of Weights & Biases, as RUN/wandb; `wandb sync` uploads it",
    "mlflow": "a run in a database of MLflow's, as RUN/mlflow.db",
    "otlp": "OpenTelemetry's metrics as JSON, as RUN/otlp.jsonl, or posted to --endpoint",
    "trace": "a Chrome trace a rank with Kineto's names, as RUN/trace, for Perfetto and Holistic Trace Analysis",
}


@contextmanager
def needs(library: str) -> Iterator[None]:
    """Around the import of a library that is an extra.

    Raises:
        MetricsError: it is not installed; the message says how to.
    """
    try:
        yield
    except ImportError as cause:
        extra = library.split("[")[0]
        raise MetricsError(
            f"this export needs {library} ({cause}): `pip install {library}`, or the extra `{extra}`"
        ) from cause
