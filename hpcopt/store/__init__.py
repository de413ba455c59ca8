"""HDF5 on disk: training data as shards, checkpoints without pickle, and the metrics of a run. Documented in
docs/reference/format.md.
"""
