"""IFBench's constraints, in one tuple."""

from rlsys.verifiers.ifbench import counts, formats, lexical, passages, ratios, tasks

CONSTRAINTS = (
    *counts.CONSTRAINTS,
    *ratios.CONSTRAINTS,
    *lexical.CONSTRAINTS,
    *passages.CONSTRAINTS,
    *formats.CONSTRAINTS,
    *tasks.CONSTRAINTS,
)
"""57 of the 58 that IFBench tests with (Pyatkin et al., arXiv 2507.02833)."""

REFUSED = {"words:start_verb": "telling a verb takes a tagger, whose weights would have to be downloaded"}
"""Known but not checked, and why: refused when a data set loads."""
