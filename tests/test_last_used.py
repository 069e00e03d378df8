"""The bank's memory of what it has looked at."""

from strategies.sample_bank.last_used import LastUsed


def test_what_was_used_last_is_kept_within_the_size() -> None:
    kept: LastUsed[str] = LastUsed(10)
    for number, size in enumerate((4, 4, 2)):
        assert kept.put(number, f"value {number}", size) == f"value {number}"
    assert kept.get(0) == "value 0"
    kept.put(3, "value 3", 3)  # 13 in all: what was used first goes
    assert [kept.get(number) for number in range(4)] == ["value 0", None, "value 2", "value 3"]
    kept.put(4, "large", 50)  # is kept, alone
    assert len(kept) == 1 and kept.get(4) == "large"
    kept.put(5, "small", 1)
    assert len(kept) == 1 and kept.get(5) == "small"
