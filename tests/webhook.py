"""A real endpoint for notices, on this machine."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

USER, PASSWORD, TOKEN = "us3rname", "pa55word", "t0ken-in-the-path"


class Endpoint:
    """A webhook: the fields of every message that it took. Paths that hold `deny` or `hang` are what they say."""

    def __init__(self, port: int) -> None:
        self.address = f"{USER}:{PASSWORD}@127.0.0.1:{port}/{TOKEN}"
        self.taken: list[dict[str, str]] = []
        self.released = threading.Event()  # of those who hang

    @property
    def told(self) -> list[tuple[str, str]]:
        """The kind, as Apprise calls it, and the title of every message."""
        return [(message["type"], message["title"]) for message in self.taken]


@contextmanager
def webhook() -> Iterator[Endpoint]:
    """Serve for the length of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"])).decode()
            if "hang" in self.path:
                endpoint.released.wait(30)
            if "deny" in self.path:
                self.send_error(401)
                return
            is_json = self.headers["Content-Type"] == "application/json"
            form = {name: values[0] for name, values in parse_qs(content).items()}
            endpoint.taken.append(json.loads(content) if is_json else form)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        endpoint = Endpoint(server.server_port)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield endpoint
        endpoint.released.set()
        server.shutdown()
