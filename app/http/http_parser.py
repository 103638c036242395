"""A stricter h11: it refuses requests that could be read in two ways, or that cost more than their size suggests."""

from __future__ import annotations

import h11

LONGEST_HEAD_BYTES = 32 * 1024  # request line and headers; browsers send the cookies of all local ports
MOST_HEADERS = 200
SMALL_PIECE_BYTES = 64
MOST_SMALL_PIECES = 10_000  # of a chunked body: each costs as much as a large piece
# http.cookies before 3.11.10 takes quadratic time for them: 30,000 blocked all requests for ten seconds.
MOST_COOKIE_BACKSLASHES = 500

Event = h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]


class StrictParser(h11.Connection):
    """The server's side of one connection. `next_event` raises `h11.RemoteProtocolError` for a refused request."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, LONGEST_HEAD_BYTES)
        self._pieces = self._bytes = 0

    def next_event(self) -> Event:
        event = super().next_event()
        if type(event) is h11.Request:
            self._pieces = self._bytes = 0
            return _checked(event)
        if type(event) is h11.Data:
            self._pieces += 1
            self._bytes += len(event.data)
            if self._pieces > MOST_SMALL_PIECES and self._bytes < self._pieces * SMALL_PIECE_BYTES:
                raise h11.RemoteProtocolError("The body arrives in too many small pieces.")
        return event


def _checked(request: h11.Request) -> h11.Request:
    """The request with a path as its target. Cookies that cost too much are dropped, since they may belong to another
    program. Raises `h11.RemoteProtocolError`."""
    headers = [
        (name, value)
        for name, value in request.headers
        if not (name == b"cookie" and value.count(b"\\") > MOST_COOKIE_BACKSLASHES)
    ]
    names = [name for name, _ in headers]
    if not request.http_version.startswith(b"1."):
        raise h11.RemoteProtocolError("Only HTTP/1 is supported.", error_status_hint=505)
    if len(names) > MOST_HEADERS:
        raise h11.RemoteProtocolError("Too many headers.", error_status_hint=431)
    if b"transfer-encoding" in names and b"content-length" in names:
        # RFC 9112, 6.3: it may be an attempt to smuggle a request.
        raise h11.RemoteProtocolError("The request declares two lengths.")
    target = _path(request)
    return h11.Request(method=request.method, target=target, headers=headers, http_version=request.http_version)


def _path(request: h11.Request) -> bytes:
    """The target without the scheme and host that clients of proxies put before it."""
    if request.target.startswith(b"/") or (request.target == b"*" and request.method == b"OPTIONS"):
        return request.target
    scheme, _, rest = request.target.partition(b"://")
    host, slash, path = rest.partition(b"/")
    if scheme.lower() not in (b"http", b"https") or not host:
        raise h11.RemoteProtocolError("The target is not a path.")
    if any(name == b"host" and value.lower() != host.lower() for name, value in request.headers):
        raise h11.RemoteProtocolError("Target and Host name different hosts.")
    return slash + path or b"/"
