"""Four host devices, no accelerator, shapes checked at run time: set before the first import of jax or segjax."""

import gc
import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# On two busy cores a collective of four devices may take longer than the 40 s after which XLA ends the process.
# XLA's scheduler for CPUs may run independent collectives in another order on each device, which then wait forever.
# XLA divides a program among the cores to compile it, which costs a tenth more where every core has tests of its own.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    " --xla_cpu_collective_call_terminate_timeout_seconds=300"
    " --xla_cpu_enable_concurrency_optimized_scheduler=false"
    " --xla_cpu_parallel_codegen_split_count=1"
)
# XLA's older code generator compiles in less time, and `make test` and `make test-slow` set the variable. The default
# one, which users run, compiles a part of the slow tests (see the Makefile) and, on the second interpreter, whose
# jaxlib has no other, all tests.
if os.environ.get("SEGJAX_FAST_COMPILATION") and importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
# A waiting device holds a thread, and XLA's pool would have one thread per device only.
os.environ.setdefault("NPROC", "12")
# Most of the suite's time is compilation, which all processes and later runs share.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import hypothesis
import jax
import pytest
from absl import flags
from beartype import BeartypeConf
from beartype.claw import beartype_packages
from jaxtyping import install_import_hook
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent

# All annotations are checked at run time: by jaxtyping, and in the modules of the config, whose functions take no array
# and run a thousand times per config, by beartype alone, which takes a tenth of the time per call.
of_config = ("segjax.training.config", "segjax.training.fields")
beartype_packages(of_config, conf=BeartypeConf(claw_is_pep526=False, violation_type=TypeError))
modules = {".".join(file.relative_to(ROOT).with_suffix("").parts) for file in ROOT.glob("segjax/**/*.py")}
install_import_hook(sorted(modules.difference(of_config)), "beartype.beartype")

# A job in the background inherits ignored signals, and so would the processes that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The same examples in every run; no deadline, because the first example compiles.
hypothesis.settings.register_profile("segjax", derandomize=True, deadline=None)
hypothesis.settings.load_profile("segjax")

# Set here and not in a fixture, because session fixtures are set up before those of a module.
jax.config.update("jax_disable_most_optimizations", True)


# With hundreds of programs per module a worker would grow to 4 GB.
MEMORY_OF_PROGRAMS = 2 * 2**30


def resident_memory():
    """Returns the bytes of memory that this process uses, or infinity on a system without /proc."""
    file = Path("/proc/self/statm")
    return int(file.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if file.exists() else float("inf")


# Garbage collections would search the millions of objects that are imported and collected, and free none of them.
gc.disable()


def pytest_collection_finish():
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    gc.enable()


@pytest.fixture(autouse=True, scope="module")
def compilation_effort(request):
    """Compiles the tests of formulas, devices and notebooks with optimizations, and all others fast."""
    optimized = request.path.stem in ("test_api_pages", "test_classification", "test_devices")
    if optimized:
        jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", not optimized)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
    if optimized or resident_memory() > MEMORY_OF_PROGRAMS:
        jax.clear_caches()


@pytest.fixture(scope="session")
def page():
    """Returns `page(name)`, the (language, text) of each code block of a page in docs/, one command per line."""

    def blocks(name):
        text = (ROOT / "docs" / name).read_text(encoding="utf-8").replace("\\\n  ", "")
        return re.findall(r"^```(python|bash)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)

    return blocks


@pytest.fixture(scope="session")
def process_environment():
    """Returns the environment of a child process with one device and fast compilation."""
    kept = ("fusion_emitters", "codegen_split")
    xla = " ".join(flag for flag in os.environ["XLA_FLAGS"].split() if any(name in flag for name in kept))
    return os.environ | {"COLUMNS": "120", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": xla}


@pytest.fixture(scope="session")
def python(process_environment):
    """Returns `python(*arguments)`, which runs a child process in the checkout to its end."""

    def run(*arguments):
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            env=process_environment,
            capture_output=True,
            text=True,
            timeout=400,
        )

    return run


@pytest.fixture
def run_command(monkeypatch, capsys):
    """Returns `run_command(*arguments)`: exit status, output and error line of `segjax ARGUMENTS` in this process."""
    from segjax import __main__

    importlib.import_module("segjax.cli")  # whose flags stay

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["segjax", *map(str, arguments)])
        before, status, error = set(flags.FLAGS), 0, ""
        try:
            with warnings.catch_warnings():
                # The command was imported by another test; ml_collections loads config files in the old way.
                warnings.filterwarnings("ignore", "'segjax.* found in sys.modules", RuntimeWarning)
                warnings.filterwarnings("ignore", r"the load_module\(\) method is deprecated", DeprecationWarning)
                __main__.main()
        except SystemExit as end:
            status, error = (int(bool(end.code)), str(end.code or ""))
        finally:
            for name in set(flags.FLAGS) - before:
                delattr(flags.FLAGS, name)
            flags.FLAGS.unparse_flags()
        return status, capsys.readouterr().out, error

    return run


@pytest.fixture(scope="session")
def misread():
    """Returns `misread(file, read)`, which damages a JSON file or another one in many ways, and reads it.

    `without` names places that are left out: "missing", "folder", "pipe", "loop".

    Each time, `read()` must return, or raise an error that commands print as one line. The result is the set of
    damages after which it returned. At the end the file is as before.
    """
    from segjax.training import MISTAKES

    def contents(good):
        yield from {"empty": b"", "half": good[: len(good) // 2], "cut": good.rstrip()[:-1]}.items()
        values = (None, True, 1, "text", [], {}, [[1, 2]], {"a": None}, {"step": "1"}, [{}], [None])
        yield from ((json.dumps(value), json.dumps(value).encode()) for value in values)
        yield from {"lists": b"[" * 10**5, "dicts": b'{"a":' * 10**5, "balanced": b"[" * 10**5 + b"]" * 10**5}.items()
        yield from {"binary": bytes(range(256)), "zeros": bytes(len(good)), "digits": b"1" * 5000}.items()
        text = good.decode(errors="replace")
        yield from ((code, text.encode(code, "replace")) for code in ("utf-16", "utf-32", "utf-8-sig"))
        yield "latin-1", good[:-3] + "é".encode("latin-1") + good[-3:]
        if good.lstrip().startswith(b"{"):
            entries = json.loads(good.splitlines()[0] if good.count(b"\n{") else good)
            for key in list(entries)[:: 1 + len(entries) // 10]:
                yield f"without {key}", json.dumps({k: v for k, v in entries.items() if k != key}).encode()
                for value in (None, [], {}, "text", -1):
                    yield f"{key} {value}", json.dumps(entries | {key: value}).encode()

    def clear(file):
        if file.is_dir():
            file.rmdir()
        elif file.is_symlink() or file.exists():
            file.unlink()

    places = {"missing": clear, "folder": Path.mkdir, "pipe": os.mkfifo, "loop": lambda file: file.symlink_to(file)}

    def run(file, read, *, without=()):
        file, lines = Path(file), {}
        good = file.read_bytes()

        def attempt(damage):
            try:
                read()
                lines[damage] = []
            except MISTAKES as error:
                lines[damage] = str(error).splitlines()
            except BaseException as error:
                error.add_note(f"after the damage {damage!r} to {file.name}")
                raise

        read()
        try:
            for damage, content in contents(good):
                file.write_bytes(content)
                attempt(damage)
            for name, place in places.items():
                if name in without:
                    continue
                clear(file)
                place(file)
                attempt(name)
        finally:
            clear(file)
            file.write_bytes(good)
        read()
        assert not [damage for damage, message in lines.items() if len(message) > 1]
        return {damage for damage, message in lines.items() if not message}

    return run


@pytest.fixture(scope="session")
def linked_site(tmp_path_factory):
    """Returns `linked_site(*names)`, a site folder with links to what `pip install NAMES` installs, without extras."""

    def link(*names):
        site, found, wanted = tmp_path_factory.mktemp("site"), set(), list(names)
        while wanted:
            name = wanted.pop()
            if name not in found:
                found.add(name)
                needed = map(Requirement, importlib.metadata.requires(name) or ())
                wanted += [n.name for n in needed if n.marker is None or n.marker.evaluate({"extra": ""})]
        for name in found:
            distribution = importlib.metadata.distribution(name)
            for top in {file.parts[0] for file in distribution.files if file.parts[0] != ".."}:
                (site / top).symlink_to(Path(distribution.locate_file(top)).resolve())
        return site

    return link


@pytest.fixture(scope="session")
def tab(tmp_path_factory):
    """Returns `tab(width=1280, dark=False)`, the `Tab` of a new Chromium: tests/chromium.py."""
    spec = importlib.util.spec_from_file_location("chromium", Path(__file__).parent / "chromium.py")
    spec.loader.exec_module(chromium := importlib.util.module_from_spec(spec))
    if chromium.CHROMIUM is None:
        pytest.skip("Chromium is not installed; Debian's package is chromium")
    return lambda **options: chromium.Tab(tmp_path_factory.mktemp("profile"), **options)


@pytest.fixture(scope="session")
def browser(tmp_path_factory, tab):
    """Returns `browser(page)`, which renders an HTML page, a text or a file, 1280 and 390 pixels wide.

    Its result has a dictionary per width: "images", True for each loaded image; "charts", the number of drawn charts;
    "cells", the number of table cells; "wide", True if the page scrolls sideways. A message on the browser's console
    fails the test.
    """
    look = """({
        images: [...document.querySelectorAll('img[src]')].map(i => i.complete && i.naturalWidth > 1),
        charts: [...document.querySelectorAll('.plot')].filter(plot => plot.querySelector('path.line')).length,
        cells: document.querySelectorAll('td').length,
        wide: document.documentElement.scrollWidth > document.documentElement.clientWidth})"""

    def render(page):
        file = page if isinstance(page, Path) else tmp_path_factory.mktemp("browser") / "shown.html"
        if not isinstance(page, Path):
            file.write_text(page, encoding="utf-8")
        seen = {}
        with tab() as opened:
            for width in (1280, 390):
                opened.resize(width, 900)
                opened.open(file)
                seen[width] = opened.evaluate(look)
            assert opened.console == []
        return seen

    return render
