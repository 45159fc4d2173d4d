"""A W&B server as a client sees it, in this process, which fails as a test wants."""

import gzip
import http.server
import json
from contextlib import contextmanager

from tests.server import LocalServer

PROJECT = {"id": "project", "name": "longwave", "entity": {"id": "entity", "name": "me"}}


class WandbServer(LocalServer):
    """What it was told is in ``runs`` (variables of UpsertBucket), ``history``, ``exits`` (codes) and ``preempted``.

    ``fault`` may be set at any time: None, "stall" (no answer), "500", "drop" (the connection is closed), "deny" (401).
    """

    def __init__(self, fault: str | None = None):
        self.fault, self.runs, self.history, self.exits, self.preempted = fault, [], [], [], False
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                body = self.body()
                if outer.fault == "stall":
                    outer.closing.wait()
                if outer.fault in ("stall", "drop"):
                    self.close_connection = True
                    return
                status = {"500": 500, "deny": 401}.get(outer.fault, 200)
                content = json.dumps(outer.told(self.path, body) if status == 200 else {}).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = answer

            def body(self) -> bytes:
                found = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                return gzip.decompress(found) if self.headers.get("Content-Encoding") == "gzip" else found

        super().__init__(Handler)
        self.url = self.address

    def told(self, path: str, body: bytes) -> dict:
        if path.endswith("/file_stream"):
            sent = json.loads(body)
            lines = sent.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
            self.history += [json.loads(line) for line in lines]
            if sent.get("complete"):
                self.exits.append(sent["exitcode"])
            self.preempted |= sent.get("preempting", False)
            return {}
        if path != "/graphql":
            return {}
        asked = json.loads(body)
        match asked.get("operationName"):
            case "Viewer":
                viewer = {"id": "user", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
                return {"data": {"viewer": viewer}}
            case "UpsertBucket":
                self.runs.append(asked["variables"])
                name = asked["variables"]["name"]
                run = {"id": name, "name": name, "displayName": name, "project": PROJECT, "historyLineCount": 0}
                return {"data": {"upsertBucket": {"bucket": run, "inserted": True}}}
            case "CreateRunFiles":
                files = [{"name": name, "uploadUrl": f"{self.url}/{name}"} for name in asked["variables"]["files"]]
                return {"data": {"createRunFiles": {"runID": "run", "uploadHeaders": [], "files": files}}}
        return {"data": {}}


@contextmanager
def wandb_server(fault: str | None = None):
    server = WandbServer(fault)
    try:
        yield server
    finally:
        server.close()
