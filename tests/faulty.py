"""Faults, injected into real servers: a restart of PostgreSQL, and a proxy that spoils S3's answers."""

import http.client
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import psutil

from infra.local.stack import Stack


def restart_postgres(stack: Stack) -> None:
    """End PostgreSQL as a crash does; its supervisor starts it again."""
    process = psutil.Process(stack.state()["parts"]["postgres"]["pid"])
    os.kill(process.pid, signal.SIGQUIT)
    psutil.wait_procs([process], timeout=30)


Fault = Callable[[BaseHTTPRequestHandler, int, bytes], bool]


@contextmanager
def spoiled(endpoint: str, fault: Fault, *, as_host: str | None = None) -> Iterator[str]:
    """The address of a proxy to an HTTP server. `fault(handler, status, body)` may answer in the server's place.

    S3's requests are signed for the proxy's own name; a server that insists on its name is given it by `as_host`. The
    fault is called after the server has answered, and returns whether it has dealt with the request.
    """
    server = urlsplit(endpoint)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            upstream = http.client.HTTPConnection(str(server.hostname), server.port, timeout=30)
            upstream.request(self.command, self.path, body, dict(self.headers) | ({"Host": as_host} if as_host else {}))
            answer = upstream.getresponse()
            data = answer.read()
            upstream.close()
            if not fault(self, answer.status, data):
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in {"content-length", "transfer-encoding", "date", "server", "connection"}:
                        self.send_header(name, value)
                length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
                self.send_header("Content-Length", length or "0")
                self.end_headers()
                self.wfile.write(data)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = forward  # noqa: N815  # named by http.server

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{proxy.server_address[1]}"
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()
