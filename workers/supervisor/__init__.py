"""Several worker processes under one master, which knows nothing of the app: it never imports it.

::

    master ──spawn──> child 1..N     the same command with ``--child``; each in a process group of its own
       ^  <──lines──  tether         JSON: ready, health; its end tells either side that the other is gone
       └──spawn─────> forks          what the app's middleware wants as processes of their own

    guard             a process beside each of these (and beside a worker that is alone): tells it of the master's end,
                      and kills it when it does not act upon a signal

    child:   booting ──ready──> working ──SIGTERM──> draining ──> gone
                │ exit 2, 3        │ killed
                │                  └─> another in its place, after a pause that doubles (0.1 s to 15 s)
                └─> before all have been ready once: everything ends with that code; later it is tried again

    SIGTERM, SIGINT   to every child, once; a second one kills them
    SIGHUP            a reload: one by one a fresh child is started, and the old one drains once it is ready

The first child boots alone, so that what is wrong with the app is said once. ``callboard worker`` is built on this, and
whatever else runs processes that come and go with the code.
"""

from workers.supervisor.child import Command
from workers.supervisor.fork import names_of_forks, run_fork
from workers.supervisor.guard import Guard
from workers.supervisor.hangup import Hangup
from workers.supervisor.master import Supervisor
from workers.supervisor.tether import Tether
from workers.supervisor.watch import Watcher, keep_no_bytecode

__all__ = [
    "Command",
    "Guard",
    "Hangup",
    "Supervisor",
    "Tether",
    "Watcher",
    "keep_no_bytecode",
    "names_of_forks",
    "run_fork",
]
