"""The trials of a sweep as a table in Prefect's pages, if there is a server of `pipeline up` or a configured one."""

import json
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path

from pipeline.flows.prefect_server import settings
from pipeline.search.summary import Row
from pipeline.server_addresses import find_server, prefect_credentials

PUBLISH_SECONDS = 30  # between two versions of the table
DESCRIPTION = "The trials of a sweep over training parameters, judged by the validation split"
QUICK = {"PREFECT_CLIENT_MAX_RETRIES": "0", "PREFECT_API_REQUEST_TIMEOUT": "5"}  # a server that hangs delays little


class PrefectTable:
    """The artifact of a sweep. A server that does not respond ends the publishing, and not the sweep.

    Args:
        root: the main repository.
        name: of the study.
    """

    def __init__(self, root: Path, name: str) -> None:
        self.key = "sweep-" + re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        self.problem = ""  # why the publishing ended
        self._url = os.environ.get("PREFECT_API_URL") or find_server(root, "prefect")
        self._root, self._last = root, 0.0

    def publish(self, rows: Iterable[Row], *, now: bool = False) -> None:
        """Publish a new version of the table, every half a minute, or now."""
        if not self._url or self.problem or (not now and time.monotonic() - self._last < PUBLISH_SECONDS):
            return
        self._last = time.monotonic()
        os.environ.update(QUICK | prefect_credentials(self._root, self._url))
        for name, value in ({"PREFECT_API_URL": self._url} | settings(self._root)).items():
            os.environ.setdefault(name, value)
        try:
            from prefect.client.orchestration import get_client
            from prefect.client.schemas.actions import ArtifactCreate

            table = [{name: str(value) for name, value in row.describe().items() if value is not None} for row in rows]
            artifact = ArtifactCreate(key=self.key, type="table", data=json.dumps(table), description=DESCRIPTION)
            with get_client(sync_client=True) as client:
                client.create_artifact(artifact)
        except Exception as error:
            self.problem = str(error).partition("\n")[0] or type(error).__name__
