"""A bank's file as a torch data set: what the bank draws, in any loader."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from bank_files import LOSSLESS, SHAPE, add, drawn, floats, payload, tags_of
from torch.utils.data import DataLoader

from codec import CodecOptions, SampleSpec, encode_samples
from strategies.sample_bank import BankDataset, BankError, SampleBank

DITHERED = CodecOptions(quantizer="dithered")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bank.sqlite"


def _sorted(samples: torch.Tensor, targets: torch.Tensor) -> list[tuple[bytes, float]]:
    pairs = zip(samples, targets, strict=True)
    return sorted((x.numpy().tobytes(), float(y)) for x, y in pairs)


def _of(dataset: BankDataset) -> list[tuple[bytes, float]]:
    samples, targets = zip(*[dataset[k] for k in range(len(dataset))], strict=True)
    return _sorted(torch.stack(samples), torch.stack(targets))


@pytest.mark.parametrize("kinds", ["uuu", "ud", "ddd", "uf", "fff"])
@pytest.mark.parametrize("scale", ["auto", "none"])
@pytest.mark.parametrize("limit", [1, 1 << 20])
def test_it_has_what_the_bank_draws(path: Path, kinds: str, scale: str, limit: int) -> None:
    with SampleBank(path=path, scale=scale) as bank:
        for seed, kind in enumerate(kinds):
            made = {"u": payload(seed), "d": payload(seed, codec=DITHERED), "f": floats(seed)}
            add(bank, [made[kind]])
        ((samples, targets, _),) = drawn(bank, np.random.default_rng(0), len(bank), 1)
    dataset = SampleBank.open(path, memory_limit=limit)
    assert (dataset.scale, len(dataset), dataset.classes) == (scale, 6 * len(kinds), 10)
    assert dataset.is_8bit == ("f" not in kinds)
    expected = _sorted(samples, targets)
    assert _of(dataset) == expected
    assert _of(pickle.loads(pickle.dumps(dataset))) == expected
    batch, labels = dataset.batch(np.arange(len(dataset)))
    assert _sorted(batch, labels) == expected


@pytest.mark.parametrize("context", ["fork", "spawn"])
@pytest.mark.parametrize("limit", [1, 1 << 20])
def test_a_loader_with_workers_gives_every_sample_once(
    path: Path, context: str, limit: int
) -> None:
    with SampleBank(path=path) as bank:
        for seed in range(5):
            add(bank, [payload(seed)])
    dataset = SampleBank.open(path, memory_limit=limit)
    expected = _of(dataset)
    loader = DataLoader(
        dataset, batch_size=4, shuffle=True, num_workers=2, multiprocessing_context=context
    )
    for _ in range(2):
        batches = list(loader)
        assert batches[0][0].shape == (4, *SHAPE) and batches[0][0].dtype == torch.float32
        samples, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
        assert _sorted(samples, targets) == expected


def test_a_temporary_file_goes_with_the_data_set(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(path.parent))
    with SampleBank(path=path) as bank:
        add(bank, [payload(0)])
    dataset = SampleBank.open(path, memory_limit=1)
    assert list(path.parent.glob("*.samples"))
    del dataset
    assert not list(path.parent.glob("*.samples"))


def test_what_is_dropped_is_not_in_it_and_a_writer_may_go_on(path: Path) -> None:
    bank = SampleBank(path=path)
    bank.tell_class_names([f"class {k}" for k in range(10)])
    one = payload(0)
    add(bank, [one], fingerprints=tags_of(one, 2, bank), content_bytes=70)
    dataset = SampleBank.open(path)
    again = payload(0, codec=CodecOptions("png"))
    add(bank, [again, payload(1)], fingerprints=tags_of(one, 2, bank) + bytes(12), content_bytes=80)
    assert len(dataset) == 6 and dataset.class_names[3] == "class 3" and dataset.id == bank.id
    assert len(bank) == 12
    later = SampleBank.open(path)
    assert len(later) == 12 and later.uplink_bytes == 150
    bank.close()


def test_replies_that_wait_are_in_it(path: Path) -> None:
    with SampleBank(path=path) as bank:
        for seed in range(3):
            add(bank, [payload(seed)])
        bank.hold_back(1)
        assert len(bank) == 6 and len(SampleBank.open(path)) == 18


def test_tokens_and_float_targets(path: Path) -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 9, (5, 7)).astype(np.int32)
    targets = rng.random((5, 2)).astype(np.float32)
    with SampleBank(path=path) as bank:
        add(bank, [encode_samples(tokens, targets, SampleSpec((7,), "int32", 0, 9, target_size=2))])
    dataset = SampleBank.open(path)
    sample, target = dataset[-1]
    assert sample.dtype == torch.int64 and sample.tolist() == tokens[4].tolist()
    assert target.tolist() == targets[4].tolist() and dataset.classes == 0
    with pytest.raises(IndexError):
        dataset[5]
    assert len(list(dataset)) == 5  # type: ignore[call-overload]


def test_importance_weights_are_there(path: Path) -> None:
    spec = SampleSpec(SHAPE, "uint8", 0, 255, 10, codec=LOSSLESS)
    zeros = np.zeros((3, *SHAPE), np.uint8)
    with SampleBank(path=path) as bank:
        add(bank, [encode_samples(zeros, np.arange(3), spec, inclusion=np.full(3, 64, np.uint16))])
    assert SampleBank.open(path).weights.tolist() == [4, 4, 4]


def test_what_cannot_be_opened_is_named(path: Path) -> None:
    with pytest.raises(BankError, match=r"there is no bank .*bank\.sqlite"):
        SampleBank.open(path)
    assert not path.exists()
    SampleBank(path=path).close()
    with pytest.raises(BankError, match="holds no sample yet"):
        SampleBank.open(path)
    path.write_bytes(b"")
    with pytest.raises(BankError, match="is empty"):
        SampleBank.open(path)
    path.write_bytes(b"text" * 1000)
    with pytest.raises(BankError, match="is no bank"):
        SampleBank.open(path)
