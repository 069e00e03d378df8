"""The network of contexts is written as the codec reads it."""

from typing import Any

import numpy as np
import pytest
import torch
from images import digits, fields

from codec.samples.block_dct import coefficients, network, surroundings
from codec.samples.block_dct.coefficients import CoefficientModel, usual_magnitudes
from sim import codec_network
from sim.codec_network import Shipped, all_examples, counted, examples, fitted, usual

pytestmark = pytest.mark.usefixtures("one_thread")


def test_examples_are_what_the_coder_knows_and_codes() -> None:
    images = digits(5)[0]
    inputs, magnitudes = examples(images, 7, 0.5)
    assert inputs.shape == (len(magnitudes), sum(map(len, codec_network.INPUTS)))
    assert len(magnitudes) % (5 * 16) == 0  # every block, for each frequency that is there
    assert (inputs[:, -1] == surroundings.UNIT).all()  # the bias
    larger = inputs[magnitudes > 1].mean(axis=0) > inputs[magnitudes == 0].mean(axis=0)
    assert larger[:2].all()  # what stands around large magnitudes is large


def test_what_is_quantized_too_finely_is_no_example() -> None:
    assert len(examples(digits(3)[0], 7, 1e-4)[1]) == 0


def test_counts_are_of_magnitudes_without_the_network() -> None:
    counts = np.zeros((surroundings.DECISIONS, 2, len(usual_magnitudes())))
    with counted(counts):
        examples(fields(4), 8, 0.5)
    bits, ones = counts[0]
    # Means of 4 images' blocks and channels, in a block of their own; the rest are scored.
    assert bits.sum() in 4 * np.arange(1, 1 + 16 * 3)
    assert (ones <= bits).all() and counts[1, 0].sum() == ones.sum()
    before = CoefficientModel.start().tables[0]
    assert not hasattr(before, "_counts")


def test_usual_probabilities_follow_the_counts() -> None:
    counts = np.zeros((surroundings.DECISIONS, 2, len(usual_magnitudes())))
    context = len(usual_magnitudes()) // 2
    counts[0, :, context] = 1e6, 9e5
    found = usual(counts) / 65536
    assert found.shape == (surroundings.DECISIONS, coefficients.USUAL_MAGNITUDES)
    assert found[0, usual_magnitudes()[context]] == pytest.approx(0.9, abs=1e-3)
    assert (np.diff(found[1]) >= 0).all()  # the geometric law


def test_a_network_is_read_as_it_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec_network, "_COUNTS", (3, 3))
    torch.manual_seed(0)
    known, reached, counts = all_examples(fields(20), digits(20)[0], 1, np.random.default_rng(0))
    fit = fitted(known, reached, 60)
    inputs, magnitudes = torch.from_numpy(known).float(), torch.from_numpy(reached).float()
    with torch.no_grad():
        untrained = codec_network.bits(codec_network.Network(), inputs, magnitudes)
        assert codec_network.bits(fit, inputs, magnitudes) < 0.8 * untrained
    shipped = Shipped.of(fit, known, reached)
    names: dict[str, Any] = {}
    exec(shipped.source(usual(counts)), names)
    read = np.concatenate([names["OF_BLOCK"], names["OF_LINE"], names["STATIC"]], axis=1)
    assert np.array_equal(read, shipped.hidden)
    assert np.array_equal(names["OUT"], shipped.out) and names["OUT_BIAS"] == shipped.bias
    assert np.array_equal(names["LARGER"], shipped.likely / 65536)
    for name in ("OF_BLOCK", "OF_LINE", "STATIC", "OUT", "LARGER", "USUAL"):
        assert names[name].shape == getattr(network, name).shape
        assert names[name].dtype == getattr(network, name).dtype
