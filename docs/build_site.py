"""Build the documentation as a site: ``python docs/build_site.py [FOLDER]``, which is what ``make docs`` runs.

Pages are written for whoever reads them in the checkout. For the site they are copied to ``build/site/pages``, together
with files from elsewhere that belong to it (the model's card, the benchmarks, the changes), with pages that the code
writes (`reference`), and with notebooks as pages. Their links are made to fit; one that leads nowhere ends the build.
Then Zensical makes the site, strictly.
"""

from __future__ import annotations

import json
import posixpath
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(Path(__file__).parent))

import reference  # noqa: E402 - lies beside this file

WORK = ROOT / "build" / "site"

# Files from outside docs/ that are pages of the site, and where.
ELSEWHERE = {
    "src/torchbeats/assets/MODEL_CARD.md": "understand/built-in-model.md",
    "benchmarks/README.md": "understand/benchmarks.md",
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "recipes/README.md": "recipes/index.md",
    "recipes/nano/README.md": "recipes/nano.md",
    "recipes/fsdd/README.md": "recipes/fsdd.md",
    **{
        path.relative_to(ROOT).as_posix(): f"understand/results/{path.name}"
        for path in sorted((ROOT / "benchmarks" / "results").glob("*.md"))
    },
}
# The menu: what stands first in each part; other pages of the folders follow by name.
MENU: dict[str, tuple[list[str], list[str]]] = {
    "Start": (["index.md", "install.md"], []),
    "Tutorials": (
        ["tutorials/search.md", "tutorials/detector.md", "teach.md", "tutorials/finetune.md", "tutorials/pretrain.md",
         "serve.md"],
        ["tutorials", "notebooks"],
    ),
    "How-to": (
        ["embedding.md", "tagging.md", "annotations.md", "judging.md", "finetuning.md", "pretraining.md", "tokens.md",
         "weights.md", "offline.md", "onnx.md", "many-machines.md", "clusters.md"],
        ["", "recipes"],
    ),
    "Neighbours": ([], ["integrations"]),
    "Reference": (["reference/commands.md", "reference/settings.md"], ["reference"]),
    "Understand": (
        ["understand/method.md", "understand/built-in-model.md", "understand/exactness.md", "understand/speed.md",
         "understand/benchmarks.md", "reliability.md", "design.md"],
        ["understand", "understand/results"],
    ),
    "Coming from": (["coming-from/speechbrain.md", "coming-from/research-code.md"], ["coming-from"]),
    "Project": (["changes.md", "upgrading.md", "contributing.md", "security.md"], []),
}  # fmt: skip

# Names of settings and options are not broken in the middle; commands and tables are to fit a phone.
CSS = """td:first-child code { white-space: nowrap; }
/* On a phone a command is seen whole: what does not fit goes on in a line that hangs in. */
@media screen and (max-width: 44.9em) {
  .language-bash pre > code, .language-sh pre > code { white-space: pre-wrap; overflow-wrap: anywhere; }
  .language-bash pre > code > span[id], .language-sh pre > code > span[id] {
    display: block; padding-left: 2ch; text-indent: -2ch;
  }
  .md-typeset table:not([class]) :is(th, td) { min-width: 0; padding: .6em .7em; }
}
"""

_CODE = r"^```.*?^```$|`[^`\n]+`"  # in which a bracket is no link; in the text of a link, code is a part of that
_LINK = re.compile(rf"{_CODE}|(!?\[(?:[^\[\]]|\[[^\]]*\])*\]\()([^)\s]+)(\))", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^# (.+)$", re.MULTILINE)


def repository() -> str:
    """The repository's URL, which pyproject.toml has."""
    (url,) = re.findall(r'^Source = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    return str(url)


def sources() -> dict[str, str]:
    """Which file of the checkout becomes which page: ``{path in the checkout: path in the site}``."""
    result = {
        path.relative_to(ROOT).as_posix(): path.relative_to(ROOT / "docs").with_suffix(".md").as_posix()
        for pattern in ("*.md", "*.ipynb")
        for path in sorted((ROOT / "docs").rglob(pattern))
        if ".ipynb_checkpoints" not in path.parts
    }
    if (ROOT / "UPGRADING.md").exists():
        result["UPGRADING.md"] = "upgrading.md"
    return result | ELSEWHERE


def text_of(source: str) -> str:
    """A source as Markdown; of a notebook its cells."""
    text = (ROOT / source).read_text("utf-8")
    if not source.endswith(".ipynb"):
        return text
    cells = [
        "".join(cell["source"]) if cell["cell_type"] == "markdown" else f"```python\n{''.join(cell['source'])}\n```"
        for cell in json.loads(text)["cells"]
    ]
    where = f"This page is a notebook: [open or download it]({repository()}/blob/main/{source})."
    return "\n\n".join([cells[0], where, *cells[1:]]) + "\n"


def linked(text: str, source: str, page: str, pages: dict[str, str], generated: set[str], wrong: list[str]) -> str:
    """A page's text with links for the site; those that lead nowhere are added to ``wrong``."""

    def replaced(match: re.Match[str]) -> str:
        before, link, after = match.groups()
        if link is None or re.match(r"[a-z]+:|#", link):
            return match[0]
        path, sharp, anchor = link.partition("#")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        here = posixpath.dirname(page) or "."
        for candidate in (target, f"{target}/README.md"):
            if candidate in pages:
                return f"{before}{posixpath.relpath(pages[candidate], here)}{sharp}{anchor}{after}"
        if target.removeprefix("docs/") in generated:
            return f"{before}{posixpath.relpath(target.removeprefix('docs/'), here)}{sharp}{anchor}{after}"
        if not (ROOT / target).exists():
            wrong.append(f"{source}: {link} leads nowhere")
        elif before.startswith("!"):
            picture = f"pictures/{target.removeprefix('docs/pictures/').replace('/', '-')}"
            (WORK / "pages" / "pictures").mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / target, WORK / "pages" / picture)
            return f"{before}{posixpath.relpath(picture, here)}{after}"
        return f"{before}{repository()}/blob/main/{target}{sharp}{anchor}{after}"

    return _LINK.sub(replaced, text)


def menu(titles: dict[str, str]) -> list[dict[str, object]]:
    """The navigation; every page is in it once."""
    left = dict(titles)
    parts = {part: [page for page in first if left.pop(page, None)] for part, (first, _) in MENU.items()}
    for part, (_, folders) in MENU.items():
        parts[part] += [page for page in sorted(left) if posixpath.dirname(page) in folders]
        left = {page: title for page, title in left.items() if page not in parts[part]}
    if left:
        raise SystemExit(f"In no part of the menu: {', '.join(left)}.")
    return [{part: [{titles[page]: page} for page in pages]} for part, pages in parts.items() if pages]


def configuration(titles: dict[str, str]) -> dict[str, object]:
    """What Zensical is told; JSON is YAML too."""
    return {
        "site_name": "torchbeats",
        "site_description": "The BEATs audio encoder as a library.",
        "repo_url": repository(),
        "docs_dir": "pages",
        "extra_css": ["site.css"],
        "site_dir": "html",
        "nav": menu(titles),
        "theme": {
            "name": "material",
            "font": False,  # those of the reader's machine: nothing comes from elsewhere
            "features": ["navigation.tabs", "navigation.footer", "navigation.top", "search.highlight",
                "content.code.copy"],
            "palette": [
                {
                    "media": f"(prefers-color-scheme: {scheme})",
                    "scheme": name,
                    "toggle": {"icon": f"lucide/{icon}", "name": f"Switch to {other}"},
                }
                for scheme, name, icon, other in (
                    ("light", "default", "sun", "dark colours"),
                    ("dark", "slate", "moon", "light colours"),
                )
            ],
        },
        "markdown_extensions": [
            "tables", "admonition", "pymdownx.superfences", "pymdownx.inlinehilite",
            {"pymdownx.highlight": {"pygments_lang_class": True, "line_spans": "__span"}},  # which CSS asks for
            {"toc": {"permalink": True}},
        ],
        "plugins": [
            "search",
            {
                "mkdocstrings": {
                    "handlers": {
                        "python": {
                            "paths": [str(ROOT / "src")],
                            "options": {
                                "show_source": False, "show_root_heading": True, "heading_level": 2,
                                "show_root_full_path": True, "separate_signature": True, "merge_init_into_class": True,
                                "show_signature_annotations": True, "members_order": "source", "filters": ["!^_"],
                                "docstring_section_style": "list", "show_bases": False,
                                # A configuration's class inherits its arguments.
                                "docstring_options": {"warn_unknown_params": False, "warn_missing_types": False},
                            },
                        }
                    }
                }
            },
        ],
    }  # fmt: skip


def prepare() -> tuple[dict[str, str], list[str]]:
    """Write all pages; their titles, and what is wrong with them."""
    shutil.rmtree(WORK / "pages", ignore_errors=True)
    pages, generated, wrong = sources(), reference.pages(), list[str]()
    texts = {page: linked(text_of(one), one, page, pages, {*generated}, wrong) for one, page in pages.items()}
    texts |= generated
    titles = {}
    for page, text in texts.items():
        heading = _HEADING.search(re.sub(_CODE, "", text, flags=re.MULTILINE | re.DOTALL))
        if heading is None:
            wrong.append(f"{page} has no heading")
            continue
        titles[page] = re.sub(r"[`*]|\[|\]\([^)]*\)", "", heading[1])
        path = WORK / "pages" / page
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    (WORK / "pages" / "site.css").write_text(CSS, "utf-8")
    return titles, wrong


def main(out: Path = ROOT / "build" / "docs") -> None:
    """Build the site."""
    titles, wrong = prepare()
    if wrong:
        raise SystemExit("\n".join(wrong))
    (WORK / "mkdocs.yml").write_text(json.dumps(configuration(titles), indent=1), "utf-8")
    zensical = Path(sys.executable).with_name("zensical")
    done = subprocess.run([zensical, "build", "--strict", "--clean"], cwd=WORK, check=False)
    if done.returncode:
        raise SystemExit("The site has not been built; see above.")
    shutil.rmtree(out, ignore_errors=True)
    shutil.move(WORK / "html", out)
    print(f"{len(titles)} pages: {out / 'index.html'}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
