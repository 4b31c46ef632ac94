"""A real HTTP server on 127.0.0.1 that answers as told, and fails as told.

    def chat(body: dict) -> dict: ...

    with FaultyServer({"/v1/chat/completions": chat}, faults=lambda number, path, body: None) as s:
        run(base_url=s.url)       # http://127.0.0.1:<port>/v1, also from child processes
        assert len(s.answered) == 1

A handler gets the JSON body of a POST ({} for a GET) and gives the answer's JSON, or
(status, JSON) for another status than 200. Every request has a thread of its own, so a handler may
sleep: answers then come in another order than asked. A path without a handler is a 404.

`faults` gets the request's number (0, 1, … in order of arrival), path and body, and names what goes
wrong, or None:

    "429", "500", …   that status, to be tried again at once
    "hang"            the socket stays open without an answer for `hang` seconds, or until close
    "cut"             Content-Length promises more than is sent; then the connection is closed
    "cut_json"        200, the right length, but the JSON stops half-way
    "garbage"         200 and HTML
    "empty"           200 and {}
    "close"           the connection is closed without a word
"""

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

Handler = Callable[[dict[str, Any]], Any]
KINDS = ("429", "500", "hang", "cut", "cut_json", "garbage", "empty", "close")


class Request(NamedTuple):
    path: str
    body: dict[str, Any]
    headers: dict[str, str]  # names in lower case


class FaultyServer(ThreadingHTTPServer):
    """`requests` is all that came; `answered` what got a handler's 200 in full."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        faults: Callable[[int, str, dict[str, Any]], str | None] = lambda number, path, body: None,
        hang: float = 600.0,
    ):
        super().__init__(("127.0.0.1", 0), _Connection)
        self.handlers, self.faults, self.hang = dict(handlers), faults, hang
        self.requests: list[Request] = []
        self.answered: list[Request] = []
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.root = f"http://127.0.0.1:{self.server_address[1]}"
        self.url = self.root + "/v1"

    def __enter__(self) -> "FaultyServer":
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """A client that was killed, or did not wait, is part of the tests."""


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one write
    server: FaultyServer

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.path, body, headers)
        with server.lock:
            number = len(server.requests)
            server.requests.append(request)
        fault = server.faults(number, self.path, body)
        if fault in ("hang", "close"):
            server.closing.wait(server.hang if fault == "hang" else 0.0)
            self.close_connection = True
        elif fault == "garbage":
            self._send(200, b"<html><body>Bad gateway</body></html>", kind="text/html")
        elif fault == "empty":
            self._send(200, b"{}")
        elif fault and fault.isdigit():
            self._send(int(fault), b'{"error": {"message": "told to fail"}}')
        else:
            handler = server.handlers.get(self.path, lambda body: (404, {"error": "no such path"}))
            given = handler(body)
            status, answer = given if isinstance(given, tuple) else (200, given)
            text = json.dumps(answer).encode()
            if fault == "cut_json":
                return self._send(status, text[: len(text) // 2])
            if fault == "cut":
                self.close_connection = True
                return self._send(status, text[: len(text) // 2], promised=len(text))
            if status == 200:
                server.answered.append(request)  # before sending: who has the answer finds it here
            self._send(status, text)

    do_GET = do_POST

    def _send(
        self, status: int, text: bytes, kind: str = "application/json", promised: int | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(promised or len(text)))
        if status >= 400:
            self.send_header("Retry-After", "0")
            self.send_header("Retry-After-Ms", "20")  # openai's client passes over a zero
        self.end_headers()
        self.wfile.write(text)
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        pass
