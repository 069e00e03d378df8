"""What codec ``auto`` is on a client: measured once on a few of its own samples."""

from dataclasses import replace

import numpy as np

from clients.candidates import Candidates
from clients.client_round import ClientRound
from codec import encode_samples
from codec.messages import ReplayRequest
from codec.random import Stream, client_generator
from codec.samples.choice import TRANSFORM, Choice, choose, is_open, samples_to_try


def chosen_codec(work: ClientRound[ReplayRequest]) -> tuple[Choice | None, tuple[str, ...]]:
    """Choose what codes a client's pictures.

    The samples do not depend on the round, so that a client that has forgotten chooses the same.

    Parameters
    ----------
    work : ClientRound

    Returns
    -------
    Choice or None
        None where ``auto`` was not asked for, or is not left to a measurement.
    tuple of str
        What the user should know of it.
    """
    request, reader = work.request, work.reader
    if not is_open(request.codec, work.spec):
        return None, ()
    generator = client_generator(request.seed, 0, work.client, Stream.CODEC)
    order = generator.permutation(len(work.source))
    wanted = min(samples_to_try(work.spec.shape), request.samples_per_round or len(order))
    samples, targets = Candidates(reader, order).first(wanted)
    if not len(samples):
        return None, ()
    coded = replace(request.codec, codec=TRANSFORM)
    spec = reader.spec_of(samples, coded, targets)
    if not is_open(request.codec, spec):
        return None, ()
    with work.stage("encode"):
        if request.uplink_budget:  # a payload holds no more than it allows
            trial = encode_samples(samples, targets, spec)
            rate = len(trial.to_bytes()) / len(samples)
            wanted = max(1, min(wanted, int(request.uplink_budget / rate)))
            samples, targets = samples[:wanted], targets[:wanted]
        if spec.classes:  # as they are sent
            ascending = np.argsort(targets, kind="stable")
            samples, targets = samples[ascending], targets[ascending]
        return choose(samples, targets, spec, request.codec, request.terms.codecs)
