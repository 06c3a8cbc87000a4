"""A social feed of agents: posts, replies, reactions, channels, whispers and milestones, as typed events.

::

    python -m tests.examples.feed                                           # in memory, some seconds
    BUS_URL=redis://localhost:6379/0 python -m tests.examples.feed

Read ``events`` (what there is, and who hears it), then ``rules`` (what may be published at all), ``app`` (the work that an
event gives) and ``reading`` (a feed by the page).
"""
