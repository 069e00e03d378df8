"""The documentation as a site: it builds strictly, whole, and is read without a network."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from doc_pages import ROOT, anchors_of, outside_fences

from sim.docs_site import origin, targets, with_mathml, with_site_links

PACKAGES = (
    "clients",
    "clients.baselines",
    "codec",
    "strategies",
    "strategies.baselines",
    "strategies.sample_bank",
)


def build(project: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    return subprocess.run(command, cwd=project, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder


# Links, and formulae


@pytest.mark.parametrize(
    ("page", "link", "moved"),
    [
        ("data.md", "results.md#theory", "results.md#theory"),
        ("data.md", "deployment/nginx.conf", "deployment/nginx.conf"),
        ("data.md", "#theory", "#theory"),
        ("data.md", "https://flower.ai", "https://flower.ai"),
        ("data.md", "../README.md#results", "repository/README.md#results"),
        ("data.md", "../sim/results/a.png", "repository/sim/results/a.png"),
        ("repository/README.md", "docs/data.md#units", "../data.md#units"),
        ("repository/README.md", "sim/results/a.png", "sim/results/a.png"),
        ("repository/sim/results/a.md", "../../docs/data.md", "../../../data.md"),
    ],
)
def test_a_link_leads_to_the_same_file_in_the_site(page: str, link: str, moved: str) -> None:
    assert with_site_links(page, f"see [it]({link}).") == f"see [it]({moved})."


def test_code_keeps_what_looks_like_a_link() -> None:
    text = "[a](../README.md)\n\n```python\nb = [f](../x.md)\n```\n"
    assert with_site_links("data.md", text) == text.replace("../README", "repository/README")
    assert targets("data.md", text) == ["repository/README.md"]


def test_files_of_the_site_are_found_again() -> None:
    assert origin("data.md") == ROOT / "docs" / "data.md"
    assert origin("repository/README.md") == ROOT / "README.md"


def test_formulae_become_mathml() -> None:
    page = r'<p><span class="arithmatex">\(a &lt; b\)</span></p>'
    assert re.fullmatch(r"<p><math [^>]*inline.*&#x0003C;.*</math></p>", with_mathml(page))
    page = '<div class="arithmatex">\\[\n\\hat{x}\n\\]</div>'
    assert re.fullmatch(r"<math [^>]*block.*</math>", with_mathml(page))


# The site


@pytest.mark.slow
def test_all_that_is_public_is_in_the_reference(site: Path) -> None:
    page = (site / "api.html").read_text(encoding="utf-8")
    for package in PACKAGES:
        source = ROOT.joinpath(*package.split("."), "__init__.py").read_text(encoding="utf-8")
        [names] = (
            ast.literal_eval(node.value)
            for node in ast.parse(source).body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        )
        assert names
        for name in names:
            assert re.search(rf'id="[\w.]+\.{name}"', page), f"{package}.{name}"


@pytest.mark.slow
def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|link)\b[^>]*?\b(?:src|href)="?([^" >]+)', text)
        assert loaded
        assert not [address for address in loaded if re.match(r"(https?:)?//", address)], page.name
        assert "arithmatex" not in text, f"a formula of {page.name} is no MathML"


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_tables_and_anchors_are_those_of_github(page: Path, site: Path) -> None:
    rendered = (site / page.name).with_suffix(".html").read_text(encoding="utf-8")
    tables = re.findall(r"^\|[ -]*-[-| :]*\|$", outside_fences(page), re.M)
    assert rendered.count("<table>") >= len(tables)
    assert not [anchor for anchor in anchors_of(page) if f'id="{anchor}"' not in rendered]


@pytest.mark.slow
@pytest.mark.parametrize(
    "link", ["[a](nowhere.md)", "[a](data.md#nowhere)", "[a](../nowhere.txt)", "![a](nowhere.png)"]
)
def test_a_dead_link_fails_the_build(link: str, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "data.md").write_text("# Data\n")
    (tmp_path / "docs" / "index.md").write_text(f"# Home\n\n{link}\n")
    (tmp_path / "sim").mkdir()
    shutil.copy(ROOT / "sim" / "docs_site.py", tmp_path / "sim")
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    nav = yaml.safe_dump({"nav": [{"Home": "index.md"}, {"Data": "data.md"}]})
    changed = re.sub(r"^nav:\n(?: .*\n)+", nav, config, flags=re.M)
    (tmp_path / "mkdocs.yml").write_text(changed)
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1 and "nowhere" in done.stderr


def test_ci_builds_it_strictly() -> None:
    assert "mkdocs build --strict" in (ROOT / ".ci" / "run").read_text()
