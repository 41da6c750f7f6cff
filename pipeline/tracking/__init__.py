"""MLflow's store, runs and provenance."""
