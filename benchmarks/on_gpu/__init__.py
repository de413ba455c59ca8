"""The parts of ``benchmarks/gpu.py``: each measures or checks one thing on a device, and tells it in rows."""
