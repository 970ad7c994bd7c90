"""A web application served to this machine alone, to look at: what would change something is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

Application = Callable[..., Iterable[bytes]]

_TO_LOOK = {"GET", "HEAD"}


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a line for every request would bury ours."""


def server(application: Application, port: int) -> WSGIServer:
    """A server of `application` on a port of this machine (0: a free one), to be told to serve.

    Raises `OSError` where the port is taken.
    """
    return make_server("127.0.0.1", port, looked_at(application), server_class=_Server, handler_class=_Quiet)


def looked_at(application: Application) -> Application:
    """`application` without whatever changes something: a click there could delete a run's trials."""

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in _TO_LOOK:
            return application(environ, start)
        start("403 Forbidden", [("Content-Type", "application/json")])
        return [b'{"reason": "adamtune dashboard only shows trials; nothing is changed"}']

    return answer
