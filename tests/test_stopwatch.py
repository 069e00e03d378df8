import pytest

from clients.stopwatch import Stopwatch
from codec.messages import SampleReply


def test_time_adds_up_even_when_a_block_raises() -> None:
    watch = Stopwatch()
    with watch.stage("a"):
        pass
    first = watch.seconds["a"]
    with pytest.raises(ValueError, match="x"), watch.stage("a"):
        raise ValueError("x")
    assert watch.seconds["a"] > first > 0


def test_times_become_the_fields_of_a_reply() -> None:
    watch = Stopwatch()
    with watch.stage("encode"), watch.stage("refinement"):
        pass
    reply = SampleReply(
        client=0, num_examples=0, samples=b"", num_sent=0, remaining=0, **watch.entries()
    )
    assert reply.seconds == {"importance": 0.0, **watch.seconds}
    assert reply.seconds["encode"] >= reply.seconds["refinement"] > 0
