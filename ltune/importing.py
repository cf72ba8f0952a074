"""Heavy imports, sooner done: nothing of what is imported is garbage, but Python would walk it all again and again to find that out, which
takes it a fifth of the time."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Within it modules are imported. What is there then is not looked through until somebody calls ``gc.unfreeze``."""
    before, collects = len(sys.modules), gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > before:
            gc.freeze()
        if collects:
            gc.enable()
