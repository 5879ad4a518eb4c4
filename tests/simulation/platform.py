"""The simulated platform: deploys as Render does them, probes, routes, restarts what ended.

    new boots ─ all healthy ─► traffic is switched ─ some time ─► SIGTERM to the old ─ 30 s ─► SIGKILL
    failing 15 s: no traffic; 60 s: restarted; not healthy in time: the deploy is cancelled (PLATFORMS.md, Render)

Not simulated: a router that tries another instance when one refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.simulation.instance import Instance, Release

if TYPE_CHECKING:
    from tests.simulation.world import World

PROBE_SECONDS = 2.0
UNROUTED_AFTER_SECONDS = 15.0
RESTARTED_AFTER_SECONDS = 60.0
CANCELLED_AFTER_SECONDS = 90.0
GRACE_SECONDS = 30.0


@dataclass
class Slot:
    """A place for an instance, which a restart in place keeps."""

    host: str
    release: Release
    instance: Instance
    starts: int = 1
    healthy_at: float | None = None  # at the last probe
    failing_since: float | None = None
    is_retiring: bool = False


@dataclass
class Deploy:
    """A deploy that is under way: the new slots, and since when."""

    release: Release
    slots: list[Slot]
    began_at: float
    switched_at: float | None = None


@dataclass
class Platform:
    """All instances of the service, and the router in front of them."""

    world: World
    slots: list[Slot] = field(default_factory=list)
    routed: list[Slot] = field(default_factory=list)
    deploy: Deploy | None = None
    wanted: list[tuple[Release, int]] = field(default_factory=list)
    _hosts: int = 0

    def begin(self) -> None:
        """Starts to look after things."""
        self.world.agenda.after(PROBE_SECONDS * 0.5, self._look)

    def want(self, release: Release, count: int) -> None:
        """A deploy is asked for; it waits for the one under way."""
        self.world.history.note("platform", f"deploy of {release} with {count} wanted")
        self.wanted.append((release, count))

    def instances(self) -> list[Instance]:
        """All that live."""
        return [slot.instance for slot in self.slots if not slot.instance.is_dead]

    @property
    def is_quiet(self) -> bool:
        """Whether no deploy is under way or wanted."""
        return self.deploy is None and not self.wanted and not any(s.is_retiring for s in self.slots)

    # ------------------------------------------------------------------------------------------------------ the router

    def deliver(self, url: str, secret: str, body: bytes, reply: Callable[[int | None], None]) -> None:
        """As Telegram's Receiver."""
        target = "https://simulated.example"
        if not url.startswith(target):
            reply(None)  # somebody else's server
            return
        slots = self.routed or self.slots
        if not slots:
            reply(502)
            return
        slot = self.world.router_random.choice(slots)
        if slot.instance.is_dead:
            reply(502)
            return
        slot.instance.request(url.removeprefix(target).encode(), secret.encode(), body, reply)

    # ------------------------------------------------------------------------------------------------------ looking after

    def _look(self) -> None:
        now = self.world.agenda.now
        for slot in list(self.slots):
            self._probe(slot, now)
        self._go_on_with_deploy(now)
        if self.deploy is None:
            routable = [s for s in self.slots if not s.is_retiring and not self._is_unrouted(s, now)]
            self.routed = routable or [s for s in self.slots if not s.is_retiring]
        if self.deploy is None and self.wanted:
            self._begin_deploy(*self.wanted.pop(0))
        self.world.agenda.after(PROBE_SECONDS, self._look)

    def _probe(self, slot: Slot, now: float) -> None:
        self.world.note_claims(slot.instance)
        if slot.instance.is_healthy():
            slot.healthy_at, slot.failing_since = now, None
            return
        slot.failing_since = now if slot.failing_since is None else slot.failing_since
        lasts = now - slot.failing_since
        was_up = slot.healthy_at is not None
        if was_up and lasts >= RESTARTED_AFTER_SECONDS and not slot.is_retiring and not slot.instance.is_dead:
            self.world.history.note("platform", f"restarts {slot.host}, which fails its probes")
            slot.failing_since = now
            slot.instance.terminate()
            self.world.agenda.after(GRACE_SECONDS, slot.instance.kill)

    def _is_unrouted(self, slot: Slot, now: float) -> bool:
        return slot.healthy_at is None or (
            slot.failing_since is not None and now - slot.failing_since >= UNROUTED_AFTER_SECONDS
        )

    def _begin_deploy(self, release: Release, count: int) -> None:
        slots = [self._boot(release) for _ in range(count)]
        self.deploy = Deploy(release, slots, self.world.agenda.now)

    def _boot(self, release: Release) -> Slot:
        self._hosts += 1
        host = f"i{self._hosts}"
        slot = Slot(host, release, Instance(self.world, f"{host}-1", host, release))
        self.slots.append(slot)
        self.world.history.note("platform", f"boots {slot.instance.name} of {release.deploy_id}")
        return slot

    def _go_on_with_deploy(self, now: float) -> None:
        deploy = self.deploy
        if deploy is None:
            return
        if deploy.switched_at is None:
            if all(slot.healthy_at is not None and slot.failing_since is None for slot in deploy.slots):
                deploy.switched_at = now
                self.routed = list(deploy.slots)
                self.world.history.note("platform", f"traffic goes to {[s.host for s in deploy.slots]}")
            elif now - deploy.began_at >= CANCELLED_AFTER_SECONDS:
                self.world.history.note("platform", f"the deploy of {deploy.release.deploy_id} is cancelled")
                self._retire(deploy.slots)
                self.deploy = None
            return
        self.routed = [s for s in deploy.slots if not self._is_unrouted(s, now)] or list(deploy.slots)
        if now - deploy.switched_at >= self.world.plan.old_stays_seconds:
            self._retire([slot for slot in self.slots if slot not in deploy.slots])
            self.deploy = None

    def _retire(self, slots: list[Slot]) -> None:
        for slot in slots:
            if slot.is_retiring:
                continue
            slot.is_retiring = True
            if slot.instance.is_dead:
                self._remove(slot)
                continue
            slot.instance.terminate()
            self.world.agenda.after(GRACE_SECONDS, slot.instance.kill)

    def _remove(self, slot: Slot) -> None:
        if slot in self.slots:
            self.slots.remove(slot)
        if slot in self.routed:
            self.routed.remove(slot)

    def instance_ended(self, instance: Instance) -> None:
        """Its first process is gone: removed, or started again."""
        slot = next((s for s in self.slots if s.instance is instance), None)
        if slot is None:
            return
        if slot.is_retiring:
            self._remove(slot)
            return
        self.world.agenda.after(0.5 + 2.0 * self.world.platform_random.random(), self._restart, slot)

    def _restart(self, slot: Slot) -> None:
        if slot.is_retiring or slot not in self.slots:
            self._remove(slot)
            return
        slot.starts += 1
        slot.failing_since = None
        name = f"{slot.host}-{slot.starts}"
        slot.instance = Instance(self.world, name, slot.host, slot.release)
        self.world.history.note("platform", f"starts {slot.host} again as {name}")
