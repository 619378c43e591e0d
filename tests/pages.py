"""Pages of documentation as a reader follows them: their blocks run one after the other, in one folder.

A block of ``python``, ``bash`` or ``sh`` is run, and the ``text`` block behind it is what it prints on standard output,
where … stands for anything. ``<!-- not run: why -->`` above a block says why it is not run. All other blocks name what
they are (``yaml``, ``text``, …); one that names nothing is a mistake.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from torchbeats import cli

ROOT = Path(__file__).parents[1]
RUN = ("python", "bash", "sh")
SHOWN = ("text", "yaml", "toml", "json", "csv", "javascript")

_FENCE = re.compile(r"^```(.*)$", re.MULTILINE)
_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<why>[^\n]+) -->\n)?^```(?P<language>\S*)[^\n]*\n(?P<code>.*?)^```$"
    r"(?:\n+```text\n(?P<output>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
_HANGS_TOGETHER = re.compile(r"<<\w|^ |^(cd|export|for|if|while|[A-Za-z_]+=)", re.MULTILINE)  # no line by itself
_OPERATORS = {"|", "||", "&", "&&", ";", ">", ">>", "<", "<<", "(", ")"}
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Block(NamedTuple):
    """A block of a page, the line that it begins at, what it is to print, and why it is not run, if so."""

    page: str
    line: int
    language: str
    code: str
    output: str | None
    why: str | None

    @property
    def place(self) -> str:
        return f"{self.page}, line {self.line}"


def pages() -> list[str]:
    """All pages: the README and everything in ``docs``, relative to the checkout."""
    return ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]


def blocks(text: str, page: str) -> Iterator[Block]:
    """The blocks of a page that are run or marked.

    Raises:
        AssertionError: a block names no language, or an unknown one; or a mark stands above none.
    """
    marks = 0
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("code"))
        language, why = match["language"], match["why"]
        assert language in (*RUN, *SHOWN), f"{page}, line {line}: a block of {language or 'nothing'}"
        if language in RUN or why:
            marks += why is not None
            assert not (why and match["output"]), f"{page}, line {line}: what it prints is not looked at"
            yield Block(page, line, language, match["code"], match["output"], why)
    assert marks == text.count("<!-- not run"), f"{page}: a mark that stands above no block"
    assert all(not fence.startswith("`") for fence in _FENCE.findall(text)), f"{page}: fences of three, please"


class Terminal(io.StringIO):
    """Where output goes that a person looks at."""

    def isatty(self) -> bool:
        return True


def run_page(page: str) -> dict:
    """Run all blocks of a page in the current folder.

    Returns:
        All that its Python defines, and what its shell printed, under ``printed``.

    Raises:
        AssertionError: a command fails, or prints something else than the page says.
    """
    names = {"__name__": "page", "printed": []}
    for block in blocks((ROOT / page).read_text("utf-8"), page):
        if block.why:
            continue
        with contextlib.redirect_stdout(Terminal()) as out:
            if block.language == "python":
                exec(compile(block.code, block.place, "exec"), names)
            else:
                shell(block)
        printed = _ESCAPES.sub("", out.getvalue())
        if block.language != "python":
            names["printed"].append(printed)
        if block.output is not None:
            assert matches(block.output, printed), f"{block.place}: not what it prints, which is\n{printed}"
    return names


def shell(block: Block) -> None:
    """Run a block of shell; commands of ours within this process, which saves their start."""
    together = _HANGS_TOGETHER.search(block.code.replace("\\\n", " "))
    for code in [block.code] if together else _lines(block.code):
        words = [] if together else _words(code)
        if not words or words[0] != "torchbeats":
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            env = {**os.environ, "PATH": path}
            done = subprocess.run(["bash", "-euc", code], env=env, capture_output=True, text=True)
            assert done.returncode == 0, f"{block.place}: {done.stderr}"
            print(done.stdout, end="")
            continue
        error, argv, showwarning = io.StringIO(), sys.argv, warnings.showwarning
        status: object = None
        try:
            sys.argv = words
            with contextlib.redirect_stderr(error):
                cli.main()
        except SystemExit as end:
            status = end.code
        finally:
            sys.argv, warnings.showwarning = argv, showwarning
        assert not status, f"{block.place}: {shlex.join(words)}: {error.getvalue()}"


def _lines(code: str) -> list[str]:
    return [line for line in code.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]


def _words(line: str) -> list[str]:
    """A line's words; none if it is more than one command with its arguments, or needs a shell to be read."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:  # a quotation that goes on
        return []
    return [] if _OPERATORS & {*words} or re.search(r"[$`*?{~]", line.split(" #")[0]) else words


def matches(expected: str, printed: str) -> bool:
    """Whether a text is what is shown of it, where … stands for anything; spaces at the ends of lines do not count."""

    def tidy(text: str) -> str:
        return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())

    pattern = ".*?".join(map(re.escape, tidy(expected).split("…")))
    return re.fullmatch(pattern, tidy(printed), re.DOTALL) is not None
