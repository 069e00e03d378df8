"""Reading samples: one of no use is converted, or skipped and counted, and costs no other."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from logging import WARNING
from typing import Any

import numpy as np
import pytest
import torch
from images import fields
from numpy.typing import NDArray
from torch.utils.data import TensorDataset

from clients import ArraySource, as_source
from clients.reading import Reader, measured_range
from codec import CodecError, CodecOptions
from codec.messages import Terms

EVERY = np.arange(8)


def photographs(count: int = 8) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 3, 4, 5)).astype(np.uint8)


@dataclass
class Items:
    """A data set of any items; those that are exceptions are raised. Counts its readings."""

    items: Sequence[Any]
    asked: Counter[int] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        self.asked[index] += 1
        item = self.items[index]
        if isinstance(item, BaseException):
            raise item
        return item


def with_odd(item: Any, index: int = 5) -> Items:
    items: list[Any] = [(sample, k % 2) for k, sample in enumerate(photographs())]
    items[index] = item
    return Items(items)


OTHERS = [k for k in range(8) if k != 5]


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (OSError("image file is truncated"), "unreadable (OSError)"),
        (MemoryError(), "unreadable (MemoryError)"),
        (KeyError("label"), "unreadable (KeyError)"),
        ((np.zeros((3, 9, 9), np.uint8), 1), "of another shape"),
        ((np.zeros((4, 5), np.uint8), [0, 1]), "target of another shape"),
        ((np.zeros((3, 4, 5)) + 0.5, 1), "of another depth"),
        ((np.zeros((3, 4, 5), np.uint8), 2), "label outside 0 to 1"),
        ((np.zeros((3, 4, 5), np.uint8), -1), "label outside 0 to 1"),
        ((np.zeros((3, 4, 5), np.uint8), 0.5), "label is not whole"),
        ((np.zeros((3, 4, 5), np.uint8), float("nan")), "label is not whole"),
        ((np.zeros((3, 4, 5), np.uint8), 1e300), "label outside 0 to 1"),
        ((np.zeros((3, 4, 5), np.uint8), "cat"), "target is a name"),
        ((np.zeros((3, 4, 5), np.uint8), {"boxes": 1}), "target of an unknown kind"),
        ({"a": 1}, "no known key of the sample"),
        ((1, 2, 3), "neither pair nor mapping"),
        (None, "neither pair nor mapping"),
        (({"left": 1}, 0), "several inputs"),
        (("text", 0), "sample not of numbers"),
    ],
)
@pytest.mark.parametrize("index", [5, 0], ids=["within", "first"])
def test_one_item_of_no_use_costs_no_other(item: Any, reason: str, index: int) -> None:
    data = with_odd(item, index)
    reader = Reader(as_source(data, classes=2))
    batch = reader.read(EVERY)
    others = [k for k in range(8) if k != index]
    assert batch.positions.tolist() == others and batch.skipped == {reason: 1}
    assert (batch.samples == photographs()[others]).all()
    assert batch.targets.tolist() == [k % 2 for k in others]
    assert f"sample {index}: " in batch.first_words and batch.clipped == 0


def test_what_ends_a_process_is_not_about_an_item() -> None:
    reader = Reader(as_source(with_odd(KeyboardInterrupt()), classes=2))
    with pytest.raises(KeyboardInterrupt):
        reader.read(EVERY)


def grey(value: int) -> NDArray[np.uint8]:
    return np.full((1, 4, 5), value, np.uint8)


@pytest.mark.parametrize(
    ("odd", "expected"),
    [
        (grey(7), np.full((3, 4, 5), 7)),
        (grey(7)[0], np.full((3, 4, 5), 7)),
        (photographs(1)[0].transpose(1, 2, 0), photographs(1)[0]),
        (np.full((4, 5, 1), 7, np.uint8), np.full((3, 4, 5), 7)),
        (photographs(1)[0].astype(np.int64), photographs(1)[0]),
    ],
)
def test_images_among_others_are_converted(odd: NDArray[Any], expected: NDArray[Any]) -> None:
    batch = Reader(as_source(with_odd((odd, 1)), classes=2)).read(EVERY)
    assert batch.samples.dtype == np.uint8 and not batch.skipped
    assert (batch.samples[5] == expected).all()


def test_a_coloured_image_among_grey_ones_becomes_grey() -> None:
    colour = np.zeros((3, 4, 5), np.uint8)
    colour[1] = 200
    data = Items([(grey(k), 0) for k in range(6)] + [(colour, 1)])
    batch = Reader(as_source(data, classes=2)).read(np.arange(7))
    assert not batch.skipped and (batch.samples[6] == round(0.587 * 200)).all()


@pytest.mark.parametrize(
    ("shape", "asked"),
    [((4, 5), (1, 4, 5)), ((1, 4, 5), (4, 5)), ((4, 5, 3), (3, 4, 5)), ((1, 4, 5), (3, 4, 5))],
)
def test_images_become_what_the_model_takes(shape: tuple[int, ...], asked: tuple[int, ...]) -> None:
    source = ArraySource(np.ones((6, *shape), np.uint8), np.zeros(6, int), 2)
    reader = Reader(source, Terms(shape=asked))
    assert reader.kind.shape == asked and reader.read(np.arange(6)).samples.shape == (6, *asked)


def test_samples_that_the_model_cannot_take_are_refused() -> None:
    source = ArraySource(photographs(), EVERY % 2, 2)
    with pytest.raises(
        CodecError, match=r"samples are \(3, 4, 5\), the server's model takes \(3, "
    ):
        _ = Reader(source, Terms(shape=(3, 8, 8))).kind


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38, 1e300])
@pytest.mark.parametrize("kind", ["arrays", "items"])
def test_values_that_are_not_finite(value: float, kind: str) -> None:
    samples = np.random.default_rng(0).random((8, 2, 3))
    samples[5, 1, 2] = value
    source = ArraySource(samples, EVERY % 2, 2)
    if kind == "items":
        source = as_source(list(zip(samples, EVERY % 2, strict=True)), classes=2)  # type: ignore[assignment]
    reader = Reader(source)
    batch = reader.read(EVERY)
    assert batch.positions.tolist() == OTHERS and batch.skipped == {"not finite": 1}
    spec = reader.spec_of(batch.samples, CodecOptions())
    assert (spec.low, spec.high) == (batch.samples.min(), batch.samples.max())


@pytest.mark.parametrize("value", [-0.25, 1.25])
def test_values_beyond_a_declared_range_are_clipped_and_counted(value: float) -> None:
    samples = np.full((8, 2, 3), 0.5, np.float32)
    samples[3, 1, :2] = value
    reader = Reader(ArraySource(samples, EVERY % 2, 2, 0.0, 1.0))
    batch = reader.read(EVERY)
    assert batch.clipped == 2 and not batch.skipped
    assert (batch.samples == np.clip(samples, 0, 1)).all()
    assert samples[3, 1, 0] == value  # the source is left alone
    assert reader.spec_of(batch.samples, CodecOptions()).high == 1.0


@pytest.mark.parametrize(
    ("dtype", "low", "high"), [(np.uint8, -5, 8.5), (np.uint8, 3, 300), (np.int64, 0, 8)]
)
def test_integers_are_clipped_to_whole_numbers(dtype: Any, low: float, high: float) -> None:
    samples = np.tile(np.array([0, 4, 9, 5, 6], dtype), (8, 1))
    batch = Reader(ArraySource(samples, EVERY % 2, 2, low, high)).read(EVERY)
    assert batch.clipped == 8
    assert (batch.samples == np.clip(samples, max(low, 0), np.floor(min(high, 255)))).all()


def test_a_range_of_other_values_is_refused() -> None:
    told = r"value_range = \(0, 1\), but samples hold 0 to 255; legal: the range of the values"
    samples = np.tile(np.array([0, 60, 255], np.uint8), (8, 1))
    with pytest.raises(CodecError, match=told):
        _ = Reader(ArraySource(samples, EVERY % 2, 2, 0.0, 1.0)).kind
    with pytest.raises(CodecError, match=r"low = 0.0 and high = None .* must both be given"):
        _ = Reader(ArraySource(samples, EVERY % 2, 2, 0.0)).kind


def test_ranges_are_measured_payload_by_payload() -> None:
    samples = np.linspace(-3, 5, 16, dtype=np.float32).reshape(8, 2)
    reader = Reader(ArraySource(samples, EVERY % 2, 2))
    for part in (samples, samples[:2], samples[7:]):
        spec = reader.spec_of(part, CodecOptions())
        assert (spec.low, spec.high) == (part.min(), part.max())
    eight_bit = Reader(ArraySource(photographs(), EVERY % 2, 2))
    spec = eight_bit.spec_of(photographs()[:1], CodecOptions())
    assert (spec.low, spec.high) == (0, 255)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([2.0, 2.0], np.float32), (2.0, 4.0)),
        (np.array([0.0], np.float32), (0.0, 1.0)),
        (np.array([-1e29], np.float32), (np.float32(-1e29), 0.0)),
        (np.array([1 << 24], np.int32), ((1 << 24) - 1, 1 << 24)),
        (np.array([np.nan, 1, 3], np.float32), (1.0, 3.0)),
        (np.array([np.nan], np.float32), (0.0, 1.0)),
    ],
)
def test_measured_ranges_are_never_empty(values: Any, expected: tuple[float, float]) -> None:
    assert measured_range(values) == pytest.approx(expected)


def kind_of(targets: Any, classes: int | None = None, **terms: Any) -> tuple[int, int]:
    targets = np.asarray(targets)
    source = ArraySource(np.zeros((len(targets), 4), np.float32), targets, classes)
    kind = Reader(source, Terms(**terms)).kind
    return kind.classes, kind.target_size


@pytest.mark.parametrize(
    ("targets", "classes", "outputs", "expected"),
    [
        ([0, 1, 2], None, 10, (10, 0)),
        ([0, 1, 2], 3, 10, (3, 0)),
        ([[0], [1], [2]], None, 10, (10, 0)),
        ([0.0, 1.0, 2.0], None, 10, (10, 0)),
        ([0.0, 1.0, 2.0], 3, 0, (3, 0)),
        ([[0.0], [1.0], [2.0]], 3, 0, (3, 0)),
        ([True, False, True], None, 2, (2, 0)),
        ([0.5, 1.0, 2.0], None, 0, (0, 0)),
        ([0.0, 1.0, 2.0], 0, 10, (0, 0)),
        ([1, 2, 3], 0, 0, (0, 0)),
        ([[0.5], [1.0], [2.0]], None, 0, (0, 1)),
        ([[1], [2], [3]], 0, 0, (0, 1)),
        ([0, 1, 1], None, 1, (0, 0)),
        ([0, 1, 1], 2, 1, (0, 0)),
        ([[0, 1, 1], [1, 0, 0]], None, 3, (0, 3)),
        ([[0, 1, 1], [1, 0, 0]], 3, 3, (0, 3)),
        ([[0.2, 0.8], [1.0, 0.0]], None, 2, (0, 2)),
    ],
)
def test_targets_of_every_kind(
    targets: Any, classes: int | None, outputs: int, expected: tuple[int, int]
) -> None:
    assert kind_of(targets, classes, outputs=outputs) == expected
    targets = np.asarray(targets)
    source = ArraySource(np.zeros((len(targets), 4), np.float32), targets, classes)
    batch = Reader(source, Terms(outputs=outputs)).read(np.arange(len(targets)))
    assert not batch.skipped
    shape = (len(targets), expected[1]) if expected[1] else (len(targets),)
    assert batch.targets.dtype == (np.int64 if expected[0] else np.float32)
    np.testing.assert_allclose(batch.targets, targets.reshape(shape))


@pytest.mark.parametrize(
    ("targets", "classes", "outputs", "told"),
    [
        ([0.5, 1.0], 3, 0, "targets are floats such as 0.5, but .* 3 classes; pass classes=0"),
        ([0, 1], 12, 10, "has 12 classes, the server's model 10 outputs"),
        ([[0, 1, 1], [1, 0, 0]], None, 2, "has 3 floats in a target, the server's model 2 outputs"),
    ],
)
def test_targets_that_do_not_fit_are_refused(
    targets: Any, classes: int | None, outputs: int, told: str
) -> None:
    with pytest.raises(CodecError, match=told):
        kind_of(targets, classes, outputs=outputs)


def test_labels_of_unknown_number_are_all_of_use() -> None:
    """Sorted by class, the first ones are of class 0 alone."""
    labels = np.repeat(np.arange(30), 10)
    reader = Reader(ArraySource(np.zeros((300, 4), np.float32), labels))
    batch = reader.read(np.arange(300))
    assert batch.targets.tolist() == labels.tolist()
    assert reader.spec_of(batch.samples, CodecOptions(), batch.targets).classes == 30


def named(names: Sequence[str], terms: Terms, labels: Any = (0, 1, 2, 1)) -> Reader:
    samples = np.arange(len(labels) * 4, dtype=np.uint8).reshape(-1, 4)
    source = ArraySource(samples, np.array(labels), len(names), class_names=names)
    return Reader(source, terms)


def test_labels_are_mapped_by_the_names_of_their_classes() -> None:
    server = Terms(outputs=9, class_names=("dog", "bird", "ant", "cat"))
    batch = named(("cat", "dog", "bird"), server).read(np.arange(4))
    assert batch.targets.tolist() == [3, 0, 1, 0]
    assert named(("cat", "dog", "bird"), server).kind.classes == 4
    assert named(("cat", "dog", "bird"), server).class_digest == ""


def test_an_unknown_class_is_refused_by_name() -> None:
    server = Terms(outputs=2, class_names=("dog", "cat"))
    batch = named(("cat", "wolf", "dog"), server, (0, 1, 2, 7)).read(np.arange(4))
    assert batch.targets.tolist() == [1, 0] and batch.positions.tolist() == [0, 2]
    assert batch.skipped == {
        "class 'wolf' is unknown to the server": 1,
        "label outside 0 to 2": 1,
    }


def test_labels_without_names_are_those_of_the_server() -> None:
    server = Terms(outputs=5, class_names=("dog", "cat"))
    reader = Reader(ArraySource(np.zeros((4, 3)), np.array([0, 1, 4, 5])), server)
    assert reader.read(np.arange(4)).targets.tolist() == [0, 1, 4]


def test_names_that_the_server_does_not_know_give_a_digest() -> None:
    first, same, other = (
        named(names, Terms()).class_digest for names in ("abc", ("a", "b", "c"), "acb")
    )
    assert first == same != other and len(first) == 12


def test_several_labels_a_sample_have_no_use_for_names() -> None:
    targets = np.eye(3, dtype=np.float32)
    source = ArraySource(np.zeros((3, 2)), targets, 3, class_names=("a", "b", "c"))
    reader = Reader(source, Terms(outputs=3, class_names=("a", "b", "c")))
    assert reader.kind.target_size == 3 and reader.class_digest == ""
    assert (reader.read(np.arange(3)).targets == targets).all()
    assert reader.describe(1).class_names == ()


class OwnSource:
    """Of a device of one's own: fails as a whole where one of its items does."""

    classes, low, high = 2, None, None
    class_names = ("a", "b")

    def __init__(self, broken: int) -> None:
        self.broken, self.calls = broken, 0

    def __len__(self) -> int:
        return 50

    def get_items(self, indices: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
        self.calls += 1
        if (indices == self.broken).any():
            raise ValueError("sensor 3 is silent")
        return np.outer(indices, np.ones(4)), indices % 2


def test_a_source_of_ones_own_that_fails_for_a_batch_is_asked_for_single_items() -> None:
    source = OwnSource(17)
    reader = Reader(as_source(source), Terms(class_names=("b", "a")))
    batch = reader.read(np.arange(10, 30))
    assert batch.samples[:, 0].tolist() == [k for k in range(10, 30) if k != 17]
    assert batch.targets.tolist() == [1 - k % 2 for k in range(10, 30) if k != 17]
    assert batch.skipped == {"unreadable (ValueError)": 1}
    assert batch.first_words == "sample 17: ValueError: sensor 3 is silent"
    calls = source.calls
    assert len(reader.read(np.arange(30, 50)).samples) == 20 and source.calls == calls + 1


def test_a_source_that_gives_too_few_is_told_so() -> None:
    class Short(OwnSource):
        def get_items(self, indices: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
            samples, targets = super().get_items(indices)
            return samples[1:], targets

    told = "none of the first 32 samples can be read: get_items of one index gives 0 samples and 1"
    with pytest.raises(CodecError, match=told):
        _ = Reader(Short(-1)).kind


def test_a_data_set_that_cannot_be_read_at_all_says_why() -> None:
    data = Items([OSError("no such file")] * 8)
    told = "none of the first 8 samples can be read: OSError: no such file"
    with pytest.raises(CodecError, match=told):
        _ = Reader(as_source(data, classes=2)).kind
    with pytest.raises(CodecError, match="0 samples, at least 1 is needed"):
        _ = Reader(as_source([])).kind


def test_samples_at_the_front_that_cannot_be_read_do_not_hide_the_others() -> None:
    items = [OSError("debris")] * 40 + [(sample, 1) for sample in photographs(200)]
    reader = Reader(as_source(Items(items), classes=2))
    assert reader.kind.shape == (3, 4, 5)
    assert len(reader.read(np.arange(240)).samples) == 200


@pytest.mark.parametrize(
    ("odd", "at", "dtype"),
    [
        (np.zeros((3, 4, 5), np.float32), 0, "uint8"),
        (np.zeros((3, 9, 9), np.uint8), 0, "uint8"),
    ],
)
def test_the_kind_is_that_of_most(odd: NDArray[Any], at: int, dtype: str) -> None:
    reader = Reader(as_source(with_odd((odd, 0), at), classes=2))
    assert (reader.kind.shape, reader.kind.dtype) == ((3, 4, 5), dtype)


def test_rows_of_which_some_are_whole_are_floats() -> None:
    rows = [([1, 2, 3], 0), ([4, 5, 6], 1), ([1.5, 2, 3], 0), ([7, 8, 9], 1)]
    batch = Reader(as_source(rows, classes=2)).read(np.arange(4))
    assert batch.samples.dtype == np.float32 and not batch.skipped


def test_tokens_stay_integers() -> None:
    tokens = TensorDataset(torch.arange(40).reshape(8, 5) * 700, torch.arange(8) % 2)
    for source in (as_source(tokens), as_source(tokens.tensors)):
        reader = Reader(source, Terms(outputs=2))
        batch = reader.read(EVERY)
        spec = reader.spec_of(batch.samples, CodecOptions())
        assert batch.samples.dtype == np.int32 and spec.codec.codec == "lossless"
        assert (spec.low, spec.high) == (0, 39 * 700)


def test_long_smooth_rows_are_series_and_others_tables() -> None:
    rng = np.random.default_rng(0)
    series = np.cumsum(rng.standard_normal((8, 64)), axis=1).astype(np.float32)
    table = rng.standard_normal((8, 64)).astype(np.float32)
    for rows, codec in ((series, "dct"), (table, "columns")):
        reader = Reader(ArraySource(rows, EVERY % 2, 2))
        assert reader.spec_of(rows, CodecOptions()).codec.codec == codec
        relative = CodecOptions(relative_to="range")
        assert reader.spec_of(rows, relative).codec.codec == "columns"


def test_a_description_is_what_the_source_holds() -> None:
    description = named(("cat", "dog", "bird"), Terms()).describe(4)
    assert (description.client, description.num_examples) == (4, 4)
    assert (description.shape, description.dtype) == ((4,), "uint8")
    assert (description.classes, description.target_size) == (3, 0)
    assert description.class_names == ("cat", "dog", "bird")


def test_versions_of_a_sample_tell_a_random_transform() -> None:
    rng = np.random.default_rng(0)

    class Flipped(Items):
        def __getitem__(self, index: int) -> Any:
            sample, target = super().__getitem__(index)
            return (sample[..., ::-1] if rng.random() < 0.5 else sample), target

    items = [(sample, 0) for sample in photographs(40)]
    found = []
    for data in (Flipped(items), Items(items)):
        reader = Reader(as_source(data, classes=2))
        batch = reader.read(np.arange(40))
        before = data.asked.total()
        found.append(reader.is_random(np.arange(40), batch.samples))
        assert data.asked.total() - before <= 6
    assert found == [True, False]


def test_little_is_read_to_learn_the_kind() -> None:
    data = with_odd((photographs(1)[0], 1))
    assert Reader(as_source(data, classes=2)).kind.shape == (3, 4, 5)
    assert data.asked.total() == 4


def test_the_log_has_few_lines_however_many_are_skipped(caplog: pytest.LogCaptureFixture) -> None:
    data = Items([(sample, 7 * (k > 5)) for k, sample in enumerate(photographs(200))])
    reader = Reader(as_source(data, classes=2))
    with caplog.at_level(WARNING, logger="flwr"):
        for start in range(0, 200, 20):
            reader.read(np.arange(start, start + 20))
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3 and lines[0] == "14 samples are skipped, sample 6: label outside 0 to 1"


def test_good_samples_are_read_about_as_fast_as_their_source_gives_them() -> None:
    source = ArraySource(np.concatenate([fields(500)] * 2), np.arange(1000) % 10, 10, 0.0, 255.0)
    reader, everything = Reader(source), np.random.default_rng(0).permutation(1000)
    assert reader.kind.shape == (3, 32, 32)

    def seconds(read: Any) -> float:
        times = []
        for _ in range(20):
            start = time.perf_counter()
            read(everything)
            times.append(time.perf_counter() - start)
        return min(times)

    assert seconds(reader.read) < 1.3 * seconds(source.get_items) + 0.0005
