"""The queue: what shares a batch, what waits, what is turned away, and what one bad request does to the others."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipdeploy.serve import RequestProblem
from lipdeploy.serve.batcher import Batcher, Limits, Ticket

Array = np.ndarray[Any, Any]


class Doubling:
    """A session that doubles, writes down its batches, and can be held up or poisoned."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.epsilons: list[float | None] = []
        self.threads: set[int] = set()
        self.hold: threading.Event | None = None
        self.depths: list[int] = []

    def __call__(self, feeds: Any, epsilon: float | None) -> Array:
        x: Array = feeds["x"]
        self.threads.add(threading.get_ident())
        if self.hold is not None:
            assert self.hold.wait(10)
        if (x == 666).any():
            raise ValueError("poison")
        self.batches.append(len(x))
        self.epsilons.append(epsilon)
        return x * 2

    def batch(self, rows: int, seconds: float, result: Any) -> None: ...
    def waited(self, seconds: float) -> None:
        assert seconds >= 0.0

    def depth(self, rows: int) -> None:
        self.depths.append(rows)


def play(script: Callable[[Doubling, Callable[..., Batcher]], Coroutine[Any, Any, Any]]) -> Doubling:
    """Run ``script(session, batcher)``; ``batcher(inline=…, **limits)`` makes the queue."""
    session = Doubling()

    async def run() -> None:
        with ThreadPoolExecutor(1) as executor:

            def batcher(inline: bool = True, **limits: Any) -> Batcher:
                queue = Batcher(session, Limits(inline_seconds=1.0 if inline else 0.0, **limits), session, executor)
                for power in range(12):
                    queue.measured(2**power, 0.01)
                return queue

            await script(session, batcher)

    asyncio.run(run())
    return session


def rows(*values: float) -> dict[str, Array]:
    return {"x": np.array(values)}


async def values(ticket: Ticket) -> list[float]:
    parts = await ticket.future
    return [float(x) for part in parts for x in part.result[part.start : part.stop]]


@pytest.mark.parametrize("inline", [True, False])
def test_what_is_queued_together_runs_together(inline: bool) -> None:
    async def script(session: Doubling, batcher: Any) -> None:
        queue = batcher(inline)
        tickets = [queue.submit(rows(float(i), float(-i)), 2) for i in range(5)]
        assert await asyncio.gather(*map(values, tickets)) == [[2.0 * i, -2.0 * i] for i in range(5)]
        assert queue.idle

    session = play(script)
    assert session.batches == [10]
    assert (threading.get_ident() in session.threads) == inline


def test_what_arrives_meanwhile_makes_the_next_batch() -> None:
    async def script(session: Doubling, batcher: Any) -> None:
        session.hold = threading.Event()
        queue = batcher(inline=False)
        first = queue.submit(rows(1.0), 1)
        await asyncio.sleep(0.05)  # it is running now
        others = [queue.submit(rows(float(i)), 1) for i in range(2, 9)]
        session.hold.set()
        assert await asyncio.gather(*map(values, [first, *others])) == [[2.0 * i] for i in range(1, 9)]

    assert play(script).batches == [1, 7]


def test_rows_are_counted_and_large_requests_split() -> None:
    async def script(session: Doubling, batcher: Any) -> None:
        queue = batcher(max_batch_rows=4)
        large, small = queue.submit(rows(*range(10)), 10), queue.submit(rows(100.0), 1)
        assert await values(large) == [2.0 * i for i in range(10)]
        assert await values(small) == [200.0]

    assert play(script).batches == [4, 4, 3]


@given(
    st.lists(st.tuples(st.integers(1, 9), st.sampled_from([None, 0.1, 0.2])), min_size=1, max_size=12),
    st.integers(1, 8),
)
def test_everyone_gets_their_own_rows(requests: list[tuple[int, float | None]], most: int) -> None:
    async def script(session: Doubling, batcher: Any) -> None:
        queue = batcher(max_batch_rows=most)
        tickets, at = [], 0
        for count, epsilon in requests:
            tickets.append(queue.submit(rows(*range(at, at + count)), count, epsilon=epsilon, bucket=epsilon))
            at += count
        found = [x for part in await asyncio.gather(*map(values, tickets)) for x in part]
        assert found == [2.0 * i for i in range(at)]
        assert (queue.queued_rows, queue._bytes, queue.idle) == (0, 0, True)

    assert max(play(script).batches) <= most


def test_buckets_never_mix_and_none_starves() -> None:
    async def script(session: Doubling, batcher: Any) -> None:
        queue = batcher(max_batch_rows=2)
        tickets = [queue.submit(rows(float(i)), 1, epsilon=e, bucket=e) for e in (0.1, 0.2) for i in range(4)]
        await asyncio.gather(*map(values, tickets))

    session = play(script)
    assert session.epsilons == [0.1, 0.2, 0.1, 0.2]


def test_poison_harms_only_who_sent_it() -> None:
    async def script(session: Doubling, batcher: Any) -> None:
        queue = batcher()
        good, bad, other = (queue.submit(rows(x), 1) for x in (1.0, 666.0, 3.0))
        assert await values(good) == [2.0]
        assert await values(other) == [6.0]
        with pytest.raises(ValueError, match="poison"):
            await bad.future
        assert queue.idle

    play(script)


def test_poison_in_one_piece_of_a_large_request() -> None:
    async def script(session: Doubling, batcher: Any) -> None:
        queue = batcher(max_batch_rows=2)
        bad, good = queue.submit(rows(1.0, 666.0, 3.0, 4.0, 5.0), 5), queue.submit(rows(7.0), 1)
        with pytest.raises(ValueError, match="poison"):
            await bad.future
        assert await values(good) == [14.0]
        await asyncio.sleep(0.01)
        assert (queue.queued_rows, queue._bytes, queue.idle) == (0, 0, True)

    play(script)


def test_a_full_queue_turns_away_and_says_when_to_come_back() -> None:
    async def script(session: Doubling, batcher: Any) -> None:
        queue = batcher(max_queue_rows=4)
        kept = [queue.submit(rows(float(i)), 1) for i in range(4)]
        with pytest.raises(RequestProblem) as refused:
            queue.submit(rows(9.0), 1)
        assert refused.value.status == 503
        assert refused.value.retry_after is not None and refused.value.retry_after >= 1
        assert await asyncio.gather(*map(values, kept)) == [[0.0], [2.0], [4.0], [6.0]]
        assert await values(queue.submit(rows(9.0), 1)) == [18.0]
        with pytest.raises(RequestProblem) as never:
            queue.submit(rows(*range(5)), 5)
        assert never.value.status == 413

    play(script)


def test_bytes_are_bounded_too() -> None:
    async def script(session: Doubling, batcher: Any) -> None:
        queue = batcher(max_queue_bytes=64)
        first = queue.submit({"x": np.zeros(6)}, 6)
        with pytest.raises(RequestProblem) as refused:
            queue.submit({"x": np.zeros(3)}, 3)
        assert refused.value.status == 503
        await first.future
        await queue.submit({"x": np.zeros(8)}, 8).future

    play(script)


def test_who_has_gone_costs_nothing() -> None:
    async def script(session: Doubling, batcher: Any) -> None:
        queue = batcher()
        gone, here = queue.submit(rows(1.0), 1, gone=lambda: True), queue.submit(rows(2.0), 1, gone=lambda: False)
        cancelled = queue.submit(rows(3.0), 1)
        cancelled.future.cancel()
        assert await values(here) == [4.0]
        with pytest.raises(RequestProblem, match="gone"):
            await gone.future
        assert queue.idle

    assert play(script).batches == [1]


def test_a_deadline_that_passes_in_the_queue() -> None:
    async def script(session: Doubling, batcher: Any) -> None:
        session.hold = threading.Event()
        queue = batcher(inline=False)
        running = queue.submit(rows(1.0), 1)
        await asyncio.sleep(0.02)
        late = queue.submit(rows(2.0), 1, deadline=time.perf_counter() + 0.05)
        patient = queue.submit(rows(3.0), 1, deadline=time.perf_counter() + 60.0)
        with pytest.raises(RequestProblem) as problem:
            await asyncio.wait_for(late.future, 5)  # answered before the session is free again
        assert problem.value.status == 504
        session.hold.set()
        assert (await values(running), await values(patient)) == ([2.0], [6.0])

    assert play(script).batches == [1, 1]


def test_the_delay_waits_only_on_a_busy_server() -> None:
    async def script(session: Doubling, batcher: Any) -> None:
        queue = batcher(delay_seconds=0.1)
        started = time.perf_counter()
        await values(queue.submit(rows(1.0), 1))
        assert time.perf_counter() - started < 0.09  # alone: at once
        await asyncio.gather(*(values(queue.submit(rows(float(i)), 1)) for i in range(3)))  # company
        first = queue.submit(rows(1.0), 1)
        await asyncio.sleep(0.02)
        second = queue.submit(rows(2.0), 1)
        await asyncio.gather(values(first), values(second))

    assert play(script).batches == [1, 3, 2]


def test_the_depth_is_reported() -> None:
    async def script(session: Doubling, batcher: Any) -> None:
        queue = batcher()
        await asyncio.gather(*(values(queue.submit(rows(1.0, 2.0), 2)) for _ in range(3)))

    assert play(script).depths == [2, 4, 6, 0]


@pytest.mark.parametrize("ending", ["answer", "poison", "gone", "deadline"])
def test_who_asked_is_called_once_and_in_the_same_turn(ending: str) -> None:
    async def script(session: Doubling, batcher: Any) -> None:
        queue, called = batcher(), []
        deadline = time.perf_counter() - 1.0 if ending == "deadline" else None
        value = 666.0 if ending == "poison" else 1.0
        ticket = queue.submit(rows(value), 1, deadline=deadline, gone=lambda: ending == "gone")
        ticket.when_done(lambda: called.append(ticket.future.exception()))
        other = queue.submit(rows(2.0), 1)
        assert await values(other) == [4.0]
        kinds = {"answer": type(None), "poison": ValueError, "gone": RequestProblem, "deadline": RequestProblem}
        assert [type(error) for error in called] == [kinds[ending]]
        ticket.when_done(lambda: called.append(None))  # too late to wait: at once
        assert len(called) == 2

    play(script)


def test_a_failing_delivery_does_not_touch_the_others() -> None:
    async def script(session: Doubling, batcher: Any) -> None:
        queue, problems = batcher(), []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context["exception"]))
        tickets = [queue.submit(rows(float(i)), 1) for i in range(3)]
        tickets[0].when_done(lambda: 1 // 0)
        assert await asyncio.gather(*map(values, tickets)) == [[0.0], [2.0], [4.0]]
        assert [type(problem) for problem in problems] == [ZeroDivisionError]
        assert queue.idle

    play(script)


def test_a_ticket_lets_go_of_whom_it_told() -> None:
    """It is held by what it calls, and with it the model."""

    class Told:
        ticket: Ticket

        def __call__(self) -> None: ...

    async def script(session: Doubling, batcher: Any) -> None:
        told = Told()
        ticket = told.ticket = batcher().submit(rows(1.0), 1)
        ticket.when_done(told)
        freed = weakref.ref(told)
        assert await values(ticket) == [2.0]
        del told, ticket
        assert freed() is None

    play(script)


def test_an_answer_may_bring_the_next_request() -> None:
    """As pipelined requests do: the queue is entered again while it delivers, or drops what is dead."""

    async def script(session: Doubling, batcher: Any) -> None:
        queue = batcher(max_batch_rows=2)
        later: list[Ticket] = []
        for gone in (True, False, True, False):
            ticket = queue.submit(rows(1.0), 1, gone=lambda gone=gone: gone)
            ticket.when_done(lambda: later.append(queue.submit(rows(5.0), 1)))
        while len(later) < 4:
            await asyncio.sleep(0.001)
        assert await asyncio.gather(*map(values, later)) == [[10.0]] * 4
        assert (queue.queued_rows, queue._bytes, queue.idle) == (0, 0, True)

    play(script)
