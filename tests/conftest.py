"""Four host devices, no accelerator, shapes checked at run time: set before anything imports jax or segjax."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Four devices on two busy cores may wait for each other longer than the 40 s after which XLA ends the process.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    " --xla_cpu_collective_call_terminate_timeout_seconds=300"
)
# As many threads as wait for each other, and some more: a device that waits holds one, and XLA has one a device.
os.environ.setdefault("NPROC", "12")
# Nearly all of the suite's time is compilation: what one process or an earlier run has compiled is not compiled again.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import hypothesis
import jax
import pytest
from jaxtyping import install_import_hook

install_import_hook("segjax", "beartype.beartype")

# The same examples on every run and machine; a compilation in the first example is no reason to fail.
hypothesis.settings.register_profile("segjax", derandomize=True, deadline=None)
hypothesis.settings.load_profile("segjax")


@pytest.fixture(autouse=True, scope="module")
def compilation_effort(request):
    """The formulas are tested as their users compile them; all else has to compile fast, and no more."""
    optimized = request.path.stem in ("test_classification", "test_devices")
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", not optimized)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    jax.clear_caches()  # hundreds of programs a module: a worker would grow to 4 GB


@pytest.fixture(scope="session")
def page():
    """`page(name)`: what runs on a page of docs/, (language, text) of each of its blocks; a command is one line."""

    def blocks(name):
        text = (Path(__file__).parent.parent / "docs" / name).read_text(encoding="utf-8").replace("\\\n  ", "")
        return re.findall(r"^```(python|bash)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)

    return blocks


@pytest.fixture(scope="session")
def process_environment():
    """The environment of a real process: one device, and compilation that is fast and no more."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return environment | {"COLUMNS": "120", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


@pytest.fixture(scope="session")
def python(process_environment):
    """`python(*arguments)`: a real process in the checkout, run to its end."""

    def run(*arguments):
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=Path(__file__).parent.parent,
            env=process_environment,
            capture_output=True,
            text=True,
            timeout=400,
        )

    return run


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """`browser(page)`: what a real browser says of an HTML page, at a desk and on a telephone 390 pixels wide.

    By width, a dictionary: "images", whether each one is there; "cells", of its tables; "wide", whether the page itself
    scrolls sideways. A message on the browser's console fails.
    """
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium here: Debian's package is called chromium")

    def look(page):
        folder = tmp_path_factory.mktemp("browser")
        tell = (
            "<script>addEventListener('load', () => parent.postMessage({width: innerWidth, seen: {"
            "images: [...document.images].map(i => i.complete && i.naturalWidth > 1),"
            "cells: document.querySelectorAll('td').length,"
            "wide: document.documentElement.scrollWidth > document.documentElement.clientWidth}}, '*'));</script>"
        )
        (folder / "page.html").write_text(page.replace("</body>", f"{tell}</body>"), encoding="utf-8")
        listen = "<script>let all = {}; addEventListener('message', e => { all[e.data.width] = e.data.seen; "
        frames = "".join(f'<iframe src="page.html" style="width:{w}px;border:0"></iframe>' for w in (1280, 390))
        (folder / "desk.html").write_text(f"{listen}document.title = JSON.stringify(all); }});</script>{frames}")
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
        command += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=5000", "--dump-dom"]
        command.append((folder / "desk.html").as_uri())
        shown = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert shown.returncode == 0, shown.stderr
        assert "CONSOLE" not in shown.stderr
        seen = json.loads(re.search("<title>(.*?)</title>", shown.stdout)[1])
        assert set(seen) == {"1280", "390"}
        return {int(width): of for width, of in seen.items()}

    return look
