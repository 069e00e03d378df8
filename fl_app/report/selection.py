"""Which samples were sent: what importance kept and dropped, what survives, how classes balance."""

import numpy as np
from numpy.typing import NDArray

from fl_app.report import figures
from fl_app.report.arrived import Arrived, Ints
from fl_app.report.evidence import Evidence
from fl_app.report.figures import Line
from fl_app.report.gallery import data_uri, evenly
from fl_app.report.numbers import number, percent, titled
from fl_app.report.originals import Originals
from fl_app.report.scores import Scores
from fl_app.report.view import Block, Cell, Drawing, Picture, Series, Strip, Table

_STRIP = 12  # pictures in a row
_MOST_CLASSES = 24  # of a figure


def kept_and_dropped(evidence: Evidence, label: str) -> Block:
    """Return pictures of samples that were sent and that were not, by the model's scores."""
    arrived, originals = evidence.arrived, evidence.originals
    if not isinstance(arrived, Arrived) or not isinstance(originals, Originals):
        return Block(label, notes=["This needs both the originals and what arrived."])
    if not arrived.tag_bytes:
        told = "No tags travelled (identity-bytes = 0), so that nobody knows which were sent."
        return Block(label, notes=[told])
    sent = evidence.found[1]
    held, kept = len(originals.held), int((sent[originals.held] != 0).sum())
    notes = [f"Of {held:,} samples that the clients hold, {len(arrived):,} arrived."]
    if kept == held:
        return Block(
            label, notes=["All samples that the clients hold were sent: none was dropped."]
        )
    if not kept:
        return Block(label, notes=["None of the data set is known to have been sent."])
    scores = evidence.scores(evidence.pool)
    if not isinstance(scores, Scores):
        return Block(label, notes=[*notes, f"They have no scores: {scores}."])
    config = evidence.run.config
    chosen_by = config.importance if config is not None else "?"
    notes.append(
        f"Clients chose by importance = {chosen_by}. The pictures are of {len(evidence.pool)} "
        f"samples taken at random, from the highest {scores.name} to the lowest. The {scores.name} "
        "is that of the model at the end, which has learned from what was sent: clients were asked "
        "earlier."
    )
    there = sent[evidence.pool] > 0
    strips, series = [], {}
    for title, mask in (("Kept", there), ("Dropped", ~there)):
        places = np.flatnonzero(mask)
        if len(places):
            series[title.lower()] = scores.values[places].tolist()
            mean = f"mean {scores.name} {scores.values[places].mean():.3f}"
            title += f": {len(places)} of {len(there)}, {mean}"
            strips.append(Strip(title, _by_score(evidence, originals, scores, places)))
    return Block(label, strips=strips, drawings=[_histogram(series, scores, label)], notes=notes)


def _by_score(
    evidence: Evidence, originals: Originals, scores: Scores, places: Ints
) -> list[Picture]:
    images = originals.images
    ordered = places[np.argsort(-scores.values[places], kind="stable")]
    found = []
    for place in evenly(ordered, _STRIP).tolist():
        index = int(evidence.pool[place])
        name = evidence.class_name(int(images.labels[index]))
        uri = data_uri(images.samples[index], images.value_range)
        score = f"{scores.values[place]:.2f}"
        found.append(Picture(uri, f"{name}, {scores.name} {score}", [name, score]))
    return found


def _histogram(series: dict[str, list[float]], scores: Scores, label: str) -> Drawing:
    title = f"{scores.name.capitalize()} of kept and dropped samples"
    svg = figures.histogram(series, scores.name, titled(title, label))
    quartiles = (0.0, 0.25, 0.5, 0.75, 1.0)
    rows = [
        [Cell(name), *(number(float(q), f"{q:.3f}") for q in np.quantile(values, quartiles))]
        for name, values in series.items()
    ]
    head = ["", "least", "lower quartile", "median", "upper quartile", "most"]
    caption = "Shares of the samples of each kind; the higher the score, the more important."
    return Drawing(title, caption, svg, Table(title, head, rows))


def variance(evidence: Evidence, label: str) -> Block:
    """Return the share of the samples' variance that survived, round by round."""
    arrived = evidence.arrived
    overall = evidence.run.result.get("variance_kept")
    told = [] if overall is None else [f"{100 * overall:.2f} % over all samples that were sent."]
    if isinstance(arrived, str):
        return Block(label, notes=[*told, f"By round it is not known: {arrived}."])
    rounds = sorted({reply.server_round for reply in arrived.replies})
    shares = []
    for server_round in rounds:
        some = [reply for reply in arrived.replies if reply.server_round == server_round]
        count = sum(reply.count for reply in some) or 1
        shares.append(sum(reply.variance_kept * reply.count for reply in some) / count)
    title = "Share of variance kept"
    named = titled(title, label)
    if len(rounds) > 1:
        line = Line("", rounds, [float(r) for r in rounds], [100 * share for share in shares])
        svg = figures.lines([line], "round", "variance kept (%)", named)
        rows = [[number(r), percent(share)] for r, share in zip(rounds, shares, strict=True)]
        cells = {str(r): percent(share) for r, share in zip(rounds, shares, strict=True)}
        series = Series(cells, "variance kept (%)", "rounds", 100)
        table = Table(title, ["round", "variance kept"], rows)
    else:
        kept = {
            f"client {r.client}": 100 * r.variance_kept for r in arrived.replies[:_MOST_CLASSES]
        }
        svg = figures.bars(list(kept), {"": list(kept.values())}, "variance kept (%)", named)
        rows = [[Cell(name), percent(value / 100)] for name, value in kept.items()]
        series = Series({row[0].text: row[1] for row in rows}, "variance kept (%)", "numbers", 100)
        table = Table(title, ["client", "variance kept"], rows)
    caption = "Of the samples as clients hold them, what is left once they are coded, as they tell."
    return Block(label, drawings=[Drawing(title, caption, svg, table, series)], notes=told)


def balance(evidence: Evidence, label: str) -> Block:
    """Return classes sent beside classes held."""
    arrived, originals = evidence.arrived, evidence.originals
    if isinstance(arrived, str):
        return Block(label, notes=[f"What was sent is not known by class: {arrived}."])
    if arrived.labels.min() < 0:
        return Block(label, notes=["Targets are no classes."])
    classes = max(int(arrived.labels.max()) + 1, len(evidence.class_names))
    sent = np.bincount(arrived.labels, minlength=classes)
    notes, held = [], np.zeros(classes, np.int64)
    if isinstance(originals, str):
        notes.append(f"What the clients hold is not known: {originals}.")
    else:
        classes = max(classes, originals.images.classes)
        sent = np.bincount(arrived.labels, minlength=classes)
        held = np.bincount(originals.images.labels[originals.held], minlength=classes)
    names = [evidence.class_name(k) for k in range(classes)]
    series = {"held": _shares(held)} if held.any() else {}
    series["sent"] = _shares(sent)
    title = "Class balance"
    shown = np.sort(np.argsort(-(held + sent), kind="stable")[:_MOST_CLASSES])
    svg = figures.bars(
        [names[k] for k in shown],
        {name: values[shown].tolist() for name, values in series.items()},
        "share of the samples (%)",
        titled(title, label),
    )
    rows = [
        [Cell(names[k]), *([number(int(held[k]))] if held.any() else []), number(int(sent[k]))]
        for k in range(classes)
    ]
    head = ["class", *(["held"] if held.any() else []), "sent"]
    caption = "Share of each class among the samples that clients hold, and that arrived."
    return Block(
        label, drawings=[Drawing(title, caption, svg, Table(title, head, rows))], notes=notes
    )


def _shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = 100 * counts / max(1, counts.sum())
    return shares
