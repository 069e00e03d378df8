"""The sections of a report, of one run or of several side by side."""

from collections import Counter
from collections.abc import Callable, Sequence

from fl_app.report import costs, numbers, pictures, selection
from fl_app.report.evidence import Evidence
from fl_app.report.run import Run
from fl_app.report.together import together
from fl_app.report.view import Block, Section


def sections_of(runs: Sequence[Run]) -> list[Section]:
    """Return what the page shows of runs, at least one."""
    evidences, names = [Evidence(run) for run in runs], names_of(runs)
    alone = len(runs) == 1
    labels = [""] if alone else names

    def each(block: Callable[[Evidence, str], Block]) -> list[Block]:
        return [block(one, label) for one, label in zip(evidences, labels, strict=True)]

    def side_by_side(block: Callable[[Evidence, str], Block]) -> list[Block]:
        return together(each(block), names)

    shared = Block() if alone else pictures.common(evidences, names)
    arrivals = (
        [shared]
        if shared.cards
        else [shared, *each(lambda e, label: pictures.arrivals(e, label, alone=alone))]
    )
    return [
        Section("headline", "Headline", "Headline numbers", "", [numbers.headline(runs, names)]),
        Section(
            "accuracy",
            "Accuracy",
            "Accuracy",
            "Pick what it is plotted over; the round that you pick is marked in all of them.",
            [numbers.accuracy(runs, names)],
        ),
        Section(
            "pictures",
            "Pictures",
            "What an image looks like when it arrives",
            "Originals beside what arrived, and beside what the same codec makes of them at other "
            "rates, with class, client, and the trained model's score of the original. The bytes "
            "of a sample are those by which a payload grows when it is added, coded here for this "
            "page; the block transform's coder writes words of four. What arrived is framed.",
            arrivals,
        ),
        Section(
            "worst",
            "Distortion",
            "The most distorted samples",
            "",
            each(lambda e, label: pictures.worst(e, label, alone=alone)),
        ),
        Section(
            "selection",
            "Importance",
            "What importance kept and dropped",
            "",
            each(selection.kept_and_dropped),
        ),
        Section(
            "bytes",
            "Bytes",
            "Bytes by section, direction and client",
            "",
            side_by_side(costs.traffic),
        ),
        Section("variance", "Variance", "Variance kept", "", side_by_side(selection.variance)),
        Section(
            "balance", "Classes", "Class balance, sent against held", "", each(selection.balance)
        ),
        Section("failures", "Failures", "Failures by node and cause", "", each(costs.failures)),
        Section(
            "seconds",
            "Seconds",
            "Seconds by stage",
            "",
            side_by_side(lambda e, label: costs.seconds(e.run, label)),
        ),
        Section(
            "configuration",
            "Configuration",
            "Configuration, versions, and how to repeat it",
            "",
            numbers.configuration(runs, labels),
        ),
    ]


def names_of(runs: Sequence[Run]) -> list[str]:
    """Return what the runs are called: their folders' names, numbered where they are the same."""
    counts = Counter(run.name for run in runs)
    return [
        run.name if counts[run.name] == 1 else f"{run.name} ({number})"
        for number, run in enumerate(runs, start=1)
    ]
