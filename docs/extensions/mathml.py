"""Formulas as MathML, which browsers draw themselves: no script, no font, no network. docutils has the parser."""

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)


# A word is a name, set upright, and no product of letters; not what is a command or its text already.
WORD = re.compile(r"\\(?:text|begin|end|mathrm|operatorname)\{[^}]*\}|\\[A-Za-z]+|([A-Za-z]{3,}|CE|FL|PA)")


def words_upright(formula: str) -> str:
    r"""`softmax(z)` as `\mathrm{softmax}(z)`."""
    return WORD.sub(lambda match: rf"\mathrm{{{match[1]}}}" if match[1] else match[0], formula)


def mathml(node: nodes.math | nodes.math_block, *, as_block: bool) -> str:
    """The `<math>` element of a formula; one that docutils cannot read is a warning, and stays as it was typed."""
    try:
        return tex2mathml(words_upright(node.astext()), as_block=as_block)
    except MathError as error:
        LOGGER.warning("formula: %s", error, location=node)
        return f"<code>{node.astext()}</code>"


def visit_math(translator: Any, node: nodes.math) -> None:
    """Within a line."""
    translator.body.append(mathml(node, as_block=False))
    raise nodes.SkipNode


def visit_math_block(translator: Any, node: nodes.math_block) -> None:
    """On lines of its own; a phone scrolls what is wider than it is."""
    translator.body.append(f'<div class="formula">{mathml(node, as_block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
