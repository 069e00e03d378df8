"""Hooks of ``mkdocs build``, which ``mkdocs.yml`` names: links that leave ``docs``, and maths.

A page may link to any file of the repository, as GitHub shows it: the site gets those files under
``repository/``. Formulae become MathML as the site is built, so that a reader needs neither scripts
nor a network.
"""

import html
import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES, ELSEWHERE = "docs", "repository"  # the folder of the pages, and the site's for other files

_LINK = re.compile(r"(?<=]\()(?!\w+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
_FENCED = re.compile(r"(^```.*?^```)", re.S | re.M)
_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.S)
_DISPLAY = re.compile(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', re.S)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside ``docs`` that pages link to, and those that they link to in turn."""
    waiting = [file.src_uri for file in files.documentation_pages()]
    while waiting:
        page = waiting.pop()
        for target in targets(page, _read(page)):
            original = origin(target)
            if files.get_file_from_path(target) or not original.is_file():
                continue
            added = File.generated(config, target, abs_src_path=str(original))
            added.inclusion = InclusionLevel.NOT_IN_NAV
            files.append(added)
            if original.suffix == ".md":
                waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page's text with its links as they are in the site."""
    return with_site_links(page.file.src_uri, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page's HTML with its formulae as MathML."""
    return with_mathml(html)


def with_site_links(page: str, text: str) -> str:
    """Return the text of the page at a path of the site, with links to paths of the site."""
    folder = PurePosixPath(page).parent

    def moved(link: re.Match[str]) -> str:
        return os.path.relpath(_target(page, link[1]), folder) + (link[2] or "")

    return _outside_fences(lambda part: _LINK.sub(moved, part), text)


def targets(page: str, text: str) -> list[str]:
    """Return the paths in the site of all files that a page links to."""
    return [_target(page, link[1]) for link in _LINK.finditer(_FENCED.sub("", text))]


def origin(path: str) -> Path:
    """Return the file of the repository that is at a path of the site."""
    inside = PurePosixPath(path)
    if inside.is_relative_to(ELSEWHERE):
        return ROOT / inside.relative_to(ELSEWHERE)
    return ROOT / PAGES / inside


def with_mathml(page: str) -> str:
    """Replace TeX, as Markdown's extension Arithmatex leaves it in HTML, by MathML."""
    page = _INLINE.sub(lambda tex: convert(html.unescape(tex[1])), page)
    return _DISPLAY.sub(lambda tex: convert(html.unescape(tex[1]), display="block"), page)


def _target(page: str, link: str) -> str:
    """Return the path in the site of what a link leads to from a page."""
    path = os.path.relpath((origin(page).parent / link).resolve(), ROOT)
    inside = PurePosixPath(path)
    return str(inside.relative_to(PAGES) if inside.is_relative_to(PAGES) else ELSEWHERE / inside)


def _read(page: str) -> str:
    return origin(page).read_text(encoding="utf-8")


def _outside_fences(change: Callable[[str], str], text: str) -> str:
    parts = _FENCED.split(text)
    return "".join(part if index % 2 else change(part) for index, part in enumerate(parts))
