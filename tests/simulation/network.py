"""The network between hosts and the database: latency, partitions in either direction, and what TCP makes of them.

    cut          packets are dropped. What was sent is sent again by TCP, and arrives when the cut is healed, unless a side
                 has given up: the client after 2.5 to 5.5 s (measured: its tcp_user_timeout and keepalives), the server
                 after 12 s where the session asked for that (supervisor/lease.py), else not at all
    acknowledged a proxy answers for TCP and forwards nothing: neither side ever gives up by itself

Order within a connection is kept. Not modelled: loss without a cut, which TCP turns into latency.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.simulation.agenda import Agenda

CONNECT_SECONDS = 5.0
"""connect_timeout of every session (shared/database/session.py)."""

Deliver = tuple[Callable[..., object], tuple[Any, ...]]


@dataclass
class Route:
    """Between one host and the database."""

    latency_seconds: float = 0.002
    up_cut: bool = False
    down_cut: bool = False
    acknowledged: bool = False
    connections: list[Connection] = field(default_factory=list)

    @property
    def is_cut(self) -> bool:
        """In any direction."""
        return self.up_cut or self.down_cut


class Network:
    """All routes."""

    def __init__(self, agenda: Agenda, random: Random) -> None:
        """Everything is well."""
        self.agenda = agenda
        self.random = random
        self._routes: dict[str, Route] = {}

    def route(self, host: str) -> Route:
        """The way of a host to the database."""
        return self._routes.setdefault(host, Route())

    def cut(self, host: str, *, up: bool, down: bool, acknowledged: bool) -> None:
        """From now on packets of these directions are dropped."""
        route = self.route(host)
        route.up_cut, route.down_cut, route.acknowledged = up, down, acknowledged
        for connection in list(route.connections):
            connection.begin_to_doubt()

    def heal(self, host: str) -> None:
        """What TCP still has of what was sent arrives."""
        route = self.route(host)
        route.up_cut = route.down_cut = route.acknowledged = False
        for connection in list(route.connections):
            connection.flush()


class Connection:
    """One TCP connection to the database, seen from both ends."""

    def __init__(
        self,
        network: Network,
        host: str,
        *,
        on_lost: Callable[[str], object],
        server_gives_up_seconds: float | None,
    ) -> None:
        """Established.

        Args:
            network: of the simulation.
            host: of the client.
            on_lost: the client's side has ended, not by the client; called once, with the reason.
            server_gives_up_seconds: how long the server's side outlives a cut; None: for ever.
        """
        self.network = network
        self.client_open = True
        self.server_open = True
        self.on_gone: Callable[[], object] = lambda: None  # the server has noticed that the client is gone
        self._route = network.route(host)
        self._route.connections.append(self)
        self._on_lost = on_lost
        self._server_gives_up_seconds = server_gives_up_seconds
        self._up: deque[Deliver] = deque()
        self._down: deque[Deliver] = deque()
        self._up_at = self._down_at = 0.0
        if self._route.is_cut:
            self.begin_to_doubt()

    def to_server(self, do: Callable[..., object], *arguments: Any) -> None:
        """Sends; `do` happens where the server reads it."""
        if not self.client_open:
            return
        self._up.append((do, arguments))
        if not self._route.up_cut:
            self._up_at = self._after_latency(self._up_at, self._arrive_up)

    def to_client(self, do: Callable[..., object], *arguments: Any) -> None:
        """Sends; `do` happens where the client reads it."""
        if not self.server_open:
            return
        self._down.append((do, arguments))
        if not self._route.down_cut:
            self._down_at = self._after_latency(self._down_at, self._arrive_down)

    def close_by_client(self) -> None:
        """Its process has closed it, or is dead."""
        if not self.client_open:
            return
        self._up.append((self._hear_of_close_by_client, ()))
        self.client_open = False
        if not self._route.up_cut:
            self._up_at = self._after_latency(self._up_at, self._arrive_up)

    def close_by_server(self, reason: str) -> None:
        """The session was ended."""
        if not self.server_open:
            return
        self._down.append((self._lose, (reason,)))
        self.server_open = False
        if not self._route.down_cut:
            self._down_at = self._after_latency(self._down_at, self._arrive_down)

    def begin_to_doubt(self) -> None:
        """A cut begins: each side gives up in its time, if it lasts so long."""
        agenda, route = self.network.agenda, self._route
        if route.acknowledged:
            return
        agenda.after(self.network.random.uniform(2.5, 5.5), self._give_up_client)
        if self._server_gives_up_seconds is not None:
            agenda.after(self._server_gives_up_seconds, self._give_up_server)

    def flush(self) -> None:
        """The cut is over."""
        for _ in range(len(self._up)):
            self._up_at = self._after_latency(self._up_at, self._arrive_up)
        for _ in range(len(self._down)):
            self._down_at = self._after_latency(self._down_at, self._arrive_down)

    def _after_latency(self, not_before: float, do: Callable[[], object]) -> float:
        agenda = self.network.agenda
        latency = self._route.latency_seconds * (0.5 + self.network.random.random())
        moment = max(not_before, agenda.now + latency)
        agenda.at(moment, do)
        return moment

    def _arrive_up(self) -> None:
        # A packet that was under way when the cut came is dropped, and sent again when it is over.
        if self._route.up_cut or not self._up:
            return
        do, arguments = self._up.popleft()
        if self.server_open:
            do(*arguments)
        self._forget_if_over()

    def _arrive_down(self) -> None:
        if self._route.down_cut or not self._down:
            return
        do, arguments = self._down.popleft()
        if self.client_open:
            do(*arguments)
        elif self.server_open:
            self._hear_of_close_by_client()  # its kernel says so, also where a first word of it was lost
        self._forget_if_over()

    def _hear_of_close_by_client(self) -> None:
        if self.server_open:
            self.server_open = False
            self.on_gone()

    def _lose(self, reason: str) -> None:
        if self.client_open:
            self.client_open = False
            self._on_lost(reason)

    def _give_up_client(self) -> None:
        if self._route.is_cut and not self._route.acknowledged and self.client_open:
            self._up.append((self._hear_of_close_by_client, ()))
            self._lose("no answer from the server in time")

    def _give_up_server(self) -> None:
        if self._route.is_cut and not self._route.acknowledged and self.server_open:
            self._hear_of_close_by_client()

    def _forget_if_over(self) -> None:
        if not self.client_open and not self.server_open and self in self._route.connections:
            self._route.connections.remove(self)
