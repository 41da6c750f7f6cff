"""The Prefect flow that runs the stages of dvc.yaml, with its plan, server and summary."""
