"""Connections: how many there may be, which are ended for new ones, and how they are accepted.

asyncio accepts what comes until there are no descriptors left, and then writes a traceback for each try. Here a
connection without a request is ended for a new one once there are as many as there may be. If all have requests, a few
more are accepted, which are only asked for their state (`Edge`), and the rest wait in the kernel.
"""

import asyncio
import logging
import os
import resource
import socket
from collections.abc import Callable, Collection
from typing import Protocol

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 8192
"""What is set where the limit on descriptors and the operator allow more."""
EXTRA_CONNECTIONS = 4
"""Beyond the limit, for those who ask how the server is."""
ACCEPTS_AT_ONCE = 8
RESERVED_DESCRIPTORS = EXTRA_CONNECTIONS + ACCEPTS_AT_ONCE + 12
"""What must be left: for connections that are being ended, for text processes, for an engine that is started again."""
RETRY_SECONDS = 0.2
NEW_SECONDS = 0.25
"""What a new connection gets to send the first bytes of a request before it counts as idle."""
LOG_SECONDS = 1.0


class Evictable(Protocol):
    """A connection, as far as it matters here."""

    @property
    def idle_since(self) -> float | None:
        """Since when it has had no request, in seconds of the event loop; None while it has one."""

    @property
    def spoke(self) -> bool:
        """Whether it has ever sent anything."""

    def has_input(self) -> bool:
        """Whether bytes have arrived that are not read yet."""

    def evict(self) -> None:
        """End it at once, with an answer if a request has begun."""


def raise_descriptor_limit() -> None:
    """Let this process have all the descriptors that it may have without asking."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:
        logger.warning("the limit on open files stays as it is: %s", error)


def most_connections(asked: int | None) -> int:
    """How many connections there can be: as many as asked for, or as the process's open files leave."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = asked or MAX_CONNECTIONS
    if soft == resource.RLIM_INFINITY:
        return wanted
    room = max(1, soft - len(os.listdir("/dev/fd")) - RESERVED_DESCRIPTORS)
    if room < wanted:
        logger.log(
            logging.WARNING if asked or room < 64 else logging.INFO,
            "at most %d connections, since this process may open %d files: raise `ulimit -n` for more", room, soft,
        )  # fmt: skip
    return min(room, wanted)


class Acceptor:
    """Accepts connections on one listening socket, in the running event loop."""

    def __init__(
        self,
        listener: socket.socket,
        make_protocol: Callable[[bool], asyncio.Protocol],
        connections: Collection[Evictable],
        limit: int,
    ) -> None:
        """`make_protocol` is told whether a connection is one beyond `limit`; `connections` are those that are open."""
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._make_protocol = make_protocol
        self._connections = connections
        self._limit = limit
        self._connecting: set[asyncio.Task[None]] = set()
        self._unmade = 0
        """Accepted, and not yet among the connections."""
        self._retry: asyncio.TimerHandle | None = None
        self._logged = -LOG_SECONDS
        self._closed = False
        self._loop.add_reader(listener, self._accept)

    @property
    def _open(self) -> int:
        return len(self._connections) + self._unmade

    def close(self) -> None:
        """Accept no more."""
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        self._loop.remove_reader(self._listener)

    async def wait_closed(self) -> None:
        """Wait until what was accepted last is connected."""
        await asyncio.gather(*self._connecting)

    def _accept(self) -> None:
        for _ in range(ACCEPTS_AT_ONCE):
            if self._open >= self._limit + EXTRA_CONNECTIONS and self._longest_idle() is None:
                self._pause()
                return
            try:
                accepted, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._evict()
                self._pause()
                self._log(error)
                return
            accepted.setblocking(False)
            if self._open >= self._limit:
                self._evict()
            is_extra = self._open >= self._limit
            self._unmade += 1
            task = self._loop.create_task(self._connect(accepted, is_extra))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self, accepted: socket.socket, is_extra: bool) -> None:
        made = False

        def make() -> asyncio.Protocol:
            nonlocal made
            made = True
            self._unmade -= 1
            return self._make_protocol(is_extra)

        try:
            await self._loop.connect_accepted_socket(make, accepted)
        except OSError:
            accepted.close()
        finally:
            self._unmade -= not made

    def _longest_idle(self) -> Evictable | None:
        """The connection to be ended next: of those that never said anything, and then of others, the longest idle."""
        newest = self._loop.time() - NEW_SECONDS
        idle = [
            (connection.spoke, since, connection)
            for connection in self._connections
            if (since := connection.idle_since) is not None and (connection.spoke or since <= newest)
        ]
        idle.sort(key=lambda entry: entry[:2])
        return next((connection for _, _, connection in idle if not connection.has_input()), None)

    def _evict(self) -> None:
        """End the connection that has been without a request for longest."""
        if (connection := self._longest_idle()) is not None:
            connection.evict()

    def _pause(self) -> None:
        """Look again soon; until then the kernel keeps who comes."""
        self._loop.remove_reader(self._listener)
        self._retry = self._loop.call_later(RETRY_SECONDS, self._resume)

    def _resume(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._listener, self._accept)
            self._accept()

    def _log(self, error: OSError) -> None:
        now = self._loop.time()
        if now - self._logged >= LOG_SECONDS:
            self._logged = now
            logger.warning("no connection can be accepted: %s; %d are open", error.strerror, self._open)
