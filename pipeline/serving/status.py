"""The lines of `pipeline status` about the server that `pipeline up` runs."""

import http.client
import json
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.server_addresses import ANSWER_SECONDS, LOCK, read_stack
from pipeline.workspace import is_held, main_repository


def describe_server(workspace: Path) -> list[tuple[str, str]]:
    """Describe the server: its address, and the version that it answers with. Empty if `pipeline up` runs none."""
    root = main_repository(workspace)
    stack = read_stack(root)
    address = stack and stack.others.get("serve")
    if not stack or not address or not is_held(LOCK, stack.pid, root=root):
        return []
    return [("served", f"{_describe_version(address)}, {address}")]


def _describe_version(address: str) -> str:
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", "/health/ready")
        response = connection.getresponse()
        content = json.loads(response.read())
        if response.status == http.client.OK:
            return f"version {content['version']}"
        return f"no version: {content['error']}"
    except (OSError, http.client.HTTPException, ValueError, KeyError):
        return "no response"
    finally:
        connection.close()
