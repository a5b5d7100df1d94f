"""The few routes of the Hugging Face hub that a push and a download take, for the real client to talk to: a server on this
machine that keeps one repository's files in memory."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c" * 40


@contextmanager
def serve() -> Iterator[tuple[str, dict[str, bytes]]]:
    """The server's address, and the repository's files."""
    files: dict[str, bytes] = {}

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self, body, status=200, **headers):
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Length": len(body), "X-Repo-Commit": COMMIT, **headers}.items():
                self.send_header(name, str(value))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self):
            route = self.path.partition("?")[0]
            name = route.rpartition("/")[2]
            if "/resolve/" in route and name in files:
                self.answer(files[name], ETag=f'"{sha1(files[name]).hexdigest()}"')
            elif "/tree/" in route:
                sizes = {name: (len(data), sha1(data).hexdigest()) for name, data in files.items()}
                self.answer([{"type": "file", "path": n, "size": size, "oid": oid} for n, (size, oid) in sizes.items()])
            elif "/revision/" in route and files:
                self.answer({"id": "user/name", "sha": COMMIT, "siblings": [], "private": False, "tags": []})
            elif route == "/":
                self.answer({})
            else:
                self.answer({}, 404, **{"X-Error-Code": "RepoNotFound"})

        do_HEAD = do_GET  # noqa: N815

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Authorization") != "Bearer hf_secret":
                self.send_error(401)
            elif self.path == "/api/repos/create":
                self.answer({"url": f"{address}/user/name"})
            elif "/preupload/" in self.path:
                modes = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
                self.answer({"files": [{"path": file["path"], **modes} for file in json.loads(body)["files"]]})
            elif "/commit/" in self.path:
                entries = [json.loads(line) for line in body.splitlines()]
                pushed = [entry["value"] for entry in entries if entry["key"] == "file"]
                files.update({file["path"]: base64.b64decode(file["content"]) for file in pushed})
                self.answer({"commitOid": COMMIT, "commitUrl": f"{address}/user/name/commit/{COMMIT}"})
            else:
                self.answer({"errors": [], "warnings": []})  # /api/validate-yaml: of the model card

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield address, files
    finally:
        server.shutdown()
        server.server_close()
