"""A web server in this process that behaves as badly as a test wants."""

import http.server
import re
import threading
from dataclasses import dataclass, field


@dataclass
class Page:
    """The server's answer at one address.

    Args:
        content: the file.
        etag: its validator; None sends none.
        ranges: whether a part of the file can be requested.
        breaks_after: numbers of bytes after which the connections of the first requests break.
        length: whether the length of the file is sent.
        stalls: whether a connection that would break stays open without a byte instead.
        headers: further ones; they replace those of the same name.
    """

    content: bytes
    etag: str | None = '"1"'
    ranges: bool = True
    breaks_after: list[int] = field(default_factory=list)
    status: int = 200
    type: str = "application/octet-stream"
    length: bool = True
    stalls: bool = False
    headers: dict[str, str] = field(default_factory=dict)


class LocalServer:
    """A web server in a thread of this process, at ``address``; ``closing`` ends what its handler waits for."""

    def __init__(self, handler: type[http.server.BaseHTTPRequestHandler]):
        handler.log_message = lambda *_: None
        self.closing = threading.Event()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """Refuses every connection from now on; does nothing the second time."""
        if self.closing.is_set():
            return
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Server(LocalServer):
    """Page ``server.pages["a.zip"]`` is at ``server.url("a.zip")``; ``server.requests`` lists the requests."""

    def __init__(self):
        self.pages: dict[str, Page] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path.lstrip("/")
                outer.requests.append((name, dict(self.headers)))
                if name not in outer.pages:
                    return self.send_error(404)
                page = outer.pages[name]
                if page.status >= 400:
                    return self.send_error(page.status)
                body, start, total = page.content, 0, len(page.content)
                asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
                fresh = self.headers.get("If-Range") in (None, page.etag)
                if asked and page.ranges and fresh:
                    start = int(asked[1])
                    if start >= total:
                        self.send_response(416)
                        self.send_header("Content-Range", f"bytes */{total}")
                        self.send_header("Content-Length", "0")
                        return self.end_headers()
                    body = body[start:]
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
                else:
                    self.send_response(page.status)
                if page.etag:
                    self.send_header("ETag", page.etag)
                self.send_header("Content-Type", page.type)
                if page.length and "Content-Length" not in page.headers:
                    self.send_header("Content-Length", str(len(body)))
                for key, value in page.headers.items():
                    self.send_header(key, value)
                self.end_headers()
                broken = bool(page.breaks_after)
                if broken:
                    body = body[: page.breaks_after.pop(0)]
                    self.close_connection = True
                self.wfile.write(body)
                if broken and page.stalls:
                    outer.closing.wait(30)

        super().__init__(Handler)

    def url(self, name: str) -> str:
        return f"{self.address}/{name}"

    def asked(self, name: str) -> list[str | None]:
        """The Range header of every request for ``name``."""
        return [headers.get("Range") for n, headers in self.requests if n == name]
