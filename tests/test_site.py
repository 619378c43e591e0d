"""The site: pages, links, menu, the reference that the code writes; and the README as the package index shows it."""

import importlib
import json
import re
import subprocess
import sys

import pytest
import typer.main

import torchbeats
from pages import ROOT, pages
from torchbeats.cli import app
from torchbeats.training.explaining import explanations
from torchbeats.training.settings import FinetuneSettings, Settings

DOCS = ROOT / "docs"


@pytest.fixture
def site(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(DOCS)
    module = importlib.import_module("build_site")
    monkeypatch.setattr(module, "WORK", tmp_path / "work")
    return module


@pytest.fixture
def reference(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    return importlib.import_module("reference")


def test_every_page_has_a_place_and_every_link_leads_somewhere(site):
    titles, wrong = site.prepare()
    assert wrong == []
    entries = [
        page for part in site.menu(titles) for links in part.values() for link in links for page in link.values()
    ]
    assert sorted(entries) == sorted(titles)
    written = {page.removeprefix("docs/") for page in pages() if page.startswith("docs/")}
    assert written <= {*titles}


@pytest.mark.parametrize("link", ["nowhere.md", "../nowhere/", "pictures/none.png"])
def test_a_link_that_leads_nowhere_is_told(site, link):
    wrong = []
    site.linked(f"See [this]({link}), not `[that](never.md)`.", "docs/index.md", "index.md", {}, set(), wrong)
    assert wrong == [f"docs/index.md: {link} leads nowhere"]


def test_links_are_made_to_fit(site):
    known = {"docs/design.md": "design.md", "recipes/nano/README.md": "recipes/nano.md"}
    text = "[a](../design.md#rooms) [b](../../recipes/nano) [c](../../LICENSE) [d](../reference/settings.md) [e](https://x.org)"
    text += " [`f`](../../SECURITY.md) `[g](nowhere)` [h](../design.md)"
    wrong = []
    result = site.linked(text, "docs/understand/x.md", "understand/x.md", known, {"reference/settings.md"}, wrong)
    assert wrong == []
    assert re.findall(r"\((.*?)\)", result) == [
        "../design.md#rooms",
        "../recipes/nano.md",
        f"{site.repository()}/blob/main/LICENSE",
        "../reference/settings.md",
        "https://x.org",
        f"{site.repository()}/blob/main/SECURITY.md",
        "nowhere",  # in code, which is left alone
        "../design.md",
    ]


def test_every_setting_is_in_the_reference(reference):
    text = reference.setting_tables()
    for kind in (Settings, FinetuneSettings):
        for row in explanations(kind()):
            line = next(line for line in text.splitlines() if line.startswith(f"| `{row.name}` |"))
            assert len(line) > len(row.name) + 30


def test_every_option_of_every_command_is_in_the_reference(reference):
    text = reference.commands()
    for name, command in typer.main.get_command(app).commands.items():
        part = text.split(f"### torchbeats {name}\n")[1].split("\n### ")[0]
        for parameter in command.params:
            if parameter.param_type_name != "argument" and not parameter.hidden:
                assert f"`{parameter.opts[0]}`" in part, (name, parameter.name)
                assert parameter.help, f"torchbeats {name} {parameter.opts[0]} has no help"
        assert part.splitlines()[1].startswith(command.help.split()[0])


def test_every_public_name_is_in_the_reference(reference):
    text = "\n".join(reference.api().values())
    listed = re.findall(r"^::: torchbeats\.(\w+)$", text, re.MULTILINE)
    assert sorted(listed) == sorted(set(torchbeats.__all__) - reference.PLAIN)
    for name in listed:
        assert (getattr(torchbeats, name).__doc__ or "").strip(), f"{name} has no docstring"


def test_notebooks_become_pages(site):
    text = site.text_of("docs/notebooks/explore.ipynb")
    assert text.startswith("# Explore a collection\n")
    assert "```python\nfrom pathlib import Path" in text


def test_the_site_builds(site, tmp_path, capfd):
    """With Zensical, which looks at links and anchors once more, strictly."""
    pytest.importorskip("zensical")
    pytest.importorskip("mkdocstrings")
    site.main(tmp_path / "html")
    assert "No issues found" in "".join(capfd.readouterr())
    assert "torchbeats.embed" in (tmp_path / "html" / "reference" / "api-1" / "index.html").read_text("utf-8")
    search_index = json.loads((tmp_path / "html" / "search.json").read_text("utf-8"))
    assert "augment.mel_shift" in json.dumps(search_index)


def test_pictures_are_those_that_pages_show(monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(DOCS)
    pictures = importlib.import_module("pictures")
    shown = {
        name for page in pages() for name in re.findall(r"pictures/([\w-]+)\.png", (ROOT / page).read_text("utf-8"))
    }
    assert shown == {path.stem for path in (DOCS / "pictures").glob("*.png")}
    assert {name for name in shown if not name.startswith("serve-")} == {*pictures.PICTURES}  # those are of a browser


@pytest.mark.parametrize("name", ["patches", "masked", "loop", "timeline"])
def test_pictures_are_drawn(name, monkeypatch):
    plt = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.syspath_prepend(DOCS)
    pictures = importlib.import_module("pictures")
    figure = pictures.PICTURES[name]()
    assert any(axes.images or axes.patches for axes in figure.axes)
    plt.close(figure)


def test_the_package_index_gets_links_that_work_there(tmp_path):
    """The README's links are relative, so that they work in every clone; a package's are not."""
    pytest.importorskip("hatch_fancy_pypi_readme")
    done = subprocess.run(
        [sys.executable, "-m", "hatch_fancy_pypi_readme"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    links = re.findall(r"\]\(([^)]+)\)", done.stdout)
    assert len(links) > 10
    assert [link for link in links if not link.startswith("https://")] == []
    (picture,) = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", done.stdout)
    assert "/raw/" in picture
    here = [link.split("/main/")[1].split("#")[0] for link in links if "/main/" in link]
    assert [path for path in here if not (ROOT / path).exists()] == []
