"""Fairness between tenants and between requests: who waits for slots in which order, who gets how much of a step."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence

from .batch import Prefill


def fair_shares(budget: int, wants: Sequence[int]) -> list[int]:
    """Split `budget` max-min fairly: nobody gets more than he wants, and what one leaves goes to the others.

    So short prompts are done in the first step they get, and a long one takes what is left. Where the budget is below
    the number of takers, the first ones get a token each; `wants` is therefore in order of arrival.
    """
    shares = [0] * len(wants)
    takers = sorted(range(min(budget, len(wants))), key=wants.__getitem__)
    for done, taker in enumerate(takers):
        shares[taker] = min(wants[taker], -(-budget // (len(takers) - done)))
        budget -= shares[taker]
    return shares


class FairQueue:
    """Requests that wait for slots: first come, first served within a tenant, tenants in turn.

    The head keeps its turn until it fits, even where a later, smaller request would fit now: otherwise a request of
    many choices could wait for ever.
    """

    def __init__(self) -> None:
        self._tenants: OrderedDict[str, deque[Prefill]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        """Requests that have not begun; those that are parked have."""
        return self._size

    def __bool__(self) -> bool:
        return bool(self._tenants)

    def __contains__(self, prefill: Prefill) -> bool:
        return prefill in self._tenants.get(prefill.request.tenant, ())

    def waits(self, tenant: str) -> bool:
        return tenant in self._tenants

    def push(self, prefill: Prefill, *, first: bool = False) -> None:
        """Add one at the end of its tenant's; `first`: before all others."""
        waiting = self._tenants.setdefault(prefill.request.tenant, deque())
        if first:
            waiting.appendleft(prefill)
            self._tenants.move_to_end(prefill.request.tenant, last=False)
        else:
            waiting.append(prefill)
        self._size += not prefill.parked

    def put_back(self, prefill: Prefill) -> None:
        """Add one before those of its tenant, whose turn stays where it is: at the end of the round if it had none."""
        self._tenants.setdefault(prefill.request.tenant, deque()).appendleft(prefill)
        self._size += not prefill.parked

    @property
    def tenants(self) -> list[str]:
        """Those that wait, in the order of their turns."""
        return list(self._tenants)

    def head(self, tenant: str | None = None) -> Prefill | None:
        """Who is next, of all or of one tenant."""
        tenant = next(iter(self._tenants), "") if tenant is None else tenant
        return self._tenants[tenant][0] if tenant in self._tenants else None

    def pop(self, tenant: str | None = None) -> Prefill:
        """Take the head, of all or of one tenant, which goes to the end of the round."""
        tenant = next(iter(self._tenants)) if tenant is None else tenant
        waiting = self._tenants.pop(tenant)
        prefill = waiting.popleft()
        if waiting:
            self._tenants[tenant] = waiting
        self._size -= not prefill.parked
        return prefill

    def remove(self, prefill: Prefill) -> None:
        tenant = prefill.request.tenant
        waiting = self._tenants[tenant]
        waiting.remove(prefill)
        if not waiting:
            del self._tenants[tenant]
        self._size -= not prefill.parked
