"""Fit the network that chooses the contexts of the block-transform codec, and write it.

``python -m sim.codec_network --cifar10 FOLDER`` codes images in payloads of many sizes and steps,
notes what `codec.samples.block_dct.surroundings` knows of each coefficient and what it came to,
fits the network to it, and writes ``codec/samples/block_dct/network.py``. Another network is
another payload version.

The images are those of the *test* splits of CIFAR-10 and Fashion-MNIST, in colour and in grey, in
blocks of several sizes. What clients send is from the train splits, so no figure of bytes is of
images that the network was fitted to.
"""

import argparse
import base64
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import codec.samples.block_dct
from codec import CodecOptions, SampleSpec, encode_samples
from codec.coding.range_coder import AdaptiveBits, Bits, Floats, Ints
from codec.compilation import compiled
from codec.samples.block_dct import coefficients, surroundings
from codec.samples.block_dct.coefficients import CoefficientModel, usual_magnitudes
from codec.samples.block_dct.surroundings import Bytes, Surroundings
from fl_app.data import load

Pictures = NDArray[np.uint8]
Inputs = NDArray[np.int16]

FILE = Path(codec.samples.block_dct.__file__).parent / "network.py"
INPUTS = (surroundings.BLOCK_INPUTS, surroundings.LINE_INPUTS, surroundings.STATIC_INPUTS)

_EXAMPLES_OF = 30  # images' worth of examples of a payload
_STEPS, _COUNTS = (0.2, 1.6), (15, 300)  # uniform in the logarithm
_HIDDEN, _BATCH, _RATE = 16, 2048, 6e-3
_HEADS = 8  # decisions that are fitted; larger magnitudes are as the last of them
_UNIT = 32  # fixed point of weights
_PRIOR = 30  # observations that the fitted curve counts for in a bin


def payloads(
    colour: Pictures, grey: Pictures, of_a_kind: int, rng: np.random.Generator
) -> Iterator[Any]:
    """Yield images (N, C, H, W), the block and the step of payloads to learn from."""
    for number in range(of_a_kind):
        step = float(np.exp(rng.uniform(*np.log(_STEPS))))
        count = int(np.exp(rng.uniform(*np.log(_COUNTS))))
        chosen = colour[rng.permutation(len(colour))[:count]]
        faded = np.round(chosen.mean(axis=1, keepdims=True)).astype(np.uint8)
        yield chosen, 8, step
        yield faded[:, :, 2:30, 2:30], 7, step
        yield grey[rng.permutation(len(grey))[:count]], 7, step
        yield (chosen if number % 2 else faded), (4, 5, 6, 8)[number % 4], step


class _Counting(AdaptiveBits):
    """A table of bits that adds to counts (2, contexts) what it codes: all bits, and ones."""

    def __init__(self, counts: Floats) -> None:
        super().__init__(np.full(counts.shape[1], 0.5))
        self._counts = counts

    def _update(self, contexts: Ints, bits: Bits) -> None:
        super()._update(contexts, bits)
        size = self._counts.shape[1]
        self._counts += [
            np.bincount(contexts, minlength=size),
            np.bincount(contexts, weights=bits, minlength=size),
        ]


@contextmanager
def counted(counts: Floats) -> Iterator[None]:
    """Add what the tables of magnitudes code for a while to counts (tables, 2, contexts)."""
    start = CoefficientModel.start

    def counting(*, learned: bool) -> CoefficientModel:
        model = start(learned=learned)
        model.tables = [_Counting(count) for count in counts]
        return model

    with patch.object(CoefficientModel, "start", counting):
        yield


def examples(images: Pictures, block: int, step: float) -> tuple[Inputs, Bytes]:
    """Code images; return what was known of each coefficient, and its magnitude up to 255.

    Returns
    -------
    int16 (examples, inputs), uint8 (examples,)
    """
    known: list[NDArray[np.float32]] = []
    magnitudes: list[Ints] = []

    class Recorder(Surroundings):
        def scores(self, wave: Ints, predicted: Ints) -> Bytes:
            of_blocks = self.of_blocks(int(wave[0]) // self._size)
            static = self.static()[wave]
            for own, line in zip(self.of_lines(wave, predicted), static, strict=True):
                alike = np.repeat(line[:, None], of_blocks.shape[1], axis=1)
                known.append(np.concatenate([of_blocks, own, alike]).T)
            return super().scores(wave, predicted)

        def learn(self, wave: Ints, values: Ints) -> None:
            magnitudes.append(np.abs(values).ravel())
            super().learn(wave, values)

    spec = SampleSpec(images.shape[1:], classes=1, codec=CodecOptions("dct", block, step=step))
    with patch.object(coefficients, "Surroundings", Recorder), compiled(False):
        encode_samples(images, np.zeros(len(images), np.int64), spec)
    if not known:  # quantized too finely
        return np.zeros((0, sum(map(len, INPUTS))), np.int16), np.zeros(0, np.uint8)
    reached = np.minimum(np.concatenate(magnitudes), 255).astype(np.uint8)
    return np.concatenate(known).astype(np.int16), reached


def all_examples(
    colour: Pictures, grey: Pictures, of_a_kind: int, rng: np.random.Generator
) -> tuple[Inputs, Bytes, Floats]:
    """Code all payloads; return a random choice of their examples, and `counted`."""
    inputs, magnitudes = [], []
    counts = np.zeros((surroundings.DECISIONS, 2, len(usual_magnitudes())))
    for images, block, step in track(list(payloads(colour, grey, of_a_kind, rng)), "code"):
        with counted(counts):
            known, reached = examples(images, block, step)
        chosen = rng.random(len(reached)) < _EXAMPLES_OF / max(len(images), _EXAMPLES_OF)
        inputs.append(known[chosen])
        magnitudes.append(reached[chosen])
    return np.concatenate(inputs), np.concatenate(magnitudes), counts


def usual(counts: Floats) -> Ints:
    """Return the probabilities of larger magnitudes by how large they are, (decisions, sizes).

    What was seen little stays near the geometric law. In 1/65536.
    """
    sizes = usual_magnitudes()
    mean = 2.0 ** ((coefficients._LOWEST_SCALE + np.arange(coefficients.USUAL_MAGNITUDES)) / 2)
    geometric = np.clip(mean / (1 + mean), 0.15, 0.9)
    seen, ones = (
        np.stack([np.bincount(sizes, row, len(mean)) for row in counts[:, which]])
        for which in (0, 1)
    )
    return _rounded((ones + _PRIOR * geometric) / (seen + _PRIOR))


def _rounded(probabilities: Floats) -> Ints:
    return np.clip(np.round(probabilities * 65536), 40, 65496).astype(np.int64)


class Network(nn.Module):
    """What `Surroundings.scores` computes, and a curve from its score to each decision's logit."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(sum(map(len, INPUTS)), _HIDDEN, bias=False)
        self.out = nn.Linear(_HIDDEN, 1)
        nn.init.normal_(self.hidden.weight, 0, 0.15)
        start = [-0.2 * torch.arange(1.0, _HEADS), torch.ones(_HEADS - 1), torch.zeros(_HEADS - 1)]
        self.curves = nn.Parameter(torch.stack(start))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits of larger magnitudes than 0, 1, 2, ..., (N, heads)."""
        highest = surroundings.HIGHEST_HIDDEN / (_UNIT * surroundings.UNIT)
        return self.logits(self.out(self.hidden(inputs).clamp(0, highest)))

    def logits(self, score: Tensor) -> Tensor:
        """Return the logits at scores (N, 1)."""
        shift, slope, bend = self.curves
        return torch.cat([score, shift + slope * score + bend * score**2 / 10], dim=1)

    def keep_in_range(self) -> None:
        """Clip weights to those that a signed byte holds."""
        with torch.no_grad():
            for weight in (self.hidden.weight, self.out.weight):
                weight.clamp_(-127 / _UNIT, 127 / _UNIT)


def bits(network: Network, inputs: Tensor, magnitudes: Tensor) -> Tensor:
    """Return the mean code length of examples, in bits."""
    logits, reached = network(inputs / surroundings.UNIT), torch.arange(_HEADS)
    larger = (magnitudes[:, None] > reached).float()
    lengths = binary_cross_entropy_with_logits(logits, larger, reduction="none")
    decided = (magnitudes[:, None] >= reached).float()
    mean: Tensor = (lengths * decided).sum(dim=1).mean() / np.log(2)
    return mean


def fitted(inputs: Inputs, magnitudes: Bytes, steps: int) -> Network:
    """Return the network that takes the fewest bits of the examples."""
    network, known, reached = Network(), torch.from_numpy(inputs), torch.from_numpy(magnitudes)
    optimizer = torch.optim.Adam(network.parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, _RATE, total_steps=steps, pct_start=0.15
    )
    for _ in track(range(steps), "fit"):
        chosen = torch.randint(len(known), (_BATCH,))
        optimizer.zero_grad()
        bits(network, known[chosen].float(), reached[chosen].float()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        network.keep_in_range()
    return network


@dataclass(frozen=True)
class Shipped:
    """The network in integers.

    Attributes
    ----------
    hidden : int64 (hidden, inputs)
    out : int64 (hidden,)
    bias : int
    likely : int64 (decisions, bins)
        Probability of a larger magnitude, in 1/65536.
    """

    hidden: Ints
    out: Ints
    bias: int
    likely: Ints

    @classmethod
    def of(cls, network: Network, inputs: Inputs, magnitudes: Bytes) -> "Shipped":
        """Round a network, and count what its scores are worth on the examples."""
        hidden, out = (
            np.round(layer.weight.detach().numpy() * _UNIT)
            for layer in (network.hidden, network.out)
        )
        unit = _UNIT * _UNIT * surroundings.UNIT
        bias = round(network.out.bias.item() * unit)
        values = inputs.astype(np.float32) @ hidden.T.astype(np.float32)
        score = np.clip(values, 0, surroundings.HIGHEST_HIDDEN) @ out[0].astype(np.float32) + bias
        bins = surroundings.bins_of(score.astype(np.float32)).astype(np.int64)
        middles = (surroundings.LOWEST_SCORE + 0.5 + np.arange(surroundings.SCORES)) / 4
        with torch.no_grad():
            # Low scores are seldom of large magnitudes, and curves bend up there.
            curves = network.logits(torch.tensor(middles[:, None]).float().clamp(min=-3)).sigmoid()
            first = torch.tensor(middles).sigmoid()
        likely = []
        for reached in range(surroundings.DECISIONS):
            curve = (curves[:, min(reached, _HEADS - 1)] if reached else first).numpy()
            there = magnitudes >= reached
            seen = np.bincount(bins[there], minlength=len(curve))
            more = np.bincount(bins[magnitudes > reached], minlength=len(curve))
            likely.append((more + _PRIOR * curve) / (seen + _PRIOR))
        return cls(
            hidden.astype(np.int64), out[0].astype(np.int64), bias, _rounded(np.stack(likely))
        )

    def source(self, usual: Ints) -> str:
        """Return the text of the module that holds it, and what `usual` returns."""
        blocks, lines, _ = map(len, INPUTS)
        return _SOURCE.format(
            hidden=_literal(self.hidden.astype("i1")),
            out=_literal(self.out.astype("i1")),
            bias=self.bias,
            likely=_literal(self.likely.astype("<u2")),
            usual=_literal(usual.astype("<u2")),
            inputs=sum(map(len, INPUTS)),
            decisions=len(self.likely),
            blocks=blocks,
            lines=blocks + lines,
        )


def _literal(numbers: NDArray[Any]) -> str:
    text = base64.b85encode(numbers.tobytes()).decode()
    lines = [f'"{text[at : at + 90]}"' for at in range(0, len(text), 90)]
    return lines[0] if len(lines) == 1 else "\n    ".join(["(", *lines]) + "\n)"


_SOURCE = '''"""The weights of the network of `surroundings`, and what its scores are worth at first.

Written by ``python -m sim.codec_network``, which says what they are fitted to; not to be edited.
"""

import base64

import numpy as np
from numpy.typing import NDArray

_HIDDEN = {hidden}
_OUT = {out}
_BIAS = {bias}
_LARGER = {likely}
_USUAL = {usual}


def _read(text: str, kind: str) -> NDArray[np.float32]:
    return np.frombuffer(base64.b85decode(text), kind).astype(np.float32)


# Weights in 1/32, (hidden, inputs): of what is known of the block, of the coefficient and of its
# frequency. Then those of the hidden values, (hidden,), and what is added to their sum.
OF_BLOCK, OF_LINE, STATIC = np.split(_read(_HIDDEN, "i1").reshape(-1, {inputs}), ({blocks}, {lines}), axis=1)
OUT, OUT_BIAS = _read(_OUT, "i1"), np.float32(_BIAS)
# Probability that a magnitude that has reached k is larger, float64 (k, bins of the score).
LARGER = _read(_LARGER, "<u2").astype(np.float64).reshape({decisions}, -1) / 65536
# The same where no network chooses contexts, by the usual magnitude, in half octaves.
USUAL = _read(_USUAL, "<u2").astype(np.float64).reshape({decisions}, -1) / 65536
'''  # noqa: E501


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m sim.codec_network", description=__doc__)
    parser.add_argument("--cifar10", metavar="FOLDER", default="", help="folder of CIFAR-10")
    parser.add_argument(
        "--fashion-mnist", metavar="FOLDER", default="", help="folder of Fashion-MNIST"
    )
    parser.add_argument(
        "--payloads", metavar="N", type=int, default=60,
        help="of each of four kinds of images (default: 60)",
    )  # fmt: skip
    parser.add_argument(
        "--steps", metavar="N", type=int, default=9000, help="of the optimizer (default: 9000)"
    )
    parser.add_argument(
        "--out",
        metavar="FILE.py",
        type=Path,
        default=FILE,
        help=f"default: {FILE.name} of the codec",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit the network and write it."""
    options = make_parser().parse_args(arguments)
    torch.manual_seed(0)
    colour = load("cifar10", "test", options.cifar10).samples
    grey = load("fashion-mnist", "test", options.fashion_mnist).samples
    rng = np.random.default_rng(0)
    inputs, magnitudes, counts = all_examples(colour, grey, options.payloads, rng)
    shipped = Shipped.of(fitted(inputs, magnitudes, options.steps), inputs, magnitudes)
    options.out.write_text(shipped.source(usual(counts)), encoding="utf-8")
    Console().print(f"{len(inputs)} examples, written to {options.out}")


if __name__ == "__main__":
    main()
