"""Collects the command lines of README.md and the documents, and asks the program's own parsers about them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from mnist_dist.commands.command_list import COMMANDS
from mnist_dist.config.loader import load
from mnist_dist.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "launch/README.md", "benchmarks/README.md")),
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "decisions"),
]
BLOCK = re.compile(r"^```(?:sh|bash|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
TYPED = re.compile(r"^ *\$ (.+)$", re.MULTILINE)
"""A command in a transcript, after a shell's prompt."""
SPAN = re.compile(r"`([^`]+)`")
PROGRAM = re.compile(r"(?:[a-z]+|mnist-dist) [^ ]|benchmarks/")
VARIABLE = re.compile(r"[A-Z_]+=\S*")


@dataclass(frozen=True)
class Command:
    """One command of a document, without its comment."""

    document: str
    line: str


def commands_in(text: str) -> list[str]:
    """The commands of a Markdown text in their order: each line of a shell's block, and what follows a prompt."""
    lines = []
    for block in BLOCK.findall(text):
        lines += [line for line in block.replace("\\\n", " ").splitlines() if not line.lstrip().startswith("$ ")]
    lines += TYPED.findall(text)
    lines = [re.sub(r"\s+", " ", re.split(r"(?:^|\s)#\s", line)[0]).strip() for line in lines]
    return [part for line in lines if line for part in line.split(" && ")]


def commands_in_tables(text: str) -> list[str]:
    """The code spans in columns `command` and `reproduce` of a Markdown text's tables, except options alone."""
    found: list[str] = []
    columns: list[int] = []
    for line in text.splitlines():
        if not line.startswith("|"):
            columns = []
            continue
        cells = [cell.strip() for cell in re.sub(r"`[^`]*`", lambda code: code[0].replace("|", "/"), line).split("|")]
        if columns:
            found += [span for index in columns for span in SPAN.findall(cells[index]) if PROGRAM.match(span)]
        else:
            columns = [index for index, name in enumerate(cells) if name in ("command", "reproduce")]
    return [part for line in found for part in line.split(" && ")]


def all_commands() -> list[Command]:
    """The commands of all documents."""
    found = []
    for path in DOCUMENTS:
        text = path.read_text()
        lines = [*commands_in(text), *commands_in_tables(text)]
        found += [Command(str(path.relative_to(ROOT)), line) for line in lines]
    return found


def inline_commands(text: str) -> list[str]:
    """The code spans of a Markdown text that are commands of this package with arguments."""
    spans = SPAN.findall(re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    lines = [" ".join(span.split()) for span in spans]
    ours = [
        line for line in lines if re.match(r"([A-Z_]+=\S* )*(mnist-dist|python|accelerate|torchrun|srun|mpirun) ", line)
    ]
    return [line for line in ours if not re.search(r"COMMAND|--help", line) and len(own_arguments(line) or ()) > 1]


def own_arguments(line: str) -> list[str] | None:
    """What a line gives to `mnist-dist`, with or without a launcher; None for another program's.

    A pipe, a redirection, and variables before the command are left out.
    """
    words = shlex.split(re.split(r" [|>] ", line)[0])
    while words and VARIABLE.fullmatch(words[0]):
        words.pop(0)
    if words[:1] == ["mnist-dist"]:
        return words[1:]
    for module, command in (("mnist_dist.train", ["train"]), ("mnist_dist", [])):
        if ["-m", module] in [words[i : i + 2] for i in range(len(words))]:
            return [*command, *words[words.index(module) + 1 :]]
    return None


def refusal_of(line: str) -> str:
    """The line with which the command's own parser, or the configuration's loader, refuses a command; else empty.

    `N` stands for a number, `NAME` for a recipe.
    """
    name, *rest = own_arguments(re.sub(r"\bN\b", "3", re.sub(r"\bNAME\b", "debug", line))) or ["train"]
    if name not in COMMANDS:
        return f"{name}: no such command"
    try:
        if name != "train":
            parser = import_module(f"mnist_dist.commands.{name}").build_parser()
            if name == "predict":  # whose parser takes pictures before and after options
                parser.parse_intermixed_args(rest)
                return ""
            _, rest = parser.parse_known_args(rest)
        load(rest)
    except UserError as error:
        return str(error)
    return ""
