"""Command lines: `--help`, configs by name, kinds of flag; a mistake ends with one line, a bug with a traceback.

A closed output does not end a command, and Ctrl-C ends it with one line.
"""

import atexit
import contextlib
import difflib
import errno
import inspect
import logging as standard_logging
import os
import re
import signal
import sys
import textwrap
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags, logging
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from segjax.storage import escape_what_cannot_be_encoded, printable, say
from segjax.training import MISTAKES, ConfigError, Terminated
from segjax.training.config import changed, check_known, unknown_field
from segjax.training.fields import FIELDS, FRACTION, Field

app.define_help_flags()
_LIBRARY_FLAGS = frozenset(flags.FLAGS)  # of absl, grain and others: `--help` leaves them out
CONFIGS = Path(__file__).with_name("configs")
_WIDTH = 100  # columns of a help text
_FIELDS_HELP = "segjax configs show NAME prints every field of a config with its meaning and valid values."
# The way out of an error of the operating system; those of a path need no other than the path.
_AGAIN = "run the same command again; a training resumes"
_ADVICE = dict.fromkeys((errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP), "")
_ADVICE |= dict.fromkeys((errno.ENOSPC, errno.EDQUOT), f". Free space, and {_AGAIN}")
_ADVICE |= dict.fromkeys((errno.EMFILE, errno.ENFILE), f". Raise the limit (ulimit -n 4096), and {_AGAIN}")
_ADVICE |= dict.fromkeys((errno.EIO, errno.ESTALE), f". When the disk works again, {_AGAIN}")
_ADVICE |= {
    errno.EROFS: ". The file system is read-only: choose a folder that can be written",
    errno.ENOMEM: f". Free memory, and {_AGAIN}",
    errno.EADDRINUSE: ". Choose another port, or end the program that uses this one",
}
_SMALLER = (
    "To use less memory: in training, lower config.training.global_batch or config.data.size, or raise "
    "config.training.accumulate; in predict, lower --tile or --batch"
)
INTERRUPTED = 128 + signal.SIGINT  # exit status after Ctrl-C, as shells have it
_GRACE = 2  # seconds for an orderly end after the second Ctrl-C


class Subcommand(NamedTuple):
    """A command within a command, such as `segjax data check`."""

    function: Callable[..., None]
    flags: tuple[str, ...]  # without those that every subcommand has


def run(
    main: Callable[[list[str]], None],
    required: Sequence[str | tuple[str, ...]],
    subcommands: Mapping[str, Subcommand] | None = None,
) -> None:
    """Parses the flags, of which the `required` ones must be given, and calls `main` with all other arguments.

    One flag of a tuple in `required` is enough. The first argument selects one of the `subcommands`, each of which has
    its own help and refuses the flags of the others.

    A mistake of the user, or an error of the operating system, ends the process with one line and status 1, after which
    `--verbose` prints the traceback.
    """

    def guarded(argv: list[str]) -> None:
        if not flags.FLAGS["verbosity"].present:  # orbax and TFDS log every rename and every read-only open
            # They log the tracebacks of a failed save as errors; its error is printed once, below.
            logging.set_verbosity(logging.ERROR if flags.FLAGS.verbose else logging.FATAL)
            # asyncio logs all its arrays.
            standard_logging.getLogger("asyncio").setLevel(standard_logging.CRITICAL)
        try:
            with _second_interrupt_ends():
                main(argv)
        except Terminated as end:  # stopped on request, not a failure
            say(end)
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            say("interrupted", sys.stderr)
            atexit._run_exitfuncs()  # ends the worker processes
            os._exit(INTERRUPTED)  # because Python crashes at its end while threads of orbax run
        except Exception as error:
            line = error_line(error)
            if line is None:
                raise
            if flags.FLAGS.verbose:
                say(line, sys.stderr)
                raise
            sys.exit(line)

    flags.DEFINE_bool("verbose", False, "Print the traceback of an error too.")
    escape_what_cannot_be_encoded()
    sys.unraisablehook = _interrupt_again
    # A stream that was closed before the start is None.
    sys.stdout, sys.stderr = (stream and _Output(stream) for stream in (sys.stdout, sys.stderr))
    required = [(names,) if isinstance(names, str) else names for names in required]
    app.run(guarded, flags_parser=partial(_parsed, required=required, subcommands=subcommands or {}))


def error_line(error: BaseException) -> str | None:
    """Returns the line that describes a mistake, or an error of the operating system, and the way out; else None."""
    if isinstance(error, app.UsageError):
        return printable(f"error: {error}; {_program()} --help lists the options")
    if isinstance(error, MemoryError) or str(error).startswith("RESOURCE_EXHAUSTED"):
        reason = " ".join(str(error).removeprefix("RESOURCE_EXHAUSTED: ").split())[:200].rstrip(".")
        return f"error: out of memory{': ' * bool(reason)}{reason}. {_SMALLER}"
    cause: BaseException | None = error
    while cause is not None and getattr(cause, "errno", None) not in _ADVICE:
        cause = cause.__cause__
    if not isinstance(error, MISTAKES) and cause is None:
        return None
    # tensorstore's errors have the text of the system's error, and not its number.
    numbers = [cause.errno] if cause is not None else [n for n in _ADVICE if os.strerror(n) in str(error)]
    advice = _ADVICE[numbers[0]] if numbers else ""
    return printable(f"error: {str(error).rstrip('.') if advice else error}{advice}")


def _interrupt_again(unraisable: Any) -> None:
    """Repeats a Ctrl-C that came in a callback of the garbage collector, which ignores exceptions; JAX has one."""
    if unraisable.exc_type is KeyboardInterrupt:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()  # after this hook, a callback too
    else:
        sys.__unraisablehook__(unraisable)


@contextlib.contextmanager
def _second_interrupt_ends() -> Iterator[None]:
    """Ends the process after a second Ctrl-C even while a compiler runs, during which Python handles no signal.

    After the first one it prints that a training stops, because `hosts.Preemption` may not be able to for minutes.
    """
    receiving, sending = os.pipe()
    os.set_blocking(sending, False)

    def watch() -> None:
        interrupts = 0
        with open(receiving, "rb", buffering=0) as signals:
            while interrupts < 2 and (number := signals.read(1)):
                interrupts += number[0] == signal.SIGINT
                handler = signal.getsignal(signal.SIGINT)
                if interrupts == 1 and callable(handler) and handler is not signal.default_int_handler:
                    say("stopping after this step; press Ctrl-C again to stop now", sys.stderr)
        if interrupts == 2:
            time.sleep(_GRACE)
            say(f"interrupted, without an orderly end: it took longer than {_GRACE} s", sys.stderr)
            os._exit(INTERRUPTED)

    threading.Thread(target=watch, name="segjax-second-interrupt", daemon=True).start()
    previous = signal.set_wakeup_fd(sending, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        os.close(sending)


class _Output:
    """A standard stream that drops its text once nobody reads it: after `| head`, or when the terminal was closed."""

    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._or_nothing(self._stream.write, text)

    def flush(self) -> None:
        self._or_nothing(self._stream.flush)

    def _or_nothing(self, function: Callable, *arguments: str) -> Any:
        try:
            return function(*arguments)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            return function(*arguments)


def refuse_arguments(argv: Sequence[str]) -> None:
    """Raises UsageError if the command line has arguments that are not flags."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")


def refuse_together(*names: str) -> None:
    """Raises UsageError if more than one of these flags is given."""
    given = [f"--{name}" for name in names if flags.FLAGS[name].value is not None]
    if len(given) > 1:
        raise app.UsageError(f"{' and '.join(given)} exclude each other; remove all but one")


def check_image_folder(argument: str, root: Path) -> None:
    """Raises UsageError if `root`, the value of this flag or argument, is not a folder."""
    if not root.is_dir():
        problem = "it is a file" if root.exists() else "it does not exist"
        raise app.UsageError(f"{argument}={root}: expected a folder of images and masks; {problem}. Correct the path")


def refuse_flags(names: Iterable[str], reason: str) -> None:
    """Raises UsageError for the first of these flags that is given."""
    for name in names:
        if flags.FLAGS[name].present:
            raise app.UsageError(f"--{name} {reason}: remove it")


def _parsed(argv: list[str], required: Sequence[tuple[str, ...]], subcommands: Mapping[str, Subcommand]) -> list[str]:
    """Returns what is left of the command line after the flags; prints the help, and exits, if it asks for it."""
    if not {"--help", "-help", "-h", "-?", "--helpshort"}.isdisjoint(argv[1:]):
        print(_help(required, subcommands, next((one for one in argv[1:] if one in subcommands), None)))
        sys.exit(0)
    # Of a field that is given twice the last value counts; ml_collections would join two tuples.
    last = {argument.partition("=")[0]: i for i, argument in enumerate(argv) if re.match(r"--config\..*=", argument)}
    argv = [argument for i, argument in enumerate(argv) if last.get(argument.partition("=")[0], i) == i]
    # ml_collections takes no None for a number.
    unset = {f"--config.{key}=None": key for key, field in FIELDS.items() if field.optional}
    try:
        rest = flags.FLAGS([argument for argument in argv if argument not in unset])
    except flags.Error as error:
        if isinstance(error.__context__, ConfigError):  # of a config file, whose message is complete
            if "--verbose" not in argv:
                sys.exit(error_line(error.__context__))
            say(error_line(error.__context__), sys.stderr)
            raise error.__context__ from error.__context__.__cause__
        found = re.match(r"flag --config\.([\w.]+)=", str(error))
        if found and found[1] in FIELDS:
            value = dict(argument.partition("=")[::2] for argument in argv).get(f"--config.{found[1]}")
            sys.exit(error_line(ConfigError(f"config.{found[1]} must be {FIELDS[found[1]].valid}; got {value!r}")))
        _exit_with_usage(str(error).removeprefix("flag "))
    except _UNKNOWN_FIELD:
        _refuse_unknown_fields(argv)
        raise
    if missing := [names for names in required if all(flags.FLAGS[name].value is None for name in names)]:
        shown = [f"--{name}" + "".join(f" (or --{other})" for other in others) for name, *others in missing]
        _exit_with_usage(f"{' and '.join(shown)} must be given")
    if len(rest) > 1 and rest[1] in subcommands:
        _refuse_flags_of_others(rest[1], subcommands)
    if given := [unset[argument] for argument in argv if argument in unset]:
        flags.FLAGS.config.update_from_flattened_dict(dict.fromkeys(given))
    return rest


def _refuse_flags_of_others(subcommand: str, subcommands: Mapping[str, Subcommand]) -> None:
    """Exits with one line if a flag is given that other subcommands have, and not this one."""
    for name in sorted({name for other in subcommands.values() for name in other.flags}):
        owners = [f"{_program()} {one}" for one, other in subcommands.items() if name in other.flags]
        if flags.FLAGS[name].present and name not in subcommands[subcommand].flags:
            _exit_with_usage(f"--{name} belongs to {' and '.join(owners)}, not to {_program()} {subcommand}")


# Errors of ml_collections for a field that the config does not have.
_UNKNOWN_FIELD = (AttributeError, KeyError, TypeError)


def _refuse_unknown_fields(argv: list[str]) -> None:
    """Exits with the line about the first field of `--config` that does not exist, if there is one."""
    for argument in argv:
        name, _, value = argument.partition("=")
        if name.startswith("--config."):
            try:
                check_known(name.removeprefix("--config."), value)
            except ConfigError as mistake:
                sys.exit(error_line(mistake))


def _program() -> str:
    """Returns the command as a user types it: "segjax train", "python -m experiments.focal_paper.focal_star"."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    module = spec.name.removesuffix(".__main__") if spec else Path(sys.argv[0]).stem
    module = {"segjax.shipped_configs": "segjax.configs", "segjax.data_commands": "segjax.data"}.get(module, module)
    return module.replace(".", " ") if module.startswith("segjax.") else f"python -m {module}"


def _exit_with_usage(mistake: str) -> None:
    sys.exit(error_line(app.UsageError(mistake)))


def _help(
    required: Sequence[tuple[str, ...]], subcommands: Mapping[str, Subcommand], subcommand: str | None = None
) -> str:
    """Returns the docstring of the command, which ends with examples, a line per flag, and where the fields are.

    The help of a subcommand has its own docstring, examples and flags only.
    """
    lines = []
    for flag in (flags.FLAGS[name] for name in flags.FLAGS if name not in _LIBRARY_FLAGS):
        owners = [one for one, each in subcommands.items() if flag.name in each.flags]
        if subcommand and owners and subcommand not in owners:
            continue
        name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
        own = flag.parser.syntactic_help if isinstance(flag.parser, (_Size, _BareOrOneOf)) else ""
        shown = "" if flag.default in (None, False, "", []) else flag.default_as_str.replace("'", "")
        default = f"default {shown}" * bool(shown)
        others = [[one for one in names if one != flag.name] for names in required if flag.name in names]
        needed = [" without ".join(["required", *(f"--{one}" for one in names)]) for names in others]
        more = "; ".join(filter(None, (*needed, own, default)))
        prefix = f"{', '.join(owners)}: " * (not subcommand and 0 < len(owners) < len(subcommands))
        text = " ".join(f"{prefix}{flag.help}{f' ({more})' * bool(more)}".split())
        # Lists of values are broken between two of them.
        wrapped = textwrap.wrap(
            text.replace("|", "| "), _WIDTH, initial_indent=f"  {name:20} ", subsequent_indent=" " * 23
        )
        lines += [line.replace("| ", "|") for line in wrapped]
    docstring = (sys.modules["__main__"].__doc__ or "").strip()
    if subcommand:
        examples = re.findall(rf"^  .* {subcommand} .*$", docstring, re.MULTILINE)
        docstring = "\n".join([inspect.getdoc(subcommands[subcommand].function), "", "Examples:", *examples])
    return "\n\n".join([docstring, *["\n".join(["Options:", *lines])] * bool(lines), _FIELDS_HELP])


def config_names() -> list[str]:
    """Returns the names of the shipped configs."""
    return sorted(path.stem for path in CONFIGS.glob("*.py"))


def find_config(name: str) -> Path:
    """Returns the path of a config: a file, or the name of a shipped one; raises ValueError with the nearest names."""
    if Path(name).is_file():
        return Path(name)
    if name in config_names():
        return CONFIGS / f"{name}.py"
    nearest = difflib.get_close_matches(Path(name).stem, config_names(), cutoff=0.5)
    hint = f"the nearest are {', '.join(nearest)}" if nearest else "segjax configs list shows them"
    raise ValueError(f"neither a file nor the name of a shipped config; {hint}")


class ConfigFile(config_flags.ConfigFileFlagParser):
    """A config: its file or its name, and after a colon the argument of its `get_config`."""

    def parse(self, config: str) -> ConfigDict:
        """Returns the config.

        Raises ValueError if there is no such config, and ConfigError with its file and line if it fails.
        """
        name, colon, argument = config.partition(":")
        path = find_config(name)
        module = types.ModuleType("segjax_config_file")
        module.__file__, sys.modules[module.__name__] = str(path), module  # dataclasses look their module up
        variables = vars(module)
        try:
            exec(compile(path.read_bytes(), str(path), "exec"), variables)
            if "get_config" not in variables:
                raise ConfigError(
                    "get_config is missing; define get_config(), which returns a modified segjax.training.defaults()"
                )
            found = variables["get_config"](*[argument] * bool(colon))
            if not isinstance(found, ConfigDict):
                raise ConfigError(f"get_config returned {found!r:.60}; expected a modified segjax.training.defaults()")
        except (Exception, SystemExit) as error:
            if colon and isinstance(error, KeyError):
                raise ConfigError(f"{name} does not accept the argument {argument!r}; see its get_config") from error
            raise ConfigError(_failure(path, error)) from error
        return found.lock()


def _failure(path: Path, error: BaseException) -> str:
    """Returns file and line of an error in a config file, and its reason."""
    frames = list(traceback.walk_tb(error.__traceback__))
    line = next((line for frame, line in reversed(frames) if frame.f_code.co_filename == str(path)), None)
    reason = str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError) and error.filename == str(path):
        line, reason = error.lineno, f"{type(error).__name__}: {error.msg}"
    elif unknown := re.search(r'Key "(\w+)" does not exist', reason):
        # The error has the name alone; the other fields of the ConfigDict that raised it identify the group.
        of = [set(one) for frame, _ in frames if isinstance(one := frame.f_locals.get("self"), ConfigDict)]
        for group in {key.partition(".")[0] for key in FIELDS if "." in key}:
            if {key.partition(".")[2] for key in FIELDS if key.startswith(f"{group}.")} in of:
                reason = unknown_field(f"{group}.{unknown[1]}")
    return f"{path}{f', line {line}' if line else ''}: {' '.join(reason.split())[:300]}"


def define_config(name: str, default: str | None = None) -> None:
    """Defines a flag for a config, `--NAME=SHIPPED` or `--NAME=PATH`; `--NAME.FIELD=VALUE` changes a field."""
    help_text = "Name of a shipped config (segjax configs list), or a file; --config.objective.gamma=2 changes a field."
    config_flags.DEFINE_config_file(name, None, help_text)
    flags.FLAGS[name].parser = ConfigFile(name)
    try:
        flags.FLAGS.set_default(name, default)
    except _UNKNOWN_FIELD:
        _refuse_unknown_fields(sys.argv)
        raise


def given_fields(name: str) -> set[str]:
    """Returns the fields that the command line decides: those it changes and, of a config it names, all others too.

    The fields of a data set that such a config leaves at their default are not decided.
    """
    given = set(config_flags.get_override_values(flags.FLAGS[name]))
    if flags.FLAGS[name].using_default_value:
        return given
    changed_ones = {key for key, _, _ in changed(flags.FLAGS[name].value)}
    return given | changed_ones | {key for key in FIELDS if not key.startswith("data.")}


class _Size(flags.ArgumentParser):
    """A height and a width."""

    syntactic_help = "HEIGHT,WIDTH in pixels"

    def parse(self, argument: str | tuple[int, int]) -> tuple[int, int]:
        if isinstance(argument, tuple):
            return argument
        sides = tuple(int(side) for side in argument.split(",") if re.fullmatch("[0-9]{1,9}", side))
        if argument.count(",") != 1 or not FIELDS["data.size"].accepts(sides):
            raise ValueError(f"expected HEIGHT,WIDTH in pixels, each in {FIELDS['data.size'].range}")
        return sides


class _Number(flags.ArgumentParser):
    """A number that a config field of the same declaration would accept."""

    def __init__(self, field: Field):
        super().__init__()
        self.field = field

    def parse(self, argument: str | int | float) -> int | float:
        try:
            value = self.field.kind(argument) if isinstance(argument, str) else argument
        except ValueError:
            value = argument
        if not self.field.accepts(value):
            raise ValueError(f"expected {self.field.valid.removesuffix(' or None')}")
        return value


class _BareOrOneOf(flags.ArgumentParser):
    """One of some values, the first of them for a flag without a value."""

    def __init__(self, values: Sequence[str]):
        super().__init__()
        self._values, self.syntactic_help = values, f"<{'|'.join(values)}>; without a value: {values[0]}"

    def parse(self, argument: str) -> str | None:
        """Returns the value; None for `--noNAME`."""
        if argument in ("true", "false"):
            return self._values[0] if argument == "true" else None
        if argument not in self._values:
            raise ValueError(f"expected one of {', '.join(self._values)}")
        return argument


class _BareOrNumber(_Number):
    """A number of a config field, or nothing for a flag without a value, which is True."""

    def parse(self, argument: str | float | bool) -> float | bool | None:
        """Returns True for `--NAME`, and None for `--noNAME`."""
        if argument in ("true", "false", True):
            return None if argument == "false" else True
        return super().parse(argument)


def define_size(name: str, help_text: str, default: tuple[int, int] | None = None) -> None:
    """Defines a flag `--name=HEIGHT,WIDTH`, a tuple of two positive integers."""
    flags.DEFINE(_Size(), name, default, help_text)


def define_number(name: str, default: int | float | type, interval: str, help_text: str) -> None:
    """Defines a flag `--name=NUMBER` for a number in an interval; a `default` of type int or float means None."""
    optional = default if isinstance(default, type) else None
    field = Field(None if optional else default, help_text, range=interval, optional=optional)
    flags.DEFINE(_Number(field), name, field.default, help_text)


def define_bare_or_one_of(name: str, values: Sequence[str], help_text: str) -> None:
    """Defines a flag `--name`, which is the first of `values`, or `--name=VALUE`; default None."""
    flags.DEFINE(_BareOrOneOf(values), name, None, help_text, boolean=True)


def define_data_fields(name: str) -> None:
    """Defines flags `--NAME.data.FIELD=VALUE`, which change how a run's data is read; see `data_fields`."""
    define_config(name, "folder_unet")  # whose other values do not count, so the help omits it
    help_text = "Changes a field of config.data: --config.data.manual_dir=ROOT reads data that was moved."
    flags.FLAGS[name].help = f"{help_text} All other fields are those of the run."
    flags.FLAGS[name].default_as_str = ""


def data_fields(name: str) -> dict[str, Any]:
    """Returns the fields of `--NAME.data` on the command line, for `trained_run.load_run`."""
    values = config_flags.get_override_values(flags.FLAGS[name])
    if not flags.FLAGS[name].using_default_value or not all(key.startswith("data.") for key in values):
        given = f"--{name}.{min(values)}" if values else f"--{name}=NAME"
        raise app.UsageError(f"{given}: the run has its config; only --{name}.data.FIELD=VALUE can be changed")
    return {key.removeprefix("data."): value for key, value in values.items()}


def define_checkpoint() -> None:
    """Defines `--checkpoint`, the path of `trained_run.load_run`."""
    help_text = (
        "WORKDIR of a run (its best checkpoint) or WORKDIR/checkpoints/STEP; a comma-separated list is an ensemble."
    )
    flags.DEFINE_string("checkpoint", None, help_text)


def define_calibrated() -> None:
    """Defines `--calibrated`, True by default: use the scaling of `trained_run.stored_scaling`."""
    help_text = "Use the scaling of segjax calibrate for the probabilities."
    flags.DEFINE_bool("calibrated", True, help_text)


def define_calibration() -> None:
    """Defines `--calibration`, the `calibration` of `trained_run.load_run`."""
    help_text = "Output of segjax calibrate; default for one run: WORKDIR/calibration.json."
    flags.DEFINE_string("calibration", None, help_text)


def define_guarantee(name: str, help_text: str) -> None:
    """Defines a flag `--name`, which is True, or `--name=LEVEL`, in (0, 1); default None."""
    parser = _BareOrNumber(Field(None, help_text, range="(0, 1)", optional=float))
    flags.DEFINE(parser, name, None, help_text, boolean=True)


def define_min_score() -> None:
    """Defines `--min_score`, the `min_score` of `inference.write_detections`."""
    define_number("min_score", 0.5, FRACTION, "Detectors: smallest score of the boxes in NAME_boxes.png.")


def define_overwrite() -> None:
    """Defines `--overwrite`, the `overwrite` of `storage.write_outputs`."""
    help_text = "Also replace files that segjax did not write, or that were changed since."
    flags.DEFINE_bool("overwrite", False, help_text)
