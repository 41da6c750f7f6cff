"""The room `search`: a search over training parameters with Optuna."""
