"""The command `segjax` in this process: its help texts, mistakes, configs by name, and shell completion."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import segjax
from segjax import __main__, cli

ROOT = Path(__file__).parent.parent
ABSL = ("--alsologtostderr", "--verbosity", "--helpfull", "--pdb")


@pytest.fixture
def run(run_command, monkeypatch, tmp_path):
    """Returns `run_command`, run in an empty folder that has to stay so."""
    monkeypatch.chdir(tmp_path)
    yield run_command
    assert list(tmp_path.iterdir()) == []


def test_help_lists_the_commands(run):
    status, shown, _ = run("--help")
    assert status == 0
    assert re.findall(r"^  (\w+) ", shown, re.MULTILINE)[: len(__main__.COMMANDS)] == list(__main__.COMMANDS)
    assert len(re.findall(r"^  segjax \w+ ", shown, re.MULTILINE)) == 2
    assert run() == (0, shown, "")


def test_version(run):
    assert run("--version") == (0, f"segjax {segjax.__version__}\n", "")
    assert f"\nversion: {segjax.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", __main__.COMMANDS)
def test_help_of_a_command_fits_one_screen(run, command):
    status, shown, _ = run(command, "--help")
    lines = shown.splitlines()
    assert status == 0
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert len([line for line in lines if line.startswith(f"  segjax {command} ")]) >= 2
    assert "segjax configs show NAME" in shown
    assert [name for name in ABSL if name in shown] == []


@pytest.mark.parametrize(
    ("subcommand", "flags"), [("check", ["config", "output"]), ("show", ["config", "output", "images_per_class"])]
)
def test_help_of_a_subcommand_has_its_flags_only(run, subcommand, flags):
    status, shown, _ = run("data", subcommand, "--help")
    assert status == 0
    assert re.findall(r"^  --(?:\[no\])?(\w+)", shown, re.MULTILINE) == [*flags, "overwrite", "verbose"]
    assert re.findall(r"^  segjax data (\w+)", shown, re.MULTILINE) == [subcommand]


def test_help_of_train_names_the_flag_in_place_of_a_required_one(run):
    assert "(required without --data)" in " ".join(run("train", "--help")[1].split())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("trian", "error: segjax has no command 'trian'; did you mean train? segjax --help lists the commands"),
        ("--completion=fish", "error: segjax has no command '--completion=fish'; segjax --help lists the commands"),
        ("train --workdir=runs/a", "error: --config (or --data) must be given; segjax train --help lists the options"),
        (
            "train --config=camvid_unt --workdir=runs/a",
            "error: --config=camvid_unt: neither a file nor the name of a shipped config; the nearest are camvid_unet, "
            "camvid_unseen, camvid_",
        ),
        (
            "evaluate --chekpoint=runs/a",
            "error: Unknown command line flag 'chekpoint'. Did you mean: checkpoint ?; segjax evaluate --help lists",
        ),
        (
            "train --config=rare_class --workdir=runs/a --config.training.steps=ten",
            "error: config.training.steps must be an integer in [1, 2147483647]; got 'ten'",
        ),
        (
            "train --config=rare_class --workdir=runs/a --config.data.size=(32,",
            "error: config.data.size must be 2 integers in [1, 65536]; got '(32,'",
        ),
        (
            "train --config=rare_class --workdir=runs/a --config.data.size=(32,48) --config.data.size=(0,1)",
            "error: config.data.size must be 2 integers in [1, 65536]; got (0, 1)",  # the last one
        ),
        (
            "train --config=rare_class --workdir=runs/a --config.nope=3",
            "error: unknown config key config.nope = '3'; segjax configs show rare_class lists the fields",
        ),
        (
            "train --config=rare_class --workdir=runs/a --config.objective.gama=2",
            "error: unknown config key config.objective.gama = '2'; did you mean config.objective.gamma?",
        ),
        (
            "train --config=\x1b[2J --workdir=runs/a",
            r"error: --config=\x1b[2J: neither a file nor the name of a shipped config; segjax configs list shows",
        ),
        ("report", "error: expected one WORKDIR or WORKDIR/checkpoints/STEP; got nothing; segjax report --help lists"),
        ("configs diff rare_class:smok", "error: rare_class does not accept the argument 'smok'"),
        ("configs sow rare_class", "error: expected list, show NAME or diff NAME; got sow rare_class; segjax configs"),
        (
            "configs show rare_clas",
            "error: rare_clas: neither a file nor the name of a shipped config; the nearest are",
        ),
    ],
)
def test_mistake_gives_one_line_and_the_way_out(run, line, message):
    status, shown, error = run(*line.split())
    assert (status, shown) == (1, "")
    assert error.startswith(message)
    assert "\n" not in error


def test_config_file_that_fails_is_named_once(run, tmp_path_factory):
    file = tmp_path_factory.mktemp("configs") / "mine.py"
    file.write_text("def get_config():\n    return 1 / 0\n")
    status, _, error = run("configs", "show", file)
    assert (status, error) == (1, f"error: {file}, line 2: ZeroDivisionError: division by zero")


def test_missing_extra_is_named(run, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "grain" else find_spec(name))
    monkeypatch.setattr(segjax._ExtraCheck, "passed", False)
    needed = "needs the extra \"train\": pip install 'segjax[train]'"
    for command in __main__.COMMANDS:
        assert run(command, "--help") == (1, "", f"error: segjax {command} {needed}")
    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(ImportError, match=re.escape(f"segjax.absent {needed}")):
        importlib.import_module("segjax.absent")
    monkeypatch.setattr(sys, "argv", ["-m", "--config=…"])
    with pytest.raises(SystemExit, match=re.escape(f"error: segjax absent {needed}")):
        importlib.import_module("segjax.absent")


def test_submodules_load_when_used():
    program = (
        "import segjax, sys; print({'jax', 'flax', 'numpy', 'absl'} & {*sys.modules}, segjax.losses.mean.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set() mean\n", "")
    assert set(segjax.__all__) <= set(dir(segjax))
    with pytest.raises(AttributeError, match="module 'segjax' has no attribute 'loses'"):
        _ = segjax.loses


def test_configs_list_names_every_config(run):
    status, shown, _ = run("configs", "list")
    assert status == 0
    assert re.findall(r"^(\S+)$", shown, re.MULTILINE) == cli.config_names()
    assert "\n  score  crack IoU 0.362, average precision 0.506 on the 39 test images, seed 0\n  cost   31 min" in shown


def test_configs_show_and_diff(run):
    shown, changes = run("configs", "show", "rare_class:full")[1], run("configs", "diff", "rare_class:full")[1]
    assert "\nCOMMAND: segjax train --config=rare_class " in shown
    assert "\nobjective.gamma = 2.0  # focusing parameter γ of the focal losses; a float32 number in [0, inf)" in shown
    assert "training.steps = 4000  # default 1000: number of steps\n" in changes
    assert "objective.gamma" not in changes


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_offers_commands_flags_and_configs(run, shell):
    script = run(f"--completion={shell}")[1]
    assert " ".join(__main__.COMMANDS) in script
    assert " ".join(cli.config_names()) in script
    for command in __main__.COMMANDS:
        defined = re.findall(r"^  --(?:\[no\])?(\w+)", run(command, "--help")[1], re.MULTILINE)
        (offered,) = re.findall(rf"\*:{command}:-\*.*?((?: ?--\w+=?)+)\"?\s*;;", script)
        assert re.findall(r"--(\w+)", offered) == [*defined, "help"]
    if shutil.which(shell):
        assert subprocess.run([shell, "-n"], input=script, text=True, capture_output=True).stderr == ""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("segjax pr", ["predict"]),
        ("segjax report --im", ["--images="]),
        ("segjax train --workdir=a --config=crackforest_", ["crackforest_focal", "crackforest_unet"]),
        ("segjax configs show camvid_unet_we", ["camvid_unet_weighted"]),
        ("segjax predict str", []),  # the shell offers files
    ],
)
def test_completion_in_bash(line, expected):
    words = line.split()
    program = f"{__main__.completion('bash')}\nCOMP_LINE='{line}' COMP_POINT={len(line)} COMP_CWORD={len(words) - 1}\n"
    program += f'COMP_WORDS=({" ".join(words)})\n_segjax 2>/dev/null\necho "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == expected
