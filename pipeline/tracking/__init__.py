"""Runs, registry and lineage. The only place that imports MLflow."""
