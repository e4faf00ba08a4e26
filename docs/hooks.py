"""Builds the parts of the site that are not written by hand: a page for each potential, and formulae as MathML.

Nothing is fetched, when the site is built or when it is read: browsers draw MathML themselves.
"""

import html
import re

import click
import latex2mathml.converter
import typer
from mkdocs.structure.files import File

from mdsens import _PUBLIC
from mdsens.cli import potential_pages
from mdsens.cli.app import app
from mdsens.potentials import SHIPPED

INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)


def on_config(config):
    """The potentials in the navigation."""
    for entry in config.nav:
        if isinstance(entry, dict) and "Potentials" in entry:
            entry["Potentials"] = ["potentials/index.md", *({name: f"potentials/{name}.md"} for name in sorted(SHIPPED))]
    return config


def on_files(files, config):
    """Pages that `mdsens potentials NAME` prints, and their list."""
    listing = ["# Potentials", "", "| | | |", "|---|---|---|"]
    for line in potential_pages.listing():
        name, kind, summary = line.split(None, 2)
        listing.append(f"| [{name}]({name}.md) | {kind} | {summary} |")
    listing += ["", "The same on the command line: `mdsens potentials`, and `mdsens potentials NAME`."]
    pages = {"index": "\n".join(listing)}
    for name in SHIPPED:
        title, *page = potential_pages.page(name)
        pages[name] = f"# {name}\n\n```text\n{title}\n" + "\n".join(page) + "\n```\n"
    for name, text in pages.items():
        files.append(File.generated(config, f"potentials/{name}.md", content=text))
    return files


def on_page_markdown(markdown, **_):
    """What the code itself says."""
    # mdsens loads its names when they are used, which those who only read the code don't see.
    markdown = re.sub(r"^::: mdsens\.(\w+)$", _placed, markdown, flags=re.MULTILINE)
    return re.sub("^COMMANDS$", lambda _: _commands(), markdown, flags=re.MULTILINE)


def _placed(found):
    return f"::: {_PUBLIC[found[1]]}.{found[1]}" if found[1] in _PUBLIC else found[0]


def _commands():
    command = typer.main.get_command(app)
    pages = []
    for name, sub in command.commands.items():
        with click.Context(sub, info_name=f"mdsens {name}", color=False) as context:
            usage, options = (
                sub.collect_usage_pieces(context),
                [param.get_help_record(context) for param in sub.get_params(context)],
            )
        lines = [f"## mdsens {name}", "", f"`mdsens {name} {' '.join(usage)}`", "", sub.help or "", ""]
        if rows := [record for record in options if record]:
            lines += ["| | |", "|---|---|", *(f"| `{what.replace('|', '/')}` | {told} |" for what, told in rows), ""]
        pages.append("\n".join(lines))
    return "\n".join(pages)


def on_page_content(content, **_):
    """Formulae as MathML."""
    content = BLOCK.sub(lambda found: _mathml(found[1], "block"), content)
    return INLINE.sub(lambda found: _mathml(found[1], "inline"), content)


def _mathml(formula, display):
    return latex2mathml.converter.convert(html.unescape(formula).strip(), display=display)
