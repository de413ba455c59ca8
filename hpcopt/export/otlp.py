"""OpenTelemetry's metrics in OTLP's JSON form (https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding): no
library is needed, and any collector takes it.
"""

import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from hpcopt import __version__
from hpcopt.errors import MetricsError
from hpcopt.export.progress import Progress
from hpcopt.export.series import Series
from hpcopt.report.read import Run
from hpcopt.store import strict_json
from hpcopt.store.files import open_to_append

PATIENCE_S = 30.0


def write(run: Run, series: list[Series], progress: Progress, file: Path) -> str:
    """Add a line with the series to a file, as the collector's file exporter does."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open_to_append(file) as lines:
        print(strict_json.dumps(request(run, series, progress)), file=lines)
    return progress.id


def post(run: Run, series: list[Series], progress: Progress, endpoint: str) -> str:
    """Send the series to a collector's HTTP endpoint, such as http://localhost:4318.

    Raises:
        MetricsError: it does not take them.
    """
    url = endpoint.rstrip("/")
    url = url if url.endswith("/v1/metrics") else f"{url}/v1/metrics"
    if not url.startswith(("http://", "https://")):
        raise MetricsError(f"--endpoint {endpoint} is no address of a collector, such as http://localhost:4318")
    body = strict_json.dumps(request(run, series, progress)).encode()
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, body, {"Content-Type": "application/json"}), timeout=PATIENCE_S
        ):
            return progress.id
    except (OSError, ValueError) as cause:  # HTTP errors and time-outs are OSErrors
        raise MetricsError(f"{url} did not take the metrics ({cause}): is a collector there?") from cause


def request(run: Run, series: list[Series], progress: Progress) -> dict[str, Any]:
    """An ``ExportMetricsServiceRequest``: a gauge a series, whose points tell their step."""
    resource: dict[str, str | int] = {
        "service.name": "hpcopt",
        "service.version": __version__,
        "service.instance.id": progress.id,
        "hpcopt.run": run.name,
        "hpcopt.ranks": run.ranks,
    }
    metrics = [
        {"name": f"hpcopt.{each.name.replace('/', '.')}", "unit": each.unit, "gauge": {"dataPoints": _points(each)}}
        for each in series
    ]
    scope = {"scope": {"name": "hpcopt", "version": __version__}, "metrics": metrics}
    return {"resourceMetrics": [{"resource": {"attributes": _attributes(resource)}, "scopeMetrics": [scope]}]}


def _points(series: Series) -> list[dict[str, Any]]:
    """64-bit integers are texts in OTLP's JSON."""
    return [
        {"timeUnixNano": str(round(1e9 * time_s)), "asDouble": value, "attributes": _attributes({"step": step})}
        for step, time_s, value in zip(series.steps.tolist(), series.times_s, series.values.tolist(), strict=True)
    ]


def _attributes(values: dict[str, str | int]) -> list[dict[str, Any]]:
    return [
        {"key": key, "value": {"stringValue": value} if isinstance(value, str) else {"intValue": str(value)}}
        for key, value in values.items()
    ]
