"""Signals made as their sensors would make them: what no installed package carries."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

ACTIVITIES, BEATS, VOWELS, COVERS, TOPICS = 5, 4, 10, 5, 6
WORDS = 64

# Steps a second, m/s2 of the fundamental, and share of each harmonic: standing, walking, running,
# cycling, stairs.
_GAIT = (
    (0.3, 0.05, (1.0, 0.2, 0.0)),
    (1.8, 2.2, (1.0, 0.7, 0.3)),
    (2.7, 6.0, (1.0, 0.4, 0.2)),
    (1.3, 1.2, (1.0, 0.1, 0.4)),
    (1.6, 2.4, (1.0, 0.3, 0.6)),
)
# Waves P, Q, R, S and T of a heart beat: mV, and centre and width in s. The beats are a normal one,
# one from a ventricle, one with a conduction block, and one with a raised ST segment.
_HEIGHTS = np.array(
    [
        (0.15, -0.1, 1.0, -0.2, 0.3),
        (0.0, -0.2, 1.1, -0.5, -0.3),
        (0.15, 0.5, 0.7, -0.1, -0.2),
        (0.15, -0.1, 0.9, 0.3, 0.4),
    ]
)
_CENTRES = np.array(
    [
        (0.20, 0.36, 0.39, 0.42, 0.62),
        (0.20, 0.30, 0.38, 0.48, 0.66),
        (0.18, 0.36, 0.42, 0.48, 0.65),
        (0.20, 0.36, 0.39, 0.47, 0.60),
    ]
)
_WIDTHS = np.array(
    [
        (0.02, 0.01, 0.012, 0.01, 0.05),
        (0.02, 0.03, 0.035, 0.04, 0.06),
        (0.02, 0.02, 0.025, 0.02, 0.05),
        (0.02, 0.01, 0.012, 0.05, 0.06),
    ]
)
# First three formants of American English vowels in Hz (Peterson and Barney, 1952; men).
_FORMANTS = (
    (270, 2290, 3010), (390, 1990, 2550), (530, 1840, 2480), (660, 1720, 2410), (730, 1090, 2440),
    (570, 840, 2410), (440, 1020, 2240), (300, 870, 2240), (640, 1190, 2390), (490, 1350, 1690),
)  # fmt: skip
# Reflectance of water, forest, crops, soil and buildings in the 13 bands of Sentinel-2, about.
_SPECTRA = np.array(
    [
        (60, 50, 45, 30, 25, 20, 20, 18, 15, 10, 2, 8, 5),
        (30, 30, 45, 30, 70, 180, 230, 250, 270, 80, 3, 120, 60),
        (50, 55, 85, 65, 130, 280, 340, 370, 390, 120, 4, 200, 110),
        (90, 110, 150, 200, 230, 250, 270, 290, 310, 110, 4, 360, 310),
        (120, 130, 150, 170, 180, 190, 200, 210, 220, 90, 5, 240, 220),
    ],
    np.float64,
)


def activities(count: int, rng: np.random.Generator) -> tuple[Floats, Labels]:
    """Return accelerations of a body, float32 (N, 3, 128) in m/s2 at 50 Hz, and the activity."""
    labels = rng.integers(ACTIVITIES, size=count)
    time = np.arange(128) / 50
    samples = np.empty((count, 3, len(time)))
    for sample, label in zip(samples, labels, strict=True):
        pace, strength, shares = _GAIT[label]
        phase = 2 * np.pi * (pace * rng.uniform(0.8, 1.25) * time + rng.random())
        gravity = np.array([0.0, 0.0, 9.81]) + rng.normal(0, 1.5, 3)
        mount = rng.uniform(0.3, 1.0, 3) * rng.choice([-1, 1], 3)
        moved = [
            share * np.sin(order * phase + rng.uniform(0, 2 * np.pi, (3, 1)))
            for order, share in enumerate(shares, start=1)
        ]
        swing = strength * rng.uniform(0.6, 1.4) * mount[:, None] * np.sum(moved, axis=0)
        sample[:] = gravity[:, None] + swing + rng.normal(0, 0.25, (3, len(time)))
    return samples.astype(np.float32), labels


def beats(count: int, rng: np.random.Generator) -> tuple[Floats, Labels]:
    """Return single heart beats, float32 (N, 160) in mV at 200 Hz, and their kind."""
    labels = rng.integers(BEATS, size=count)
    time = np.arange(160) / 200
    heights = _HEIGHTS[labels] * rng.normal(1, 0.35, (count, 5))
    shifts = rng.normal(0, 0.02, (count, 1)) + rng.normal(0, 0.01, (count, 5))
    centres = _CENTRES[labels] + shifts
    widths = _WIDTHS[labels] * rng.uniform(0.7, 1.4, (count, 5))
    distance = (time - centres[..., None]) / widths[..., None]
    clean = (heights[..., None] * np.exp(-0.5 * distance**2)).sum(axis=1)
    breath = 0.15 * np.sin(2 * np.pi * (0.3 * time + rng.random((count, 1))))
    hum = 0.02 * np.sin(2 * np.pi * (50 * time + rng.random((count, 1))))
    noise = rng.normal(0, 0.03, clean.shape)
    return (clean + breath + hum + noise).astype(np.float32), labels


def vowels(count: int, rng: np.random.Generator) -> tuple[Floats, Labels]:
    """Return log-mel spectrograms of vowels, float32 (N, 1, 40, 48) in dB, and the vowel."""
    labels = rng.integers(VOWELS, size=count)
    rate, frame, hop, frames = 8000, 256, 64, 48
    time = np.arange(frame + hop * (frames - 1)) / rate
    mel, window = _mel_filters(40, frame, rate), np.hanning(frame)
    samples = np.empty((count, 1, 40, frames), np.float32)
    for sample, label in zip(samples, labels, strict=True):
        tract = rng.uniform(0.9, 1.2) * rng.normal(1, 0.04, 3)
        pitch = rng.uniform(90, 240)
        glide = pitch * (1 + rng.uniform(-0.1, 0.1) * time / time[-1])
        harmonics = np.arange(1, int(3800 / (1.1 * pitch)) + 1)
        loudness = _resonance(harmonics * pitch, np.array(_FORMANTS[label]) * tract) / harmonics
        phase = 2 * np.pi * np.cumsum(glide) / rate
        tones = np.sin(harmonics[:, None] * phase + rng.uniform(0, 6.28, (len(harmonics), 1)))
        envelope = np.minimum(1, np.minimum(time, time[-1] - time) / 0.05)
        sound = envelope * (loudness @ tones) * rng.uniform(0.3, 1)
        sound = sound + rng.normal(0, 0.003, len(sound))
        cut = np.lib.stride_tricks.sliding_window_view(sound, frame)[::hop]
        power = np.abs(np.fft.rfft(cut * window)) ** 2
        sample[0] = 10 * np.log10(mel @ power.T + 1e-8)
    return samples, labels


def _resonance(frequencies: NDArray[Any], formants: NDArray[Any]) -> NDArray[np.float64]:
    """Return how much a vocal tract lets through."""
    ratio = frequencies[:, None] / formants
    width = 90 / formants
    gains = 1 / np.sqrt((1 - ratio**2) ** 2 + (width * ratio) ** 2)
    together: NDArray[np.float64] = gains.prod(axis=1)
    return together


def _mel_filters(bands: int, frame: int, rate: int) -> NDArray[np.float64]:
    """Return triangular filters, evenly spaced in mel, float64 (bands, frame // 2 + 1)."""
    top = 2595 * np.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, bands + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(frame, 1 / rate)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - low) / (centre - low), (high - bins) / (high - centre)
    filters: NDArray[np.float64] = np.maximum(0, np.minimum(rising, falling))
    return filters + 1e-3  # those narrower than a bin would be empty


def scenes(count: int, rng: np.random.Generator) -> tuple[NDArray[np.uint16], Labels]:
    """Return satellite images of 13 bands, uint16 (N, 13, 16, 16), and what covers most of it.

    Reflectance in units of 1/10,000, as Sentinel-2's are.
    """
    labels = rng.integers(COVERS, size=count)
    bias = 0.9 * np.eye(COVERS)[labels][:, :, None, None]
    shares = np.exp(2 * (_textures(count, COVERS, 16, rng) + bias))
    shares /= shares.sum(axis=1, keepdims=True)
    light = rng.uniform(0.7, 1.3, (count, 1, 1, 1)) * (1 + 0.1 * _textures(count, 1, 16, rng))
    reflected = np.einsum("nkhw,kb->nbhw", shares, 10 * _SPECTRA) * light
    noisy = reflected + rng.normal(0, 15, reflected.shape)
    return np.clip(np.rint(noisy), 0, 10_000).astype(np.uint16), labels


def _textures(count: int, channels: int, side: int, rng: np.random.Generator) -> NDArray[Any]:
    """Return random fields of unit variance with the 1/f spectrum of landscapes."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    amplitude = 1 / np.maximum(frequency, 1 / side)
    white = np.fft.fft2(rng.standard_normal((count, channels, side, side)))
    fields: NDArray[Any] = np.fft.ifft2(white * amplitude).real
    fields /= fields.std()
    return fields


def sentences(count: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], Labels]:
    """Return sentences of a small grammar, word numbers int64 (N, 24), and their topic.

    Function words, adjectives, nouns and verbs take turns; topics prefer some of each kind.
    """
    labels = rng.integers(TOPICS, size=count)
    kinds = np.split(np.arange(WORDS), 4)
    usual = np.random.default_rng(0).dirichlet(np.full(WORDS // 4, 0.6), (TOPICS, 4))
    order = [0, 1, 2, 3] * 6
    samples = np.empty((count, len(order)), np.int64)
    for sample, label in zip(samples, labels, strict=True):
        for place, kind in enumerate(order):
            mixed = 0.5 * usual[label, kind] + 0.5 * usual[:, kind].mean(axis=0)
            sample[place] = rng.choice(kinds[kind], p=mixed)
    return samples, labels
