"""Formulas as MathML, by the parser of docutils: browsers draw it without a script, a font or the network."""

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)


# Words are upright names and not products of letters; commands and their text stay as they are.
WORD = re.compile(r"\\(?:text|begin|end|mathrm|operatorname)\{[^}]*\}|\\[A-Za-z]+|([A-Za-z]{3,}|CE|FL|PA)")


def words_upright(formula: str) -> str:
    r"""Returns `softmax(z)` as `\mathrm{softmax}(z)`."""
    return WORD.sub(lambda match: rf"\mathrm{{{match[1]}}}" if match[1] else match[0], formula)


def mathml(node: nodes.math | nodes.math_block, *, as_block: bool) -> str:
    """Returns the `<math>` element of a formula; warns and returns the source if docutils cannot parse it."""
    try:
        return tex2mathml(words_upright(node.astext()), as_block=as_block)
    except MathError as error:
        LOGGER.warning("formula: %s", error, location=node)
        return f"<code>{node.astext()}</code>"


def visit_math(translator: Any, node: nodes.math) -> None:
    """Writes an inline formula."""
    translator.body.append(mathml(node, as_block=False))
    raise nodes.SkipNode


def visit_math_block(translator: Any, node: nodes.math_block) -> None:
    """Writes a displayed formula, which scrolls on a narrow screen."""
    translator.body.append(f'<div class="formula">{mathml(node, as_block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the extension."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
