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
from ml_collections.config_flags import config_flags

from segjax import cli
from segjax.training import ConfigError, changed
from segjax.training.config import FIELDS, Field, leaves


def main(argv: list[str]) -> None:
    """Prints what the first argument asks for."""
    match argv[1:]:
        case ["list"]:
            print("\n\n".join(map(summary, cli.config_names())))
        case ["show", name]:
            config, header = _load(name)
            print(header, *(_line(key, value) for key, value in leaves(config).items()), sep="\n")
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
        path = cli.config_path(name)
        config = config_flags.ConfigFileFlagParser("config").parse(path)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{name}: {error}") from error
    header = ast.get_docstring(ast.parse(Path(path.partition(":")[0]).read_text(encoding="utf-8")))
    return config, f"{header or name}\n"


def _line(key: str, value: object) -> str:
    field: Field = FIELDS[key]
    valid = field.range or (f"one of {', '.join(map(str, field.choices))}" if field.choices else "")
    return f"{key} = {value!r}  # {field.meaning}{f'; {valid}' * bool(valid)}"


if __name__ == "__main__":
    cli.run(main, required=[])
