"""Prompts that do nothing until a state they can start from is there: another computes it, or the disk is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..state.memory import Snapshot
from .prefix_plan import Plan


@dataclass(slots=True, eq=False)
class Load:
    """A state that is being read from the disk, for every prompt that waits for it."""

    position: int
    over: bool = False
    snapshot: Snapshot | None = None
    """Once it is over; None where the file was damaged."""


@dataclass(slots=True, eq=False)
class Lead:
    """Another prompt on its way to a position that both go through."""

    plan: Plan
    position: int

    @property
    def over(self) -> bool:
        return not self.plan.running or self.plan.prefill.position >= self.position


class Waits:
    """Who waits for what; whoever is ahead; what is being read.

    Attributes:
        leaders: plans whose prompts still run, in the order of planning.
    """

    def __init__(self) -> None:
        self.leaders: list[Plan] = []
        self._waiting: list[tuple[Plan, Lead | Load]] = []
        self._loads: dict[bytes, Load] = {}

    def over(self) -> list[tuple[Plan, Lead | Load]]:
        """Those that wait no longer, with what they have waited for; their prompts still run."""
        self.leaders = [plan for plan in self.leaders if plan.running]
        over = [entry for entry in self._waiting if entry[1].over]
        self._waiting = [entry for entry in self._waiting if not entry[1].over]
        return [entry for entry in over if entry[0].running]

    def begin(self, plan: Plan, what: Lead | Load) -> None:
        """Let a prompt wait."""
        plan.prefill.waits = True
        self._waiting.append((plan, what))

    def lead(self, plan: Plan, least: int) -> Lead | None:
        """The prompt under way that will reach the longest prefix of this one, of at least so many tokens; it ends a
        chunk there."""
        found = None
        for leader in self.leaders:
            if leader.order >= plan.order or leader.namespace != plan.namespace or not leader.running:
                continue
            for at in leader.places:
                if not max(least, leader.prefill.position + 1) <= at <= plan.length:
                    continue
                if plan.keys.get(at) != leader.keys[at]:
                    continue
                if at == plan.length != leader.length:
                    continue  # the state alone would not do: nothing can be drawn from it
                least, found = at + 1, Lead(leader, at)
        if found is not None:
            found.plan.prefill.cuts.add(found.position)
        return found

    def load(
        self,
        key: bytes,
        position: int,
        fetch: Callable[[bytes, Callable[[Snapshot | None], None]], None],
        found: Callable[[Snapshot], object],
    ) -> Load:
        """Have the state of a prefix read; whoever needs it while that goes on waits for the same.

        Args:
            fetch: reads it, now or later, and calls what it is given.
            found: called with it, where it is sound.
        """
        if key in self._loads:
            return self._loads[key]
        load = self._loads[key] = Load(position)

        def done(snapshot: Snapshot | None) -> None:
            del self._loads[key]
            load.over, load.snapshot = True, snapshot
            if snapshot is not None:
                found(snapshot)

        fetch(key, done)
        return load
