"""From sections to one page of HTML. All text is escaped: names of classes are anybody's."""

import base64
import hashlib
from collections.abc import Sequence

from jinja2 import DictLoader, Environment, StrictUndefined

from fl_app.report.run import Run
from fl_app.report.script import SCRIPT
from fl_app.report.sections import names_of
from fl_app.report.style import STYLE
from fl_app.report.template import PAGE
from fl_app.report.view import Section

_WIDE = ("headline", "accuracy", "configuration")  # whose blocks stand below each other


def page(runs: Sequence[Run], sections: Sequence[Section]) -> str:
    """Return the page of some runs."""
    environment = Environment(
        loader=DictLoader({"page": PAGE}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    names = names_of(runs)
    return environment.get_template("page").render(
        title=names[0] if len(runs) == 1 else f"{len(runs)} runs side by side",
        kind="Report of a run" if len(runs) == 1 else "Report of " + ", ".join(names),
        lead=_lead(runs[0]) if len(runs) == 1 else "",
        sections=sections,
        style=STYLE,
        script=SCRIPT,
        script_hash=f"sha256-{digest}",
        wide=_WIDE,
    )


def _lead(run: Run) -> str:
    """Return in a line what the run was."""
    told = run.entries
    clients = f"{run.result['clients']:,} clients" if "clients" in run.result else ""
    parts = [str(told.get(key, "")) for key in ("dataset", "strategy", "model", "codec")]
    names = ("data set", "strategy", "model", "codec")
    words = [f"{name} {part}" for name, part in zip(names, parts, strict=True) if part]
    return ", ".join(filter(None, [*words, clients]))
