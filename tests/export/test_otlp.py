"""OTLP's metrics, read by its own schema, and a collector that takes them."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from hpcopt.export.__main__ import main
from tests.export.conftest import need, same
from tests.report.conftest import make_run


def values(requests: list[dict]) -> dict[str, dict[int, float]]:
    """By name and step."""
    found: dict[str, dict[int, float]] = {}
    for request in requests:
        for metric in request["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]:
            for point in metric["gauge"]["dataPoints"]:
                (step,) = (a["value"]["intValue"] for a in point["attributes"] if a["key"] == "step")
                found.setdefault(metric["name"], {})[int(step)] = point["asDouble"]
    return found


def dotted(series: dict) -> dict:
    return {f"hpcopt.{name.replace('/', '.')}": each for name, each in series.items()}


def test_a_line_an_export_and_every_value_once(twice, tmp_path):
    series = twice("otlp")
    lines = [json.loads(line) for line in (tmp_path / "known" / "otlp.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    same(values(lines), dotted(series))


def test_the_schema_of_opentelemetry_reads_it(twice, tmp_path):
    need("opentelemetry.proto")
    from google.protobuf.json_format import Parse
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    series = twice("otlp")
    found: dict[str, dict[int, float]] = {}
    for line in (tmp_path / "known" / "otlp.jsonl").read_text().splitlines():
        request = Parse(line, ExportMetricsServiceRequest())
        for metric in request.resource_metrics[0].scope_metrics[0].metrics:
            points = {point.attributes[0].value.int_value: point.as_double for point in metric.gauge.data_points}
            found.setdefault(metric.name, {}).update(points)
    same(found, dotted(series))


@pytest.fixture
def collector():
    """Its address, and the requests that it took."""
    taken: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            right = self.path == "/v1/metrics" and self.headers["Content-Type"] == "application/json"
            taken.append(json.loads(body))
            self.send_response(200 if right else 400)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", taken
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_collector_gets_them(twice, collector):
    address, taken = collector
    series = twice("otlp", "--endpoint", address)
    assert len(taken) == 2
    same(values(taken), dotted(series))


def test_no_collector_is_one_sentence_and_nothing_is_lost(tmp_path, capsys, collector):
    make_run(tmp_path / "known")
    assert main([str(tmp_path / "known"), "--to", "otlp", "--endpoint", "http://127.0.0.1:1"]) == 2
    assert "is a collector there?" in capsys.readouterr().err
    assert not (tmp_path / "known" / "exports.json").exists()
