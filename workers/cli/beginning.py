"""``callboard dev --new NAME``: the first files of an app, and what to do with them."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from workers.cli.outcome import FAILURE, USAGE, Failed
from workers.cli.terminal import tell

__all__ = ["begin_project"]

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,40}")
FILES = {
    "app.py": "app.py.txt",
    "test_app.py": "test_app.py.txt",
    "Procfile": "Procfile.txt",
    "requirements.txt": "requirements.txt",
}


def begin_project(name: str) -> None:
    """Write a folder with a small app in it. Overwrites nothing; raises :class:`Failed` where there is something."""
    if not _NAME.fullmatch(name):
        raise Failed(
            f"{name[:80]!r} is no name: a small letter, then small letters, digits, '_' and '-', as in shop", USAGE
        )
    folder = Path(name)
    try:
        folder.mkdir(exist_ok=True)
        if any(folder.iterdir()):
            raise Failed(f"{name!r} is there already, and not empty: nothing was written; choose another name", USAGE)
        for file, template in FILES.items():
            text = files("workers.cli").joinpath("templates", template).read_text("utf-8")
            with (folder / file).open("x", encoding="utf-8") as written:
                written.write(text.replace("{name}", name))
    except OSError as error:
        raise Failed(f"{name!r} cannot be written: {error.strerror or error}", FAILURE) from None
    tell(
        f"wrote {name}/: {', '.join(FILES)}\n"
        "next:\n"
        f"    cd {name} && pip install -r requirements.txt\n"
        "    pytest\n"
        "    callboard dev\n"
        f"and there type a line, as in:  {name}.note.written agent_id=ada text='To be, or not to be'"
    )
