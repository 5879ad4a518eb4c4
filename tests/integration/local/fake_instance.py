"""What a platform sees of an instance, and nothing else: for tests of the platform.

It answers every request with JSON about itself. Its environment says how it misbehaves: FAKE_HEALTH (status
of /healthz), FAKE_DEAF (ignores SIGTERM), FAKE_CHILD (leaves a child behind), FAKE_CRASH (ends at once), and
a request for /reset is answered by a closed connection, one for /busy by 503.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

connections: set[object] = set()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        """Counts the connection."""
        super().setup()
        connections.add(self.client_address)

    def do_GET(self) -> None:
        """Health, or an echo."""
        self._answer()

    def do_POST(self) -> None:
        """An echo."""
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path == "/reset":
            self.close_connection = True
            return
        status = {"/healthz": int(os.environ.get("FAKE_HEALTH", "200")), "/busy": 503}.get(self.path, 200)
        report = json.dumps(
            {
                "instance": os.environ["RENDER_INSTANCE_ID"],
                "commit": os.environ["RENDER_GIT_COMMIT"],
                "url": os.environ["RENDER_EXTERNAL_URL"],
                "given": os.environ.get("GIVEN"),
                "pid": os.getpid(),
                "method": self.command,
                "path": self.path,
                "body_size": len(body),
                "headers": {name.lower(): value for name, value in self.headers.items()},
                "connections": len(connections),
            }
        ).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(report)))
        self.send_header("X-Own", "kept")
        if self.path == "/busy":
            self.send_header("Retry-After", "2")
        self.end_headers()
        self.wfile.write(report)

    def log_message(self, format: str, *arguments: object) -> None:
        """Says nothing."""


def main() -> None:
    """Serves until SIGTERM."""
    if "FAKE_CRASH" in os.environ:
        sys.exit(7)
    if "FAKE_CHILD" in os.environ:
        # It leaves our process group, as a child that wants to survive would.
        child = subprocess.Popen(["/bin/sleep", "600"], start_new_session=True)
        print(f"child {child.pid}", flush=True)
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler)
    server.daemon_threads = True
    print(f"serving pid={os.getpid()}", flush=True)

    def stop(*_: object) -> None:
        if "FAKE_DEAF" not in os.environ:
            print("stopping", flush=True)
            threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, stop)
    server.serve_forever(poll_interval=0.05)


if __name__ == "__main__":
    main()
