"""Reports as pages: each experiments/results/NAME.md becomes the page reports/NAME, with its pictures."""

import os
import re
from pathlib import Path
from typing import Any

from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

import live_pages

RESULTS = Path(__file__).parents[2] / "experiments" / "results"


def write_pages(app: Sphinx) -> None:
    """Copies the reports to docs/reports/, which git ignores, with the paths of their pictures adapted."""
    folder = Path(app.srcdir, "reports")
    folder.mkdir(exist_ok=True)
    for stale in folder.glob("*.md"):
        stale.unlink()
    titles: set[str] = set()
    sweeps = live_pages.committed_sweeps()
    for report in sorted(RESULTS.glob("*.md")):
        text = re.sub(r"\]\((?!https?:)", f"]({os.path.relpath(RESULTS, folder)}/", report.read_text("utf-8"))
        if not text.startswith("# "):
            text = f"# {report.stem.replace('_', ' ').capitalize()}\n\n{text}"
        title, _, rest = text.partition("\n")
        if title in titles:  # the smoke preset of a study has the same title
            title += f" ({report.stem.rpartition('_')[2]})"
        titles.add(title)
        if report.stem in sweeps:
            rest = f"\n{live_pages.link(report.stem, 'Explore this report', '../')}\n{rest}"
        (folder / report.name).write_text(f"{title}\n{rest}", encoding="utf-8")


class Links(SphinxTransform):
    """Turns links to reports into links to their pages, and links to other files of the repository into downloads."""

    default_priority = 200

    def apply(self, **_: Any) -> None:
        """Replaces the links of one page."""
        for link in list(self.document.findall(addnodes.pending_xref)):
            target = link.get("reftarget", "")
            if link.get("refdomain") != "doc" or not target.startswith("/"):
                continue
            if Path(target).parent.name == "results":
                link["reftarget"] = f"reports/{Path(target).name}"
                continue
            path = os.path.relpath(f"{target}.md", Path(self.env.doc2path(self.env.docname)).parent)
            link.replace_self(addnodes.download_reference("", "", *link.children, reftarget=path))


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the extension."""
    app.connect("builder-inited", write_pages)
    app.add_transform(Links)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
