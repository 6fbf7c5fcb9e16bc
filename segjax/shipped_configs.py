"""Lists the shipped configs, shows one with all its fields, or compares one with the defaults.

Examples:
  segjax configs list
  segjax configs show camvid_unet_weighted
  segjax configs diff camvid_unet_weighted
"""

import ast
import re
import textwrap
from pathlib import Path

from absl import app
from ml_collections import ConfigDict

from segjax import cli
from segjax.training import ConfigError, changed
from segjax.training.config import leaves
from segjax.training.fields import FIELDS


def main(argv: list[str]) -> None:
    """Prints what the first argument asks for."""
    match argv[1:]:
        case ["list"]:
            print("\n\n".join(map(summary, cli.config_names())))
        case ["show", name]:
            config, header = _load(name)
            print(f"{header}\n")
            for key, value in leaves(config).items():
                print(f"{key} = {value!r}  # {FIELDS[key].meaning}; {FIELDS[key].valid}")
        case ["diff", name]:
            for key, value, default in changed(_load(name)[0]):
                print(f"{key} = {value!r}  # default {default!r}: {FIELDS[key].meaning}")
        case _:
            raise app.UsageError(f"expected list, show NAME or diff NAME; got {' '.join(argv[1:]) or 'nothing'}")


def header_fields(path: Path) -> tuple[str, dict[str, str]]:
    """Returns the title line of a config's header, and its fields: "DATA", "COMMAND", "SCORE" and "TIME"."""
    title, _, rest = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")
    found = re.findall(r"^(\w+): (.*(?:\n  .*)*)", rest, re.MULTILINE)
    return title, {name: " ".join(text.split()) for name, text in found}


def summary(name: str) -> str:
    """Returns a config's name, title, data set, first sentences of score and cost, and command, one per line."""
    title, fields = header_fields(cli.CONFIGS / f"{name}.py")
    shown = {"data": fields["DATA"], "score": fields.get("SCORE"), "cost": fields.get("TIME"), "run": fields["COMMAND"]}
    for key in ("score", "cost"):
        shown[key] = shown[key] and re.split(r"[.;] ", re.sub(r" \((experiments/|commit)[^)]*\)", "", shown[key]))[0]
    lines = [title, *(f"{key:6} {text.rstrip('.')}" for key, text in shown.items() if text)]
    wrapped = (textwrap.wrap(line, 98, initial_indent="  ", subsequent_indent=" " * 9) for line in lines)
    return "\n".join([name, *(line for part in wrapped for line in part)])


def _load(name: str) -> tuple[ConfigDict, str]:
    """Returns a config and its header."""
    try:
        config = cli.ConfigFile("config").parse(name)
    except ConfigError:  # names the file
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{name}: {error}") from error
    source = cli.find_config(name.partition(":")[0]).read_text(encoding="utf-8")
    return config, ast.get_docstring(ast.parse(source)) or name


if __name__ == "__main__":
    cli.run(main, required=[])
