"""What samples look like: as they arrived, at other rates, at worst."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec import SampleSpec
from codec.messages import REPLAY, STREAMING
from fl_app.images import Images
from fl_app.report.arrived import Arrived, Ints
from fl_app.report.evidence import Evidence, Excerpt
from fl_app.report.gallery import (
    Coded,
    coded,
    data_uri,
    difference,
    is_cut,
    settings_of,
    spread_over_classes,
)
from fl_app.report.originals import Originals, mean_square
from fl_app.report.scores import Scores
from fl_app.report.view import Block, Card, Picture
from fl_app.words import size

_CARDS, _CARDS_BESIDE = 12, 6  # samples of a run alone, and of one of several
_WORST, _WORST_BESIDE = 6, 3
_MOST_COMMON = 10  # samples that several runs have sent
_CUT = "Of large pictures the middle is shown, each of its pixels a pixel."

Rates = list[tuple[bool, Coded, int]]  # whether it is the run's own, the rate, and which of it


def arrivals(evidence: Evidence, label: str, *, alone: bool) -> Block:
    """Return originals beside what arrived at each rate."""
    excerpt, originals = evidence.excerpt, evidence.originals
    most = _CARDS if alone else _CARDS_BESIDE
    config = evidence.run.config
    if config is not None and config.strategy not in (REPLAY, STREAMING):
        return Block(label, notes=[f"Strategy {config.strategy} sends no samples."])
    if isinstance(excerpt, str):
        notes = [f"What arrived is not here: {excerpt}."]
        if isinstance(originals, str):
            return Block(label, notes=[*notes, f"Nor are the originals: {originals}."])
        notes.append("These are originals, coded here as the run's options say.")
        return Block(label, cards=_as_coded(evidence, originals, most), notes=notes)
    if isinstance(originals, str):
        notes = [f"The originals are not here: {originals}. This is what arrived."]
        return Block(label, cards=_without_originals(evidence, excerpt, 2 * most), notes=notes)
    known = np.flatnonzero(excerpt.originals >= 0)
    if not len(known):
        notes = [
            "No sample could be told to be one of the data set: no tags travelled "
            "(identity-bytes = 0), or the data are others. This is what arrived."
        ]
        return Block(label, cards=_without_originals(evidence, excerpt, 2 * most), notes=notes)
    known = np.random.default_rng(0).permutation(known)  # of all clients in the excerpt
    labels = originals.images.labels[excerpt.originals[known]]
    places = known[spread_over_classes(labels, most)]
    notes = [_CUT] if is_cut(originals.images.kind.shape) else []
    return Block(label, cards=_cards(evidence, originals, excerpt, places, alone), notes=notes)


def common(evidences: Sequence[Evidence], labels: Sequence[str]) -> Block:
    """Return the same samples as they arrived in several runs; an empty block if there are none."""
    sent: list[dict[int, int]] = []  # place in the excerpt by image, run by run
    for evidence in evidences:
        if isinstance(evidence.excerpt, str) or isinstance(evidence.originals, str):
            return Block()
        of = evidence.found[0]
        sent.append({int(image): row for row, image in enumerate(of.tolist()) if image >= 0})
    first = evidences[0].originals
    assert isinstance(first, Originals)
    of_one = {(e.run.entries.get("dataset"), e.run.entries.get("image-size")) for e in evidences}
    shared = np.array(sorted(set.intersection(*map(set, sent))), np.int64)
    if len(of_one) > 1 or not len(shared):
        return Block(notes=["No sample was sent in all of these runs."])
    images = first.images
    shared = np.random.default_rng(0).permutation(shared)[: 8 * _MOST_COMMON]
    chosen = shared[spread_over_classes(images.labels[shared], _MOST_COMMON)]
    pictures: list[list[Picture]] = [[_original(images, index, evidences[0])] for index in chosen]
    for evidence, label, rows in zip(evidences, labels, sent, strict=True):
        arrived = evidence.arrived
        assert isinstance(arrived, Arrived)
        places = np.array([rows[int(index)] for index in chosen])
        samples = arrived.decoded(places)
        specs = [arrived.specs[int(arrived.payloads[row])] for row in places]
        rates = rates_of(images, chosen, specs, np.setdiff1d(shared, chosen), every_rate=False)
        for n, found in enumerate(rates):
            told = [line for _, rate, k in found for line in (rate.label, f"{rate.sizes[k]} B")]
            alt = f"as it arrived in {label}"
            uri = data_uri(samples[n], images.value_range)
            pictures[n].append(Picture(uri, alt, [label, *told], is_own=True))
    names = [evidences[0].class_name(int(images.labels[index])) for index in chosen]
    cards = [Card(name, some) for name, some in zip(names, pictures, strict=True)]
    notes = [
        "These samples arrived in all of the runs. The report of each run alone has other rates, "
        "and what importance makes of them."
    ]
    return Block(cards=cards, notes=notes)


def worst(evidence: Evidence, label: str, *, alone: bool) -> Block:
    """Return the samples that coding has changed most."""
    excerpt, originals = evidence.excerpt, evidence.originals
    if isinstance(excerpt, str) or isinstance(originals, str):
        return Block(label, notes=["Distortion needs both the originals and what arrived."])
    known = np.flatnonzero(excerpt.originals >= 0)
    if not len(known):
        return Block(label, notes=["No sample could be told to be one of the data set."])
    images = originals.images
    of_known = images.samples[excerpt.originals[known]]
    errors = mean_square(of_known, excerpt.samples[known])
    variance = float(of_known.astype(np.float64).var()) or 1.0
    order = np.argsort(-errors, kind="stable")[: _WORST if alone else _WORST_BESIDE]
    cards = []
    arrived = evidence.arrived
    assert isinstance(arrived, Arrived)
    payloads = arrived.payloads[excerpt.rows[known[order]]]
    indices = excerpt.originals[known[order]]
    specs = [arrived.specs[int(payload)] for payload in payloads]
    beside = np.setdiff1d(excerpt.originals[known], indices)
    rates = rates_of(images, indices, specs, beside, every_rate=False)
    for place, n in enumerate(order.tolist()):
        index, sample = int(excerpt.originals[known[n]]), excerpt.samples[known[n]]
        name = evidence.class_name(int(images.labels[index]))
        change = difference(images.samples[index], sample, images.value_range)
        pictures = [
            _original(images, index, evidence),
            *_at_rates(rates[place], images, name, sample),
            Picture(
                data_uri(change, images.value_range),
                f"{name}, difference, twofold",
                ["difference, twofold", "grey: none"],
            ),
        ]
        cards.append(
            Card(f"{name} · error {100 * errors[n] / variance:.0f} % of variance", pictures)
        )
    notes = [
        f"Of the {len(known):,} samples looked at, the mean error is "
        f"{100 * errors.mean() / variance:.1f} % of the variance, that of the worst "
        f"{100 * errors.max() / variance:.0f} %."
    ]
    return Block(label, cards=cards, notes=notes)


def rates_of(
    images: Images,
    indices: Ints,
    specs: Sequence[SampleSpec],
    beside: Ints,
    *,
    every_rate: bool,
) -> list[Rates]:
    """Code images as their specs say, and at other rates; for each image, finest first.

    Parameters
    ----------
    images : Images
    indices : int64 (M,)
    specs : sequence of SampleSpec
        Of each.
    beside : int64 (B,)
        Images that share the payloads in which bytes are measured.
    every_rate : bool
        Whether at other rates, too.
    """
    found: list[Rates] = [[] for _ in specs]
    others = images.samples[beside if len(beside) else indices]
    for spec in dict.fromkeys(specs):
        here = [n for n, one in enumerate(specs) if one == spec]
        samples, labels = images.samples[indices[here]], images.labels[indices[here]]
        settings = settings_of(spec)
        rates = []
        for setting in settings if every_rate else settings[:1]:
            rate = coded(samples, labels, others, spec, setting)
            if rate is not None:
                rates.append((setting == settings[0], rate))
        rates.sort(key=lambda one: -int(one[1].sizes.sum()))
        for k, n in enumerate(here):
            found[n] = [(own, rate, k) for own, rate in rates]
    return found


def _cards(
    evidence: Evidence, originals: Originals, excerpt: Excerpt, places: Ints, every_rate: bool
) -> list[Card]:
    """Return a card for each of some places of the excerpt, all of which have an original."""
    arrived, images = evidence.arrived, originals.images
    assert isinstance(arrived, Arrived)
    indices, rows = excerpt.originals[places], excerpt.rows[places]
    specs = [arrived.specs[int(payload)] for payload in arrived.payloads[rows]]
    known = excerpt.originals[excerpt.originals >= 0]
    rates = rates_of(images, indices, specs, np.setdiff1d(known, indices), every_rate=every_rate)
    scored = _scored(evidence, indices)
    cards = []
    for n, index in enumerate(indices.tolist()):
        name = evidence.class_name(int(images.labels[index]))
        pictures = [_original(images, index, evidence)]
        own = excerpt.samples[places[n]]
        pictures += _at_rates(rates[n], images, name, own)
        sender = f" · client {arrived.clients[rows[n]]}" if evidence.run.clients is not None else ""
        cards.append(Card(f"{name}{sender}{scored[n]}", pictures))
    return cards


def _at_rates(rates: Rates, images: Images, name: str, own: NDArray[Any] | None) -> list[Picture]:
    """Return a picture for each rate; that of the run's own rate is what arrived, if it is here."""
    found = []
    for is_own, rate, k in rates:
        came = own if is_own and own is not None else None
        sample = rate.samples[k] if came is None else came
        lines = ["arrived" if came is not None else "", rate.label, f"{rate.sizes[k]} B"]
        alt = f"{name}, {rate.label}{', as it arrived' if came is not None else ''}"
        uri = data_uri(sample, images.value_range)
        found.append(Picture(uri, alt, [line for line in lines if line], is_own))
    return found


def _as_coded(evidence: Evidence, originals: Originals, most: int) -> list[Card]:
    """Return originals at the rates of the run's codec, where nothing that arrived was kept."""
    config, images, pool = evidence.run.config, originals.images, evidence.pool
    assert config is not None
    kind = images.kind
    spec = SampleSpec(kind.shape, kind.dtype, *kind.value_range, kind.classes, codec=config.codec)
    indices = pool[spread_over_classes(images.labels[pool], most)]
    beside = np.setdiff1d(pool, indices)
    rates = rates_of(images, indices, [spec] * len(indices), beside, every_rate=True)
    scored = _scored(evidence, indices)
    cards = []
    for n, index in enumerate(indices.tolist()):
        name = evidence.class_name(int(images.labels[index]))
        pictures = [_original(images, index, evidence), *_at_rates(rates[n], images, name, None)]
        cards.append(Card(f"{name}{scored[n]}", pictures))
    return cards


def _without_originals(evidence: Evidence, excerpt: Excerpt, most: int) -> list[Card]:
    """Return what arrived, alone."""
    arrived = evidence.arrived
    assert isinstance(arrived, Arrived)
    labels = arrived.labels[excerpt.rows]
    cards = []
    for place in spread_over_classes(labels, most).tolist():
        spec = arrived.specs[int(arrived.payloads[excerpt.rows[place]])]
        if len(spec.shape) != 3 or spec.shape[0] not in (1, 3):
            continue  # no picture
        name = evidence.class_name(int(labels[place]))
        uri = data_uri(excerpt.samples[place], (spec.low, spec.high))
        each = arrived.payload_bytes / max(1, len(arrived) + arrived.duplicates)
        lines = ["arrived", f"{each:.1f} B, mean"]
        cards.append(Card(name, [Picture(uri, f"{name}, as it arrived", lines, is_own=True)]))
    return cards


def _scored(evidence: Evidence, indices: Ints) -> list[str]:
    """Return what the trained model makes of images, as the end of a title."""
    scores = evidence.scores(indices)
    if not isinstance(scores, Scores):
        return [""] * len(indices)
    return [f" · {scores.name} {value:.2f}" for value in scores.values]


def _original(images: Images, index: int, evidence: Evidence) -> Picture:
    name, sample = evidence.class_name(int(images.labels[index])), images.samples[index]
    uri = data_uri(sample, images.value_range)
    return Picture(uri, f"{name}, original", ["original", size(sample.nbytes)])
