"""Requests become batches, on one event loop: greedy, counted in rows, bounded in rows and bytes.

Greedy: whatever is queued when the session is free makes the next batch, and nobody waits for company. Requests that
arrive while a batch runs are read in one turn of the loop and make the next one, so batches grow with the load.
A batch that is expected to be short runs on the loop itself: the hop to a thread and back would cost more than it.

Rows of different buckets never share a batch (``Ticket.bucket``; the epsilon, in adaptive mode). A request larger than
a batch is split. When a batch fails, its members run alone, so that one poisonous request fails alone. Requests whose
client has gone, or whose time is up, are dropped before they cost anything.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from lipdeploy.serve.problems import RequestProblem

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]
BUSY_SECONDS = 0.05  # how long ago a queue of several still counts as "busy just now"
#: Weight of a measurement below and above the estimate: on a crowded machine a batch is now and then interrupted, and
#: that says nothing about how long it takes.
BELOW, ABOVE = 0.2, 0.02


@dataclass(frozen=True)
class Limits:
    """The settings of one queue; see ``Settings``."""

    max_batch_rows: int = 64
    max_queue_rows: int = 1024
    max_queue_bytes: int = 256 * 2**20
    delay_seconds: float = 0.0
    inline_seconds: float = 0.005


class Watch(Protocol):
    """Who counts what the queue does."""

    def batch(self, rows: int, seconds: float, result: Any) -> None:
        """A batch came out well; ``result`` is what ``run`` gave."""

    def waited(self, seconds: float) -> None:
        """A request left the queue."""

    def depth(self, rows: int) -> None:
        """So many rows are waiting now."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows ``start`` to ``stop`` of what a batch gave."""

    result: Any
    start: int
    stop: int


@dataclass(slots=True, eq=False)
class Ticket:
    """A request in the queue."""

    feeds: Feeds
    rows: int
    size: int
    epsilon: float | None
    bucket: Hashable
    future: asyncio.Future[list[Part]]
    deadline: float | None
    gone: Callable[[], bool] | None
    since: float
    taken: int = 0
    parts: list[Part] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None
    queued_seconds: float = 0.0
    done: Callable[[], None] | None = None

    def when_done(self, done: Callable[[], None]) -> None:
        """Call ``done`` as soon as the future is done, in the same turn of the loop."""
        self.done = done
        if self.future.done():
            self._tell()

    def end(self, error: BaseException | None = None) -> None:
        """The parts are complete, or there was an error."""
        if error is None:
            self.future.set_result(self.parts)
        else:
            self.future.set_exception(error)
        if self.timer is not None:
            self.timer.cancel()
        self._tell()

    def _tell(self) -> None:
        """Whatever goes wrong with one request's answer, the others of its batch must get theirs.

        What is called is let go of: it holds this ticket in turn, and the model.
        """
        done, self.done = self.done, None
        try:
            if done is not None:
                done()
        except Exception as error:
            what = {"message": "an answer could not be delivered", "exception": error}
            asyncio.get_running_loop().call_exception_handler(what)


@dataclass(frozen=True, slots=True)
class _Slice:
    ticket: Ticket
    start: int
    stop: int


class Batcher:
    """The queue in front of one session.

    ``run(feeds, epsilon)`` answers a batch; it is called on the loop or in ``executor``, one call at a time.
    """

    def __init__(
        self, run: Callable[[Feeds, float | None], Any], limits: Limits, watch: Watch, executor: Executor | None = None
    ) -> None:
        self._run, self._limits, self._watch, self._executor = run, limits, watch, executor
        self._waiting: dict[Hashable, deque[Ticket]] = {}
        self._rows = 0
        self._bytes = 0
        self._running = False
        self._scheduled: asyncio.Handle | None = None
        self._crowded = -1e9  # when a batch last found company
        self._seconds: dict[int, float] = {}

    @property
    def queued_rows(self) -> int:
        """Rows that wait."""
        return self._rows

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._rows and not self._running

    def measured(self, rows: int, seconds: float) -> None:
        """Tell how long a batch of ``rows`` took."""
        bucket = rows.bit_length()
        known = self._seconds.get(bucket)
        weight = BELOW if known is not None and seconds < known else ABOVE
        self._seconds[bucket] = seconds if known is None else known + weight * (seconds - known)

    def expected_seconds(self, rows: int) -> float:
        """How long a batch of ``rows`` should take; infinite where nothing is known."""
        return self._seconds.get(rows.bit_length(), float("inf"))

    def submit(
        self,
        feeds: Feeds,
        rows: int,
        *,
        epsilon: float | None = None,
        bucket: Hashable = None,
        deadline: float | None = None,
        gone: Callable[[], bool] | None = None,
    ) -> Ticket:
        """Queue ``rows`` rows; the ticket's future gives the parts of the batches that answer them, in order.

        ``deadline`` is in ``time.perf_counter()`` seconds; ``gone()`` tells whether the client still listens.
        Raises ``RequestProblem``: 503 where the queue is full, 413 where it could never hold the request.
        """
        size = sum(array.nbytes for array in feeds.values())
        self._check_room(rows, size)
        loop, now = asyncio.get_running_loop(), time.perf_counter()
        ticket = Ticket(feeds, rows, size, epsilon, bucket, loop.create_future(), deadline, gone, now)
        if deadline is not None:
            ticket.timer = loop.call_later(max(0.0, deadline - now), _expire, ticket)
        queue = self._waiting.get(bucket)
        if queue is None:
            queue = self._waiting[bucket] = deque()
        queue.append(ticket)
        self._rows += rows
        self._bytes += size
        self._watch.depth(self._rows)
        if not self._running and self._scheduled is None:
            self._scheduled = loop.call_soon(self._turn)
        return ticket

    def _check_room(self, rows: int, size: int) -> None:
        limits = self._limits
        if rows > limits.max_queue_rows or size > limits.max_queue_bytes:
            most = f"{limits.max_queue_rows} rows or {limits.max_queue_bytes} bytes"
            raise RequestProblem(413, f"{rows} rows of {size} bytes: a request may have at most {most}", reason="size")
        if self._rows + rows > limits.max_queue_rows or self._bytes + size > limits.max_queue_bytes:
            message = f"overloaded: {self._rows} rows are waiting; try again later"
            raise RequestProblem(503, message, retry_after=self._patience(), reason="queue")

    def _patience(self) -> int:
        """Whole seconds in which the present queue should be done."""
        batch = min(self._limits.max_batch_rows, max(self._rows, 1))
        seconds = self._rows / batch * min(self.expected_seconds(batch), 10.0)
        return max(1, min(60, int(seconds + 1.0)))

    # Turns.

    def _turn(self) -> None:
        self._scheduled = None
        if self._running:
            return
        if self._should_wait():
            self._scheduled = asyncio.get_running_loop().call_later(self._limits.delay_seconds, self._turn_now)
            return
        self._turn_now()

    def _should_wait(self) -> bool:
        """Whether more rows are worth the opted-in delay: there was company a moment ago, and a batch has room."""
        delay = self._limits.delay_seconds
        recently = time.perf_counter() - self._crowded < BUSY_SECONDS + delay
        return delay > 0.0 and recently and self._rows < self._limits.max_batch_rows

    def _turn_now(self) -> None:
        self._scheduled = None
        if self._running:
            return
        slices = self._take()
        if not slices:
            return
        loop = asyncio.get_running_loop()
        rows = sum(part.stop - part.start for part in slices)
        if self.expected_seconds(rows) <= self._limits.inline_seconds:
            self._deliver(self._answer(slices))
            if self._rows and self._scheduled is None:
                self._scheduled = loop.call_soon(self._turn)
            return
        self._running = True
        work = loop.run_in_executor(self._executor, self._answer, slices)
        work.add_done_callback(self._finished)

    def _finished(self, work: asyncio.Future[list[tuple[_Slice, Any]]]) -> None:
        self._running = False
        self._deliver(work.result())
        if self._rows:
            self._turn()

    def _take(self) -> list[_Slice]:
        """The next batch: the oldest tickets of one bucket, as many rows as fit."""
        slices: list[_Slice] = []
        now = time.perf_counter()
        while self._waiting and not slices:
            bucket, queue = next(iter(self._waiting.items()))
            room = self._limits.max_batch_rows
            while queue and room:
                ticket = queue[0]
                if not self._alive(ticket, now):
                    queue.popleft()
                    self._left(ticket, ticket.rows - ticket.taken)
                    continue
                start = ticket.taken
                stop = min(ticket.rows, start + room)
                if start == 0:
                    ticket.queued_seconds = now - ticket.since
                    self._watch.waited(ticket.queued_seconds)
                ticket.taken, room = stop, room - (stop - start)
                slices.append(_Slice(ticket, start, stop))
                if stop == ticket.rows:
                    queue.popleft()
                self._left(ticket, stop - start)
            del self._waiting[bucket]
            if queue:  # behind the other buckets, so that none starves
                self._waiting[bucket] = queue
        if len(slices) > 1 or self._rows:
            self._crowded = now
        self._watch.depth(self._rows)
        return slices

    def _left(self, ticket: Ticket, rows: int) -> None:
        self._rows -= rows
        if ticket.taken == ticket.rows or ticket.future.done():
            self._bytes -= ticket.size
            ticket.size = 0

    @staticmethod
    def _alive(ticket: Ticket, now: float) -> bool:
        if ticket.future.done():
            return False
        if ticket.deadline is not None and now > ticket.deadline:
            _expire(ticket)
            return False
        if ticket.gone is not None and ticket.gone():
            ticket.end(RequestProblem(499, "the client has gone", reason="gone"))
            return False
        return True

    def _deliver(self, answers: Sequence[tuple[_Slice, Any]]) -> None:
        for part, answer in answers:
            ticket = part.ticket
            if ticket.future.done():
                continue
            if isinstance(answer, BaseException):
                ticket.end(answer)
                continue
            ticket.parts.append(answer)
            if part.stop == ticket.rows:
                ticket.end()

    # The work, on whatever thread.

    def _answer(self, slices: list[_Slice]) -> list[tuple[_Slice, Any]]:
        """Each slice with its ``Part``, or with the exception that it caused by itself."""
        try:
            result = self._together(slices)
        except Exception as error:
            if len(slices) == 1:
                return [(slices[0], error)]
            return [answer for part in slices for answer in self._answer([part])]
        answers, row = [], 0
        for part in slices:
            count = part.stop - part.start
            answers.append((part, Part(result, row, row + count)))
            row += count
        return answers

    def _together(self, slices: list[_Slice]) -> Any:
        first = slices[0]
        if len(slices) == 1:
            feeds = first.ticket.feeds
            if first.stop - first.start < first.ticket.rows:
                feeds = {name: array[first.start : first.stop] for name, array in feeds.items()}
        else:
            feeds = {
                name: np.concatenate([part.ticket.feeds[name][part.start : part.stop] for part in slices])
                for name in first.ticket.feeds
            }
        rows = sum(part.stop - part.start for part in slices)
        started = time.perf_counter()
        result = self._run(feeds, first.ticket.epsilon)
        seconds = time.perf_counter() - started
        self.measured(rows, seconds)
        self._watch.batch(rows, seconds, result)
        return result


def _expire(ticket: Ticket) -> None:
    if not ticket.future.done():
        ticket.end(RequestProblem(504, "the deadline passed before the answer was ready", reason="deadline"))
