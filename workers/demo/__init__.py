"""``callboard demo``: a small theatre company at its last rehearsal, in one process and in memory.

``cast`` is an app like any other; ``tally`` counts what really happened; ``screen`` shows it, live or as plain lines;
``rehearsal`` brings them together.
"""

from workers.demo.rehearsal import rehearse
from workers.demo.screen import LiveScreen, PlainScreen, Screen

__all__ = ["LiveScreen", "PlainScreen", "Screen", "rehearse"]
