"""The plots as PNG files, for papers and pages that cannot hold a live plot."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpcopt.errors import MetricsError
from hpcopt.report.figure import Figure

WIDTH, HEIGHT, SCALE = 1000, 420, 2
LOOK: dict[str, Any] = {
    "template": "plotly_white",
    "font": {"size": 15},
    "margin": {"l": 80, "r": 20, "t": 50, "b": 50},
    "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
}


def write(figures: Sequence[Figure], folder: Path) -> None:
    """Write each plot as folder/NAME.png.

    Raises:
        MetricsError: plotly, kaleido or a browser is missing.
    """
    try:
        import plotly.io
    except ImportError as cause:
        raise MetricsError("pictures need plotly and kaleido: `pip install plotly kaleido`") from cause
    folder.mkdir(parents=True, exist_ok=True)
    plots: list[Any] = [{"data": figure.data, "layout": {**LOOK, **figure.layout}} for figure in figures]
    try:
        plotly.io.write_images(
            fig=plots,
            file=[folder / f"{figure.name.replace('/', '_')}.png" for figure in figures],
            width=WIDTH,
            height=[figure.layout.get("height", HEIGHT) for figure in figures],
            scale=SCALE,
        )
    except Exception as cause:  # kaleido and the browser under it raise classes of their own
        raise MetricsError(f"cannot draw into {folder} ({cause}): it takes kaleido and Chrome or Chromium") from cause
