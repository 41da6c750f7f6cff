"""`pipeline up`: the servers of MLflow and Prefect, the runner, schedules and deployments."""
