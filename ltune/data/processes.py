"""Data sets' rows to tokens, in order, by this process or by several."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import chain, islice
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue

import numpy as np

from ltune.data.encode import Dropped, Encoded, Encoder
from ltune.data.formats import to_row
from ltune.data.rows import Row, Sequence
from ltune.data.sources import Record, Source, read
from ltune.errors import ResourceError

ONE_PROCESS = 20_000  # up to so many rows, starting processes takes longer than it saves
CHUNK = 500

Chunk = tuple[int, Source, list[Record]]  # number of the data set
Outcome = tuple[int, str, Encoded | Dropped]  # number of the data set, place


@dataclass(frozen=True)
class Part:
    """A data set cut to its first ``limit`` rows."""

    source: Source
    limit: int | None


def encode_rows(parts: list[Part], rows: type[Row], encoder: Encoder, processes: int | None) -> Iterator[Outcome]:
    """What became of each row, in order."""
    chunks = _chunks(parts)
    if processes is None:
        head = list(islice(chunks, ONE_PROCESS // CHUNK + 1))
        processes = 1 if sum(len(records) for _, _, records in head) <= ONE_PROCESS else len(os.sched_getaffinity(0))
        chunks = chain(head, chunks)
    if processes <= 1:
        for chunk in chunks:
            yield from _encode(chunk, rows, encoder)
    else:
        yield from _spread(chunks, rows, encoder, processes)


def _chunks(parts: list[Part]) -> Iterator[Chunk]:
    for number, part in enumerate(parts):
        records = islice(read(part.source), part.limit)
        while chunk := list(islice(records, CHUNK)):
            yield number, part.source, chunk


def _encode(chunk: Chunk, rows: type[Row], encoder: Encoder) -> list[Outcome]:
    number, source, records = chunk
    made = ((place, to_row(place, record, source.format, source.columns, source.tags, rows)) for place, record in records)
    return [(number, place, _compact(encoder.process(row))) for place, row in made]


def _compact(outcome: Encoded | Dropped) -> Encoded | Dropped:
    """Arrays travel between processes far faster than lists."""
    if isinstance(outcome, Dropped):
        return outcome
    arrays = [Sequence(np.array(made.input_ids, np.int32), np.array(made.labels, np.int32)) for made in outcome.sequences]
    return replace(outcome, sequences=arrays)


def _spread(chunks: Iterator[Chunk], rows: type[Row], encoder: Encoder, processes: int) -> Iterator[Outcome]:
    # Few chunks are under way at a time, so that memory stays flat however long the file
    context = multiprocessing.get_context("spawn")
    # The encoder is large, and would block the start of a process that dies at once; a queue is fed by a thread
    inbox = context.Queue()
    for _ in range(processes):
        inbox.put((rows, encoder))
    pool = ProcessPoolExecutor(processes, context, initializer=_start_worker, initargs=(inbox,))
    waiting: deque[Future] = deque()
    try:
        for chunk in chunks:
            waiting.append(pool.submit(_work, chunk))
            if len(waiting) > 2 * processes:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool as error:
        raise ResourceError("a tokenising process died, most likely for lack of memory.\nTry  --data.processes 1") from error
    finally:
        pool.shutdown(cancel_futures=True)
        inbox.cancel_join_thread()
        inbox.close()


_worker: tuple[type[Row], Encoder]  # of a tokenising process


def _start_worker(inbox: Queue) -> None:
    global _worker
    _worker = inbox.get()
    parent = multiprocessing.parent_process()
    assert parent is not None
    # Otherwise it would wait for work for ever after a parent that was killed
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _work(chunk: Chunk) -> list[Outcome]:
    return _encode(chunk, *_worker)
