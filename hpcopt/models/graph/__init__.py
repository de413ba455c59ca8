"""Networks on graphs, and the graphs that they run on."""
