"""Data sets' rows to tokens, in order, by this process or by several."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue

from ltune.data.chunks import Chunk, Made, Part, chunks_of, encode_chunk, refuse_bad_rows
from ltune.data.encode import Encoder
from ltune.data.read import BadRows
from ltune.data.rows import Row
from ltune.data.side_by_side import cores
from ltune.errors import ResourceError

FEW = 40  # chunks; up to so many, starting processes takes longer than it saves


def encode_rows(parts: list[Part], rows: type[Row], encoder: Encoder, processes: int | None, bad_rows: BadRows = "error") -> Iterator[Made]:
    """What became of all rows, chunk by chunk, in order.

    The first chunk is encoded before anything else, as what is wrong with a whole file shows there. Then all rows are looked at before
    the long work begins.

    Raises:
        UsageError: The first fault in the order of the rows; behind the first chunk, faults of form come before what a template refuses.
    """
    chunks = chunks_of(parts, rows, bad_rows)
    for first in islice(chunks, 1):
        yield encode_chunk(first, rows, encoder, bad_rows)
    head = list(islice(chunks, FEW))
    if head and bad_rows == "error":
        refuse_bad_rows(parts, rows)
    if processes is None:
        processes = cores() if len(head) == FEW else 1
    if processes <= 1:
        for chunk in chain(head, chunks):
            yield encode_chunk(chunk, rows, encoder, bad_rows)
    elif head:
        yield from _spread(chain(head, chunks), (rows, encoder, bad_rows), processes)


Settings = tuple[type[Row], Encoder, BadRows]  # that all chunks have in common


def _spread(chunks: Iterator[Chunk], settings: Settings, processes: int) -> Iterator[Made]:
    # Few chunks are under way at a time, so that memory stays flat however long the file
    context = multiprocessing.get_context("spawn")
    # The encoder is large, and would block the start of a process that dies at once; a queue is fed by a thread
    inbox = context.Queue()
    for _ in range(processes):
        inbox.put(settings)
    pool = ProcessPoolExecutor(processes, context, initializer=_start_worker, initargs=(inbox,))
    waiting: deque[Future[Made]] = deque()
    try:
        for chunk in chunks:
            waiting.append(pool.submit(_work, chunk))
            if len(waiting) > 2 * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise ResourceError("a tokenising process died, most likely for lack of memory.\nTry  --data.processes 1") from error
    finally:
        pool.shutdown(cancel_futures=True)
        inbox.cancel_join_thread()
        inbox.close()


_settings: Settings  # of a tokenising process


def _start_worker(inbox: Queue) -> None:
    global _settings
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a core a process
    _settings = inbox.get()
    parent = multiprocessing.parent_process()
    assert parent is not None
    # Otherwise it would wait for work for ever after a parent that was killed
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _work(chunk: Chunk) -> Made:
    return encode_chunk(chunk, *_settings)
