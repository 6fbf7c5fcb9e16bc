"""Command line of segjax: `segjax COMMAND`, or `python -m segjax COMMAND`.

It runs `segjax/COMMAND.py` as `python -m segjax.COMMAND` does, and needs nothing but the base install itself.
"""

import difflib
import re
import runpy
import sys
from pathlib import Path

from segjax import __doc__ as summary
from segjax import __version__, missing_extra

COMMANDS = {
    "data": "check a folder of your own, show it on a page, turn annotations into masks",
    "train": "train a network from a config; the same command resumes a run",
    "calibrate": "calibrate probabilities, and choose thresholds with a guarantee, on held-out images",
    "evaluate": "score a trained run on a split",
    "predict": "write masks and uncertainties of images, or boxes of their objects",
    "report": "show a trained run on one page",
    "compare": "compare trained runs on the same images, on one page",
    "demo": "serve a page on which you drop images and see masks and uncertainties",
    "export": "export a network as files that run without segjax, on CPU, CUDA and TPU",
    "configs": "list the shipped configs, show one, or compare one with the defaults",
}
MODULES = {command: f"segjax.{command}" for command in COMMANDS}
MODULES |= {"data": "segjax.data_commands", "configs": "segjax.shipped_configs"}
USAGE = f"""Usage: segjax COMMAND [OPTIONS]

{(summary or "").splitlines()[0]}

{{commands}}

Examples:
  segjax train --config=road_debris_uncertainty --workdir=runs/debris
  segjax predict --checkpoint=runs/debris --output=predictions --uncertainty street.jpg

segjax COMMAND --help           options and examples of a command
segjax --version                the version
segjax --completion=bash|zsh    a script for your shell: source <(segjax --completion=bash)"""


def main() -> None:
    """Runs the command that the first argument names."""
    command, *rest = sys.argv[1:] or ["--help"]
    if command in ("--help", "-h", "help"):
        print(USAGE.format(commands="\n".join(f"  {name:9} {what}" for name, what in COMMANDS.items())))
    elif command == "--version":
        print(f"segjax {__version__}")
    elif command.partition("=")[::2] in (("--completion", "bash"), ("--completion", "zsh")):
        print(completion(command.partition("=")[2]))
    elif command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        sys.exit(f"error: segjax has no command {command!r}; {hint}segjax --help lists the commands")
    elif message := missing_extra("train", f"segjax {command}"):
        sys.exit(f"error: {message}")
    else:
        sys.argv[1:] = rest
        try:
            runpy.run_module(MODULES[command], run_name="__main__", alter_sys=True)
        except KeyboardInterrupt:  # during the imports; `cli.run` catches it later
            print("interrupted", file=sys.stderr)
            sys.exit(130)


BASH = """_segjax() {{
  local current=${{COMP_LINE:0:COMP_POINT}} words=""
  current=${{current##* }}
  case $COMP_CWORD:${{COMP_WORDS[1]}}:$current in
    1:*) words="{commands} --help --version" ;;
    *:--config=*) words="{configs}" current=${{current#*=}} ;;
{flags}
    *:configs:*) words="list show diff {configs}" ;;
    2:data:*) words="check show masks" ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
  [[ ${{COMPREPLY[0]}} == *= ]] && compopt -o nospace
}}
complete -o default -F _segjax segjax"""
BASH_FLAGS = '    *:{command}:-*) words="{flags}" ;;'
ZSH = """_segjax() {{
  case $(( CURRENT - 1 )):$words[2]:$PREFIX in
    1:*) compadd -- {commands} --help --version ;;
    *:--config=*) compset -P '*='; compadd -- {configs} ;;
{flags}
    *:configs:*) compadd -- list show diff {configs} ;;
    2:data:*) compadd -- check show masks ;;
    *) compset -P '*='; _files ;;
  esac
}}
compdef _segjax segjax"""
ZSH_FLAGS = "    *:{command}:--*=*) compset -P '*='; _files ;;\n    *:{command}:-*) compadd -S '' -- {flags} ;;"


def completion(shell: str) -> str:
    """Returns a script that completes commands, their flags and the names of the shipped configs in bash or zsh.

    The flags are read from the source of each command, because importing it takes seconds.
    """
    folder = Path(__file__).parent
    script, line = (BASH, BASH_FLAGS) if shell == "bash" else (ZSH, ZSH_FLAGS)
    lines = []
    for command, module in MODULES.items():
        source = folder.joinpath(f"{module.rpartition('.')[2]}.py").read_text(encoding="utf-8")
        found = re.findall(r"(?:flags\.DEFINE|cli\.define)_(\w+)\((?:\s*\"(\w+)\")?", source)
        bare = ("bool", "bare_or_one_of", "calibrated", "guarantee", "overwrite")  # kinds that need no value
        named = {"data_fields": "config"}  # the flag that `cli.define_data_fields` defines
        flags = [f"--{name or named.get(kind, kind)}{'' if kind in bare else '='}" for kind, name in found]
        lines.append(line.format(command=command, flags=" ".join([*flags, "--verbose", "--help"])))
    configs = " ".join(sorted(path.stem for path in folder.glob("configs/*.py")))
    return script.format(commands=" ".join(COMMANDS), configs=configs, flags="\n".join(lines))


if __name__ == "__main__":
    main()
