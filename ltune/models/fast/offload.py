"""Where a layer's input waits for the backward: on the GPU, or in the host's pinned memory, copied while the GPU computes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Shelf:
    """Keeps tensors where they are."""

    def put(self, x: Tensor) -> Any:
        """Hand a tensor over; the return value gets it back."""
        return x

    def take(self, ticket: Any) -> Tensor:
        """The tensor of a ticket; tickets come back last one first."""
        return ticket

    def forget(self) -> None:
        """Drop what waits, after a forward whose backward will not come."""


class HostShelf(Shelf):
    """Copies to pinned memory on a stream of its own, and fetches one tensor ahead on the way back. Buffers are used again.

    Args:
        device: The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self.free: list[Tensor] = []  # buffers of bytes; the largest step comes first, so that they serve all others
        self.waiting: list[_Ticket] = []  # in the order they were put; the last one is taken first

    def put(self, x: Tensor) -> "_Ticket":
        place = next((number for number, buffer in enumerate(self.free) if len(buffer) >= x.nbytes), None)
        buffer = torch.empty(x.nbytes, dtype=torch.uint8, pin_memory=True) if place is None else self.free.pop(place)
        host = buffer[: x.nbytes].view(x.dtype).view(x.shape)
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            host.copy_(x, non_blocking=True)
        x.record_stream(self.stream)
        ticket = _Ticket(host, lambda: self.free.append(buffer))
        self.waiting.append(ticket)
        return ticket

    def take(self, ticket: "_Ticket") -> Tensor:
        assert self.waiting[-1:] == [ticket], "inputs are taken back in the opposite order"
        self.waiting.pop()
        x = self._fetched(ticket)
        if self.waiting:
            self._fetch(self.waiting[-1])
        ticket.event.wait()
        x.record_stream(torch.cuda.current_stream())
        ticket.done()
        return x

    def forget(self) -> None:
        while self.waiting:
            self.waiting.pop().done()

    def _fetched(self, ticket: "_Ticket") -> Tensor:
        if ticket.fetched is None:
            self._fetch(ticket)
        assert ticket.fetched is not None
        return ticket.fetched

    def _fetch(self, ticket: "_Ticket") -> None:
        with torch.cuda.stream(self.stream):
            ticket.fetched = ticket.host.to(self.stream.device, non_blocking=True)
            ticket.event = torch.cuda.Event()
            ticket.event.record(self.stream)


class _Ticket:
    def __init__(self, host: Tensor, done: Callable[[], None]) -> None:
        self.host = host
        self.done = done
        self.fetched: Tensor | None = None
        self.event: Any = None
