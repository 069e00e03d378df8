"""``docs/keys.md`` is generated from the options."""

import re

from fl_app.config import GROUPS, RunConfig
from sim.key_tables import PAGE, with_tables

TEXT = PAGE.read_text(encoding="utf-8")


def test_the_page_is_current() -> None:
    assert with_tables(TEXT) == TEXT


def test_tables_are_written_anew_whatever_stood_there() -> None:
    head, tail = TEXT.split("## Run\n")[0], TEXT[TEXT.index("<!-- end of generated") :]
    assert with_tables(f"{head}## Old\n\n{tail}") == TEXT


def test_every_key_has_its_row() -> None:
    rows = re.findall(
        r"^\| `([\w-]+)` \| `[^`]+` \| (?:[^|]|\\\|)+ \| (?:[^|]|\\\|)+ \|$", TEXT, re.M
    )
    assert sorted(rows) == sorted(RunConfig().to_run_config())
    assert re.findall(r"^## (.*)$", TEXT, re.M) == list(GROUPS)
