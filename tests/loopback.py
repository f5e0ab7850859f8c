"""A server on this machine that stands for the hosts of data sets: files by path, and the hub's way of listing them."""
import json
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SPOILT = {          # what a file becomes: status, content, the length that is claimed
    "truncated": lambda c: (200, c[:len(c) // 2], len(c) // 2),
    "corrupt": lambda c: (200, c[:len(c) // 2] + bytes([c[len(c) // 2] ^ 255]) + c[len(c) // 2 + 1:], len(c)),
    "forbidden": lambda c: (403, b"<html>no</html>", 15),
    "missing": lambda c: (404, b"", 0),
    "gone halfway": lambda c: (200, c[:len(c) // 2], len(c)),
}


class Loopback(ThreadingHTTPServer):
    """Serves `files`, {path: content}, from `address` until the `with` block ends.

    spoil[path] is a function of SPOILT; asked lists the paths that were fetched.  Paths below /datasets/ are the hub's,
    which is there only while `hub` is true.
    """

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.spoil, self.asked, self.hub = files, {}, [], False
        self.address = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def answer(self, path):
        if path.startswith(("/api/", "/datasets/")) and not self.hub:
            return 404, b"", 0
        if path.startswith("/api/"):
            start = path.split("?")[0].removeprefix("/api").replace("/tree/", "/resolve/") + "/"
            tree = [{"type": "file", "path": name.removeprefix(start), "size": len(content), "oid": "0"}
                    for name, content in self.files.items() if name.startswith(start)]
            content = json.dumps(tree).encode()
            return 200, content, len(content)
        content = self.files.get(path, b"")
        return self.spoil.get(path, lambda c: (200 if c else 404, c, len(c)))(content)


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        status, content, length = self.server.answer(self.path)
        self.send_response(status)
        for name, value in (("Content-Length", length), ("ETag", f'"{zlib.crc32(self.path.encode())}"'),
                            ("X-Repo-Commit", "0" * 40), ("Content-Type", "application/json")):
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.server.asked.append(self.path)
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass
