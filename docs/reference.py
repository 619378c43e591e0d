"""Pages of the reference that the code writes: commands, settings, and lists of names for mkdocstrings."""

from __future__ import annotations

import inspect
from typing import Any

import typer.main

import torchbeats
from torchbeats.cli import COMMANDS, app
from torchbeats.training.configuring import PRESETS, finetune_settings, settings
from torchbeats.training.defaults import TABLE, DataSize
from torchbeats.training.explaining import explanations, section_meaning

# Names of `torchbeats`, by what they are for. All that are in none stand under the last heading.
API = {
    "Running a model on sounds": [
        "load",
        "models",
        "encode",
        "embed",
        "tag",
        "tokenize",
        "search",
        "write_table",
        "describe",
        "save",
        "export",
    ],
    "What they give": ["Embedding", "Tags", "TokenGrid", "Match", "TableResult", "Encoded", "Tokens"],
    "Models": ["BEATs", "Tokenizers", "RandomProjectionTokenizer", "OnnxModel", "Model"],
    "Configurations": ["BEATsConfig", "TokenizersConfig", "RandomProjectionConfig"],
    "Plans, and many machines": ["EmbeddingPlan", "ScorePlan", "TokenPlan", "Embedder", "Tagger"],
    "Errors": ["TorchbeatsError", *sorted(name for name in torchbeats.__all__ if name.endswith("Error"))],
    "Parts, as the research code and SpeechBrain have them": [],
}
PLAIN = {"SIZES", "__version__"}  # values, which have no docstring


def api() -> dict[str, str]:
    """A page for each group of names: ``{file: text}``."""
    groups = {title: list(dict.fromkeys(names)) for title, names in API.items()}
    listed = {name for names in groups.values() for name in names}
    groups[list(groups)[-1]] += sorted(set(torchbeats.__all__) - listed - PLAIN, key=str.lower)
    result = {}
    for number, (title, names) in enumerate(groups.items()):
        blocks = [f"::: torchbeats.{name}\n" for name in names]
        result[f"reference/api-{number + 1}.md"] = f"# {title}\n\n" + "\n".join(blocks)
    return result


def commands() -> str:
    """Every command with every argument and option."""
    parts = [
        "# Commands\n",
        "Every command shows its options with `--help`. Results are tables on a terminal and JSON elsewhere; "
        "messages go to standard error. This page is written by the code.\n",
    ]
    group = typer.main.get_command(app)
    subcommands: dict[str, Any] = group.commands  # type: ignore[attr-defined]
    for panel, names in COMMANDS.items():
        parts.append(f"## {panel}\n")
        for name in names:
            parts.append(command(name, subcommands[name]))
    return "\n".join(parts)


def command(name: str, one: Any) -> str:
    """A command's part of the page."""
    lines = [f"### torchbeats {name}\n", inspect.cleandoc(one.help or "") + "\n"]
    lines += ["| option | meaning |", "|---|---|"]
    for parameter in one.params:
        if not getattr(parameter, "hidden", False):
            lines.append(f"| {names_of(parameter)} | {cell(meaning_of(parameter))} |")
    return "\n".join(lines) + "\n"


def names_of(parameter: Any) -> str:
    """How a parameter is written on the command line."""
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar or parameter.name.upper()}`"
    return ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])


def meaning_of(parameter: Any) -> str:
    """A parameter's help with its default."""
    text = getattr(parameter, "help", None) or ""
    default = parameter.default
    value = getattr(default, "value", default)  # of an Enum
    plain = isinstance(value, (str, int, float)) and not isinstance(value, bool)
    if plain and "Default" not in text and getattr(parameter, "show_default", True):
        text += f" Default: {value}."
    return text + (" Required." if parameter.required and parameter.param_type_name != "argument" else "")


def cell(text: str) -> str:
    """Text for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def setting_tables() -> str:
    """Every setting of fine-tuning and pre-training."""
    parts = [
        "# Settings\n",
        "What `--set NAME=VALUE` and a YAML file for `--config` can change, and `--show` prints.\n",
        "## torchbeats finetune\n",
        "Where the default is by the number of sounds, `--show` has it for yours, and "
        "[Fine-tuning](../finetuning.md) the reason.\n",
        _tables(finetune_settings(), by_size(), whole=True),
        "## torchbeats pretrain\n",
        "Values are those of `--size base`; where another size has its own, it is named.\n",
        _tables(settings("base"), {size: settings(size) for size in PRESETS if size != "base"}),
    ]
    return "\n".join(parts)


def by_size() -> dict[str, object]:
    """Settings of a fine-tuning for each size of the data, clips of 10 s."""
    bounds = [row.below for row in TABLE[:-1]]
    sizes = {f"less than {below:,.0f} sounds": DataSize(int(below) - 1, 10, 10.0, 10.0) for below in bounds}
    sizes["more"] = DataSize(int(bounds[-1]), 10, 10.0, 10.0)
    return {name: finetune_settings(size=size) for name, size in sizes.items()}


def _tables(default: object, others: dict[str, object], whole: bool = False) -> str:
    """A table for each group; ``others`` have other defaults, beside the first or, as ``whole``, in its place."""
    values = {size: {row.name: row.value for row in explanations(other)} for size, other in others.items()}
    lines: list[str] = []
    section: str | None = None
    for row in explanations(default):
        head = row.name.split(".")[0] if "." in row.name else ""
        if head != section:
            section = head
            if head:
                lines.append(f"\n**{head}**: {section_meaning(getattr(default, head))}\n")
            lines += ["| setting | meaning |", "|---|---|"]
        differing = [f"{size}: `{values[size][row.name]}`" for size in values if values[size][row.name] != row.value]
        if differing and whole:
            default_value = ", ".join(f"{size}: `{values[size][row.name]}`" for size in values)
        else:
            default_value = ", ".join([f"`{row.value}`", *(differing if row.name != "size" else [])])
        kind = f"{row.kind}, {row.limit}" if row.limit else row.kind
        lines.append(f"| `{row.name}` | {cell(row.meaning)} <br>{cell(kind)}; default {cell(default_value)} |")
    return "\n".join(lines) + "\n"


def pages() -> dict[str, str]:
    """All pages of the reference: ``{file: text}``."""
    return {"reference/commands.md": commands(), "reference/settings.md": setting_tables(), **api()}
