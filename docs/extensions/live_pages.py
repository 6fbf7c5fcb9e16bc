"""The committed sweeps as live pages: live/NAME.html of the site, a link on each report, and a list of them.

The directive `live-pages` lists them all.
"""

from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from experiments.focal_paper.live_pages import RESULTS, committed_sweeps, live_page


def link(name: str, text: str, top: str = "") -> str:
    """Returns a link to a live page as HTML; `top` is the path from the page with the link to the top of the site."""
    return f'<a class="live" href="{top}live/{name}.html">{text}</a>'


class LivePages(SphinxDirective):
    """A list of links to all live pages, by the titles of their reports."""

    def run(self) -> list[nodes.Node]:
        """Returns the list; the directive stands on a page at the top of the site."""
        entries = []
        for name in committed_sweeps():
            title = (RESULTS / f"{name}.md").read_text("utf-8").partition("\n")[0].removeprefix("# ").replace("\\", "")
            smoke = " (smoke)" if name.endswith("_smoke") else ""
            entries.append(f"<li>{link(name, f'{title}{smoke}')}</li>")
        return [nodes.raw("", f"<ul>{''.join(entries)}</ul>", format="html")]


def write_pages(app: Sphinx, exception: Exception | None) -> None:
    """Writes the live pages to the site."""
    if exception is not None or app.builder.format != "html":
        return
    folder = Path(app.outdir, "live")
    folder.mkdir(exist_ok=True)
    for name in committed_sweeps():
        (folder / f"{name}.html").write_text(live_page(name), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the extension."""
    app.add_directive("live-pages", LivePages)
    app.connect("build-finished", write_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
