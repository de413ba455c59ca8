"""A page in a real browser."""

import shutil
import subprocess
from pathlib import Path

from tests.conftest import require
from tests.launching import PATIENCE_S

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DARK, LIGHT = 0, 1  # Chromium's names for the reader's preference


def opened(page: Path, scheme: int, width: int = 1280) -> tuple[str, str]:
    """The page after its scripts ran, and what it said on the console."""
    require("chromium", CHROMIUM is not None, "`apt-get install chromium`")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += [f"--blink-settings=preferredColorScheme={scheme}", f"--window-size={width},800", "--dump-dom"]
    command += [f"--user-data-dir={page.parent / 'profile'}", "--virtual-time-budget=10000", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
