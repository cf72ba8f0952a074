"""A moment in what a device does. The host says when it is to be, goes on, and may ask later how long ago another one was."""

import time

import torch


class Moment:
    """When the device is through with all that it was given before; on the CPU, now.

    Args:
        device: Where.
    """

    def __init__(self, device: torch.device) -> None:
        self._seconds = time.perf_counter()
        self._event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(device))

    def wait(self) -> None:
        """Until the device is there."""
        if self._event is not None:
            self._event.synchronize()

    def since(self, earlier: "Moment") -> float:
        """Seconds from an earlier moment of the same device; waits for this one."""
        if self._event is None or earlier._event is None:
            return self._seconds - earlier._seconds
        self.wait()
        return earlier._event.elapsed_time(self._event) / 1000
