"""Events: types, versions, and the process's table of both. Types here start with ``events.``: the table is shared."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any, Generic, TypeVar

import pytest
from pydantic import PydanticUserError, ValidationError

from bus.errors import InvalidEvent
from bus.events import Event, lookup, newest, versions

Content = TypeVar("Content")


class Kept(Event, type="events.kept"):
    text: str = ""


class Moved(Event, Generic[Content], type="events.moved", version=3):
    content: Content


def define(name: str, *, module: str = __name__, qualname: str = "Twice", **arguments: Any) -> type[Event]:
    """A class statement with a chosen module and qualified name, as a reload or another file would run it."""
    body = {"__module__": module, "__qualname__": qualname}
    statement: Any = type(Event)
    made: type[Event] = statement(qualname, (Event,), body, type=name, **arguments)
    return made


def test_a_class_states_its_type_and_version() -> None:
    class Stated(Event, type="events.stated", version=2):
        pass

    assert (Stated.__event_type__, Stated.__event_version__) == ("events.stated", 2)
    assert lookup("events.stated", 2) is Stated


def test_the_first_version_is_1() -> None:
    assert Kept.__event_version__ == 1


def test_class_arguments_do_not_leak_into_the_config() -> None:
    assert not {"type", "version"} & set(Kept.model_config)


def test_config_may_still_be_given_in_the_class_statement() -> None:
    class Strict(Event, type="events.strict", extra="forbid"):
        pass

    assert Strict.model_config.get("extra") == "forbid"
    assert Strict.model_config.get("frozen") is True


def test_a_class_without_a_type_is_an_abstract_base() -> None:
    class Base(Event):
        pass

    assert Base.__event_type__ is None
    assert Event.__event_type__ is None


def test_a_type_is_not_inherited() -> None:
    class Child(Kept):
        pass

    assert Child.__event_type__ is None
    assert Child.__event_version__ == 0
    assert lookup("events.kept", 1) is Kept


def test_a_generic_event_keeps_its_type_when_its_content_is_given() -> None:
    filled = Moved[int](content=1)

    assert type(filled).__event_type__ == "events.moved"
    assert type(filled).__event_version__ == 3
    assert lookup("events.moved", 3) is Moved


def test_a_field_may_have_any_of_our_names() -> None:
    class Busy(Event, type="events.busy"):
        type: str
        version: int
        id: str
        data: dict[str, int]
        topics: str
        key: str

    busy = Busy(type="t", version=7, id="i", data={"a": 1}, topics="x", key="k")

    assert (busy.type, busy.version, busy.id) == ("t", 7, "i")
    assert (Busy.__event_type__, Busy.__event_version__) == ("events.busy", 1)


def test_an_event_is_frozen() -> None:
    kept = Kept(text="a")

    with pytest.raises(ValidationError):
        kept.text = "b"  # type: ignore[misc]


def test_a_number_that_json_lacks_is_refused() -> None:
    class Measured(Event, type="events.measured"):
        value: float

    with pytest.raises(ValidationError):
        Measured(value=math.nan)


def test_a_refused_event_does_not_quote_its_input() -> None:
    with pytest.raises(ValidationError) as caught:
        Kept(text=["secret"])  # type: ignore[arg-type]

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["a", "agent.post.created", "A-b_c.9", "$sys.tick", "a" * 255])
def test_dotted_names_are_types(name: str) -> None:
    assert define(name, qualname="f.<locals>.Named").__event_type__ == name


@pytest.mark.parametrize("name", ["", ".", "a.", ".a", "a..b", "a b", "a:b", "a\n", "a$b", "caf\u00e9", "a" * 256, 5])
def test_other_names_are_refused(name: Any) -> None:
    with pytest.raises(InvalidEvent, match="not the name of an event type"):
        define(name, qualname="f.<locals>.Misnamed")


@pytest.mark.parametrize("version", [0, -1, True, "1", 1.0])
def test_other_versions_are_refused(version: Any) -> None:
    with pytest.raises(InvalidEvent, match="whole number from 1 up"):
        define("events.misnumbered", version=version)

    assert versions("events.misnumbered") == ()


def test_a_version_without_a_type_is_refused() -> None:
    with pytest.raises(InvalidEvent, match="version and no type"):

        class Nameless(Event, version=2):
            pass


def test_versions_stand_in_order_and_the_newest_is_the_highest() -> None:
    third, first = define("events.aged", version=3, qualname="V3"), define("events.aged", version=1, qualname="V1")

    assert versions("events.aged") == (1, 3)
    assert newest("events.aged") is third
    assert lookup("events.aged", 1) is first
    assert lookup("events.aged", 2) is None


def test_an_unknown_type_has_no_versions() -> None:
    assert versions("events.unheard") == ()
    assert newest("events.unheard") is None
    assert lookup("events.unheard", 1) is None


def test_a_reloaded_module_replaces_its_own_class() -> None:
    define("events.reloaded")

    again = define("events.reloaded")

    assert lookup("events.reloaded", 1) is again


def test_two_classes_for_one_type_and_version_are_refused_and_both_named() -> None:
    first = define("events.disputed", module="shop.orders", qualname="Order")

    with pytest.raises(InvalidEvent, match=r"shop\.billing\.Bill and shop\.orders\.Order both define"):
        define("events.disputed", module="shop.billing", qualname="Bill")

    assert lookup("events.disputed", 1) is first


def test_a_class_inside_a_function_replaces_and_is_replaced() -> None:
    outer = define("events.local", qualname="Outer")

    class Inner(Event, type="events.local"):
        pass

    assert lookup("events.local", 1) is Inner

    back = define("events.local", qualname="Another")

    assert lookup("events.local", 1) is back is not outer


def test_a_class_whose_fields_fail_is_not_defined() -> None:
    class Opaque:
        pass

    with pytest.raises(PydanticUserError):

        class Broken(Event, type="events.broken"):
            value: Opaque

    assert versions("events.broken") == ()


def test_the_table_is_empty_until_a_class_statement_runs() -> None:
    question = "import bus.events as events; print(len(events._types))"

    answer = subprocess.run([sys.executable, "-c", question], capture_output=True, text=True, check=True, timeout=60)

    assert answer.stdout.strip() == "0"
