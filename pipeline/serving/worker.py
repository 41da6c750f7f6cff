"""A process that answers: `python -m pipeline.serving.worker`, started by `pipeline serve`.

It gets its settings and the number of its listening socket from the environment.
"""

import logging
import os
import socket
from dataclasses import replace
from logging.handlers import RotatingFileHandler

import uvicorn
from fastapi import APIRouter

from pipeline import logs
from pipeline.data.traffic import TRAFFIC
from pipeline.serving import feedback, inference_v2, page, webhook
from pipeline.serving.access import ACCESS
from pipeline.serving.app import create_app
from pipeline.serving.follower import Follower
from pipeline.serving.keys import load_or_create_key
from pipeline.serving.metrics import Metrics
from pipeline.serving.protocol import BoundedProtocol
from pipeline.serving.served_model import ModelHolder
from pipeline.serving.settings import NUMBER_VARIABLE, SOCKET_VARIABLE, ServeSettings, load_settings
from pipeline.serving.shadow import Shadow
from pipeline.serving.traffic_log import TrafficLog

KEEP_ALIVE_SECONDS = 60
STOP_SECONDS = 20  # for the requests in flight, when the process ends
MOST_CONNECTIONS = 4096
START_SECONDS = 5  # for the first model: another process takes the requests as long as this one accepts none
LOG_BYTES, LOG_FILES = 20_000_000, 3  # of the access log


def main() -> None:
    """Answer requests until a signal ends the process."""
    logs.configure("serve", "uvicorn")
    settings = load_settings()
    settings = replace(settings, key=load_or_create_key(settings.root))
    models, metrics = ModelHolder(), Metrics()
    _open_access_log(settings)
    Follower(settings, models, metrics).start(START_SECONDS)
    log = create_traffic_log(settings)
    shadow = None
    if log and settings.params.shadow == "challenger" and settings.version is None:
        challenger = ModelHolder()
        Follower(settings, challenger, metrics, shadow=True).start()
        shadow = Shadow(challenger, log)
    app = create_app(settings, models, shadow or log, find_routers(), metrics)
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS,
        limit_concurrency=MOST_CONNECTIONS,
    )
    listening = socket.socket(fileno=int(os.environ[SOCKET_VARIABLE]))
    uvicorn.Server(config).run(sockets=[listening])


def find_routers() -> list[APIRouter]:
    """Return the routers of the other endpoints of this room."""
    return [feedback.router, inference_v2.router, page.router, webhook.router]


def create_traffic_log(settings: ServeSettings) -> TrafficLog | None:
    """Create the traffic log of this process. None: `serve.log_share` is 0."""
    params = settings.params
    if not params.log_share:
        return None
    return TrafficLog(
        settings.root / TRAFFIC,
        share=params.log_share,
        keep_images=params.keep_images,
        keep_days=params.keep_days,
        limit_mb=params.log_limit_mb,
    )


def _open_access_log(settings: ServeSettings) -> None:
    """Write the access log to a file of this process, as lines of JSON."""
    file = settings.folder / f"access-{settings.port}-{os.environ[NUMBER_VARIABLE]}.jsonl"
    handler = RotatingFileHandler(
        file, maxBytes=LOG_BYTES, backupCount=LOG_FILES, delay=True, encoding="utf-8"
    )  # fmt: skip
    handler.setFormatter(logging.Formatter("%(message)s"))
    ACCESS.handlers, ACCESS.propagate = [handler], False
    ACCESS.setLevel(logging.INFO)


if __name__ == "__main__":
    main()
