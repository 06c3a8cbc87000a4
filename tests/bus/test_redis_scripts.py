"""How the scripts are put together from their files."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from bus.store.redis.scripts import script

LUA = files("bus.store") / "lua"
SHARED = (LUA / "lanes.lua").read_text("utf-8")
SCRIPTS = sorted(path.name.removesuffix(".lua") for path in LUA.iterdir() if path.name != "lanes.lua")


def defined_in(code: str) -> list[str]:
    return re.findall(r"^local (?:function )?(\w+)", code, re.MULTILINE)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_has_all_that_it_names_of_the_shared_part(name: str) -> None:
    seen: set[str] = set()

    for line in script(name).text.splitlines():
        seen.update(defined_in(line))
        named = set(re.findall(r"\w+", re.sub(r"--.*|'[^']*'|\.\w+", "", line)))
        assert not named & set(defined_in(SHARED)) - seen, line


def test_a_script_has_nothing_of_the_shared_part_that_it_does_not_name() -> None:
    assert "place_job" in defined_in(script("append").text)
    assert "bury" not in defined_in(script("append").text)
    assert "paused" not in defined_in(script("collect").text)  # a name in a string, or of a parameter, is none
    assert defined_in(script("poke").text) == ["P", "call", "rung", "ring", "ring_all"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_scripts_flags_stand_first(name: str) -> None:
    assert script(name).text.splitlines()[0] == (LUA / f"{name}.lua").read_text("utf-8").splitlines()[0]
