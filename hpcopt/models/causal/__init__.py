"""Networks on tokens that predict each token from those before it."""
