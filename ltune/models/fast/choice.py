"""The quickest setting that fits the memory there is, and what to give up where memory runs out after all."""

from collections.abc import Callable
from dataclasses import replace

from ltune.models.fast.layer import Keep
from ltune.models.fast.memory import Setting, needed, on_host
from ltune.models.fast.shape import Shape

USABLE = 0.93  # of the free memory; the rest goes to fragments
REFUSED = 1.10  # of the free memory: what is beyond it is not tried
USABLE_HOST = 0.8  # of the host's free memory: what waits there cannot be swapped out
# Of an H200; only their proportions matter, to compare settings with each other
PRODUCTS = 7e14  # operations a second
DEQUANTIZING = 2.5e12  # bytes a second
COPYING = 1e11  # bytes a second to the host and back, as far as it is noticed: most of it goes on behind the products
LAUNCHING = 2.5e-3  # seconds a layer, forward and backward: no micro-batch is quicker, however small
STARTING = 5e-3  # seconds that each further micro-batch costs beside that


def seconds(shape: Shape, setting: Setting, window: int) -> float:
    """About how long a step of ``window`` tokens takes, to compare settings."""
    again = {Keep.ALL: 0.0, Keep.ATTENTION: 1.0, Keep.NOTHING: 1.25}[setting.keep]  # of the forward
    again *= 1 - setting.kept_layers / shape.layers
    micro_batches = -(-window // setting.tokens)
    tokens = window / micro_batches
    products = (4 + 2 * again) * shape.weights * shape.layers * tokens / PRODUCTS
    dequantizing = 0 if setting.cached else (2 + again) * 2.5 * shape.quantized * shape.layers / DEQUANTIZING
    copying = 4 * tokens * shape.hidden * shape.size * shape.layers / COPYING if setting.offload else 0
    return micro_batches * (max(products, LAUNCHING * shape.layers * (1 + again / 3)) + dequantizing + copying + STARTING)


def candidates(shape: Shape, window: int, longest: int, *, cached: bool = True, again: bool = False) -> list[Setting]:
    """All settings that ``choose`` looks at; the arguments are its own."""
    sizes = sorted({max(longest, -(-window // parts)) for parts in (1, 2, 4, 8, 16, 32, 64)})
    levels = [Keep.ATTENTION] if again else [Keep.ALL, Keep.ATTENTION]
    held = sorted({cached and shape.quantized > 0, False})
    waiting = Setting(longest, Keep.ATTENTION, cached=False, offload=True)  # a long row's attention is what costs most
    return [*(Setting(size, keep, hold) for size in sizes for keep in levels for hold in held), waiting, *map(least, sizes)]


def choose(
    shape: Shape, free: int, window: int, longest: int, *, cached: bool = True, again: bool = False, host: int | None = None
) -> Setting:
    """The quickest setting that fits; the least one where none does.

    Args:
        shape: Of the model.
        free: Bytes.
        window: Tokens of the largest step on this device.
        longest: Tokens of the longest row: no micro-batch can be smaller.
        cached: Whether dequantized weights may be held.
        again: Whether activations must be computed again, as ``gradient_checkpointing: true`` asks.
        host: Free bytes of the host's memory; None: enough.
    """
    room = USABLE * free

    def fits(one: Setting) -> bool:
        there = host is None or on_host(shape, one) <= USABLE_HOST * host
        return there and needed(shape, one, window=window, longest=longest) <= room

    each = (_most_kept(one, shape, fits, again) for one in candidates(shape, window, longest, cached=cached, again=again))
    quick = [
        (seconds(shape, one, window), needed(shape, one, window=window, longest=longest), number, one)
        for number, one in enumerate(each) if one
    ]  # fmt: skip
    return min(quick)[-1] if quick else least(longest)


def _most_kept(setting: Setting, shape: Shape, fits: Callable[[Setting], bool], again: bool) -> Setting | None:
    """The same with as many layers that keep everything as fit; None where not even it itself fits."""
    most = shape.layers - 1 if setting.keep is Keep.ATTENTION and not again else 0
    return next((one for layers in range(most, -1, -1) if fits(one := replace(setting, kept_layers=layers))), None)


def quickest(shape: Shape, window: int, *, again: bool = False) -> Setting:
    """The setting that would be chosen if memory were no matter."""
    return Setting(window, Keep.ATTENTION if again else Keep.ALL, cached=shape.quantized > 0)


def refusal(shape: Shape, setting: Setting, free: int, loaded: int, window: int, longest: int, host: int | None = None) -> str | None:
    """Why a run is not begun that would need more than 110% of what is free and what the model has taken, or more of the host's memory
    than is free; None where it is."""
    room, there = loaded + needed(shape, setting, window=window, longest=longest), loaded + free
    if room <= REFUSED * there:
        waiting = on_host(shape, setting)
        if host is None or waiting <= host:
            return None
        return (
            f"layers' inputs would take {waiting / 2**30:.1f} GiB of the host's memory, and {host / 2**30:.1f} GiB are free.\n"
            "Lower data.max_length;  --model.memory least  tries it all the same."
        )
    return (
        f"training needs {room / 2**30:.1f} GiB of the GPU's memory, and there are {there / 2**30:.1f} GiB.\n"
        "`ltune plan` with the same options says what to change;  --model.memory least  tries it all the same."
    )


def least(tokens: int) -> Setting:
    """The setting that needs the least memory."""
    return Setting(tokens, Keep.NOTHING, cached=False, offload=True, chunk=2048, head_chunk=512)


def smaller(setting: Setting, largest: int) -> Setting | None:
    """What to try after running out of memory; None where nothing is left to give up.

    Args:
        setting: Under which it happened.
        largest: Tokens of the largest micro-batch in it that has more than one row; 0 if none has.
    """
    if setting.cached:
        return replace(setting, cached=False)
    if setting.kept_layers:
        return replace(setting, kept_layers=setting.kept_layers // 2)
    if min(setting.tokens, largest) > 1:  # otherwise it would stay as it is, and be tried for ever
        return replace(setting, tokens=min(setting.tokens, largest) // 2)
    if setting.keep is Keep.ALL:
        return replace(setting, keep=Keep.ATTENTION)
    last = least(setting.tokens)
    return last if setting != last else None
