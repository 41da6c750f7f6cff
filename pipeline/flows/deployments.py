"""The flows at the entry points that deployments of release 0.1.0 name. To be removed with the next release.

A team's Prefect server keeps the entry point of a deployment (`pipeline/flows/deployments.py:train`) until `prefect
deploy` renews it. Without this module, workers that run the present code could not load the flow.
"""

from pathlib import Path
from typing import Any

from prefect.flows import load_flow_from_entrypoint

from pipeline.files import parse_yaml

PROJECT = Path(__file__).resolve().parents[2]


def __getattr__(name: str) -> Any:
    """Load a flow from the entry point that `prefect.yaml` has for it, and print how to renew the deployment."""
    deployments = parse_yaml((PROJECT / "prefect.yaml").read_bytes())["deployments"]
    entrypoints = {each["entrypoint"].rpartition(":")[2]: each["entrypoint"] for each in deployments}
    if name not in entrypoints:
        raise AttributeError(name)
    print(f"the deployment of {name} is of release 0.1.0. Renew it: prefect deploy --all", flush=True)
    path, _, flow = entrypoints[name].rpartition(":")
    return load_flow_from_entrypoint(f"{PROJECT / path}:{flow}")
