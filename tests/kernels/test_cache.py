"""Compiled code is not older than any source that it was made of."""

import shutil
import subprocess
import sys
from pathlib import Path

import hpcopt

SIGNS = """
import numpy as np
from hpcopt import kernels
signs = np.zeros(64, np.int8)
kernels.levels.ternary(np.full(64, 0.5, np.float32), 1.0, 1, 0, signs)
print(kernels.levels.__file__, *signs)
print(sum(kernels.levels.ternary.stats.cache_hits.values()))
"""


def test_a_change_of_an_inlined_source_renews_the_cache(tmp_path: Path) -> None:
    package = tmp_path / "hpcopt"
    shutil.copytree(Path(hpcopt.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))

    def run() -> tuple[str, int]:
        done = subprocess.run([sys.executable, "-c", SIGNS], cwd=tmp_path, capture_output=True, text=True, check=True)
        signs, hits = done.stdout.splitlines()
        assert signs.startswith(str(package))
        return signs, int(hits)

    before = run()
    assert run() == (before[0], 1), "unchanged sources must not be compiled again"
    rng = package / "kernels" / "rng.py"
    rng.write_text(rng.read_text().replace("0x846CA68B", "0x846CA68D"))
    after = run()
    assert after[1] == 0
    assert after[0] != before[0]
