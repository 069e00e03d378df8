"""What a client's samples take over the setting of their codec, measured on some of them."""

import numpy as np

from clients.reading import Reader
from codec import CodecError, CodecOptions, encode_samples, reconstruct_samples, variance_kept
from codec.samples.rate_curve import SETTINGS, RateCurve, knob_of, with_setting

_KEY = (0, 0, 0)


def rate_curve(reader: Reader, codec: CodecOptions) -> RateCurve | None:
    """Return bytes and loss of typical samples, by real encodings; None without samples.

    What one more sample takes is the difference of two payloads, of all the samples and of every
    second one, so that a payload's head and the learning of its statistics count once.

    Parameters
    ----------
    reader : Reader
    codec : CodecOptions
        How they are coded, but for the setting of the rate.
    """
    batch = reader.typical
    if not len(batch.samples):
        return None
    order = np.arange(len(batch.samples))
    if reader.kind.classes:
        order = np.argsort(batch.targets, kind="stable")
    samples, targets = batch.samples[order], batch.targets[order]
    points = []
    for setting in SETTINGS.get(knob_of(codec), (0.0,)):
        spec = reader.spec_of(samples, with_setting(codec, setting), targets)
        try:
            sizes = [
                len(encode_samples(samples[part], targets[part], spec, like=samples).to_bytes())
                for part in (slice(None), slice(None, None, 2))
            ]
            decoded = reconstruct_samples(samples, spec, _KEY, samples)
        except CodecError:  # finer than the entropy coder takes
            continue
        more = len(samples) // 2
        size = (sizes[0] - sizes[1]) / more if more else float(sizes[0])
        points.append((setting, size, 1 - variance_kept(samples, decoded)))
    return RateCurve.of(points) if points else None
