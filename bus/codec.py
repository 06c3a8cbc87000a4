"""Between events and bytes: wrap and encode on the way out, decode and read on the way in.

What comes in may be anything, so :func:`decode` and :func:`read` raise errors of this package and no others. What an
error says names attributes, fields and types, never values: payloads stay out of logs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from json.encoder import encode_basestring
from types import NoneType, UnionType
from typing import Any, Final, NotRequired, TypedDict, Union, Unpack, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticSerializationError, from_json, to_json, to_jsonable_python

from bus.causation import Cause
from bus.envelope import (
    MAX_ATTRIBUTE,
    MAX_DEPTH,
    PATTERN_FAULTS,
    Envelope,
    check_json,
    dataschema,
    rfc3339,
    step,
    version_in,
)
from bus.errors import InvalidEvent, InvalidTopic, PayloadTooLarge
from bus.events import Event, check_type, lookup, newest
from bus.ids import uuid7
from bus.opening import compact, opened
from bus.topics import plural, topic_set

__all__ = ["Attributes", "Written", "decode", "encode", "model_of", "read", "read_as", "wrap", "write"]

_NAMED_FAULTS: Final = 5
_PLAIN: Final = frozenset({str, int, float, bool, NoneType})
_SHORT: Final = 1_000
_HARMLESS: Final = bytes(set(range(256)) - set(b"{[NI"))
_UNSERIALISABLE: Final = (PydanticSerializationError, ValueError, TypeError, RecursionError)
_IN_DOUBT: Final = (*_UNSERIALISABLE, InvalidEvent, InvalidTopic)


class Attributes(TypedDict):
    """What an event gets on its way beside its own; ``now_ms`` dates it (milliseconds since 1970, UTC)."""

    id: str | None
    source: str
    now_ms: int
    topics: tuple[str, ...]
    key: str | None
    correlationid: NotRequired[str | None]
    causationid: NotRequired[str | None]
    traceparent: NotRequired[str | None]
    subject: NotRequired[str | None]


Data = Mapping[str, Any] | bytes
"""An event's data: plain values, or JSON where there are none at hand."""

Written = tuple[str, str, str, Data, bytes]
"""An event as it travels, and what decides who gets it: its id, its type, its topics on one line, its data, all of it."""


def write(
    event: Event | Mapping[str, Any],
    topics: Iterable[str],
    key: str | None,
    *,
    id: str | None,
    source: str,
    now_ms: int,
    cause: Cause | None = None,
    reserved: bool = False,
) -> Written:
    """``encode(wrap(event, ...))`` without the price of an envelope's model, for all that is published passes here.

    pydantic writes the data, and the envelope goes around it, without a model or a dict between. The attributes, what is
    raised and the bytes are those of :func:`wrap` and :func:`encode`, which are asked where there is any doubt. ``cause``
    is what caused the event; the bus's own topics are for those who are let (``reserved``).
    """
    topics = tuple(topics if type(topics) is list else plural(topics))
    try:
        name, version, data, text = _json_of(event)
        line, kind, form, address = _form(name, version, source, topics, key, reserved)
        event_id = uuid7(now_ms) if id is None else id
        quoted_id = f'"{event_id}"' if id is None else _quoted(id)
        caused = "" if cause is None else _caused(cause)
        head = f'{{"specversion":"1.0","id":{quoted_id},{kind},"time":"{rfc3339(now_ms)}",{form}{caused}{address}'
        return event_id, name, line, data, b'%b"data":%b}' % (head.encode(), text)
    except _IN_DOUBT:
        envelope = wrap(
            event,
            id=id,
            source=source,
            now_ms=now_ms,
            topics=topic_set(topics, reserved=reserved),
            key=key,
            correlationid=cause.correlation if cause else None,
            causationid=cause.id if cause else None,
            traceparent=cause.traceparent if cause else None,
        )
        return envelope.id, envelope.type, " ".join(envelope.topics), envelope.data, encode(envelope)


@lru_cache(maxsize=1_024)
def _form(
    name: str,
    version: int | None,
    source: str,
    topics: tuple[str, ...],
    key: str | None,
    reserved: bool,  # noqa: FBT001  # by position is faster through lru_cache
) -> tuple[str, str, str, str]:
    """What all events of a type have alike that go from one source to the same topics: the topics, and three pieces."""
    line = " ".join(topic_set(topics, reserved=reserved))
    schema = f',"dataschema":"{dataschema(name, version)}"' if version else ""
    to = f',"topics":"{line}"' if line else ""
    lane = "" if key is None else f',"key":{_quoted(key)}'
    return (
        line,
        f'"type":"{name}","source":{_quoted(source)}',
        f'"datacontenttype":"application/json"{schema}',
        f"{to}{lane},",
    )


def _caused(cause: Cause) -> str:
    trace = "" if cause.traceparent is None else f',"traceparent":{_quoted(cause.traceparent)}'
    return f',"correlationid":{_quoted(cause.correlation)},"causationid":{_quoted(cause.id)}{trace}'


def _json_of(event: Event | Mapping[str, Any]) -> tuple[str, int | None, Data, bytes]:
    """Type, version, data, and the data as sound JSON."""
    model: Any = type(event)
    ways = _ways_of(model)
    if ways is None:
        name, version, made = _of_mapping(event)  # type: ignore[arg-type]  # this is no event
        return name, version, made, to_json(check_json(made))
    name, version, fields = ways
    write = model.__pydantic_serializer__.to_json  # what model_dump_json() calls, without a detour over text
    values = event.__dict__
    plain = fields is not None and _as_declared(fields, tuple(values), tuple(map(type, values.values())))
    if plain:
        text = write(event, by_alias=False, round_trip=True, warnings=False)  # there is nothing to warn of
    else:
        text = write(event, by_alias=False, round_trip=True, warnings="error")
        if not text.startswith(b"{"):  # a serializer of the model's makes something else of it
            raise ValueError
    if not _is_surely_sound(text):
        check_json(from_json(text))
    return name, version, values if plain else text, text


_Kinds = frozenset[type]
_Fields = tuple[tuple[str, _Kinds], ...]


@lru_cache(maxsize=1_024)
def _ways_of(kind: type) -> tuple[str, int, _Fields | None] | None:
    """An event's type and version, and its fields, if they are plain; ``None`` for what is no event.

    Raises ``ValueError`` for one that has no type.
    """
    if not issubclass(kind, Event):
        return None
    if kind.__event_type__ is None:
        raise ValueError
    return kind.__event_type__, kind.__event_version__, _plain_fields(kind)


def _plain_fields(kind: type[Event]) -> _Fields | None:
    """All that such an event has, if that is nothing but plain values, and nobody has a say in how they are written."""
    own, config = kind.__pydantic_decorators__, kind.model_config
    if own.field_serializers or own.model_serializers or config.get("json_encoders") or config.get("extra") == "allow":
        return None
    if config.get("allow_inf_nan"):  # which may be written as anything
        return None
    if any("__get_pydantic_core_schema__" in vars(one) for one in {*kind.__mro__}.difference(Event.__mro__)):
        return None
    fields = tuple((name, _plain_types(field)) for name, field in kind.model_fields.items())
    return fields if all(kinds for _, kinds in fields) else None


@lru_cache(maxsize=1_024)
def _reads_plainly(kind: type[Event]) -> bool:
    """Whether such an event is made in the same way of plain values as of their JSON."""
    own = kind.__pydantic_decorators__
    if own.validators or own.field_validators or own.root_validators or own.model_validators:
        return False  # they may ask which it is
    if kind.model_config.get("coerce_numbers_to_str"):
        return False  # pydantic writes some numbers differently
    return _plain_fields(kind) is not None


@lru_cache(maxsize=1_024)
def _as_declared(fields: _Fields, names: tuple[str, ...], kinds: tuple[type, ...]) -> bool:
    """Whether values of these names and types are what the fields say.

    Then pydantic need not be told to make errors of its warnings. That costs more than the writing: it takes the word for
    it for a wrong argument at first.
    """
    declared = dict(fields)
    return names == tuple(declared) and all(kind in declared[name] for name, kind in zip(names, kinds, strict=True))


def _plain_types(field: FieldInfo) -> _Kinds:
    """The types of its values, where these are no more than a text, a number, a truth value or nothing; else none."""
    if field.exclude or getattr(field, "exclude_if", None):  # it is not always written
        return frozenset()
    union = get_origin(field.annotation) in {Union, UnionType}
    declared: tuple[Any, ...] = get_args(field.annotation) if union else (field.annotation,)
    bounded = all(type(one).__module__ == "annotated_types" for one in field.metadata)
    return frozenset(declared) if bounded and _PLAIN.issuperset(declared) else frozenset()


def _is_surely_sound(data: bytes) -> bool:
    """Whether a look at pydantic's JSON shows already that :func:`check_json` would let it pass.

    In so short a text is no number of over a thousand digits, and so few brackets do not nest too deep. Of most texts one
    bracket is all that is left without the bytes that are in no doubt.
    """
    if len(data) > _SHORT:
        return False
    doubtful = data.translate(None, _HARMLESS)
    return doubtful == b"{" or (len(doubtful) <= MAX_DEPTH and b"NaN" not in data and b"Infinity" not in data)


@lru_cache(maxsize=1_024)
def _quoted(text: str) -> str:
    """An attribute's text as JSON. Raises ``ValueError`` where it may not be one: a control character, a lone surrogate."""
    if not 0 < len(text) <= MAX_ATTRIBUTE or not text.isprintable():
        raise ValueError
    return encode_basestring(text)


def wrap(event: Event | Mapping[str, Any], **attributes: Unpack[Attributes]) -> Envelope:
    """Put an event, or a mapping with a ``"type"``, in an envelope dated ``now_ms`` (milliseconds since 1970, UTC).

    Without an ``id`` it gets a new UUIDv7. A mapping's other keys are its data; where this process knows the type, they
    become the newest version's model and travel as that model's fields (so what the model ignores is left out).
    Raises ``InvalidEvent``; the event itself is left as it is. Never blocks; safe from any thread.
    """
    return _enveloped(_attributes(event, attributes))


def _attributes(event: Event | Mapping[str, Any], given: Attributes) -> dict[str, Any]:
    """All of an envelope's attributes, in the order of the wire."""
    name, version, data = _of_model(event) if isinstance(event, Event) else _of_mapping(event)
    now_ms, get = given["now_ms"], given.get
    return {
        "specversion": "1.0",
        "id": uuid7(now_ms) if given["id"] is None else given["id"],
        "type": name,
        "source": given["source"],
        "time": rfc3339(now_ms),
        "datacontenttype": "application/json",
        "subject": get("subject"),
        "dataschema": dataschema(name, version) if version else None,
        "correlationid": get("correlationid"),
        "causationid": get("causationid"),
        "traceparent": get("traceparent"),
        "topics": given["topics"],
        "key": given["key"],
        "data": data,
    }


def _enveloped(made: dict[str, Any]) -> Envelope:
    try:
        return Envelope.model_validate(made)
    except ValidationError as error:
        raise InvalidEvent(f"{made['type']} cannot be published: {_faults(error)}") from error


def encode(envelope: Envelope) -> bytes:
    """The wire form: compact UTF-8 JSON, known attributes in the order of ``WIRE.md``, unknown ones after them by name.

    The same envelope always gives the same bytes. Attributes that are None are absent.
    """
    attributes = envelope.__dict__
    if envelope.__pydantic_extra__:
        attributes = attributes | dict(sorted(envelope.__pydantic_extra__.items()))
    return _body(attributes, " ".join(envelope.topics))


def _body(attributes: dict[str, Any], topics: str) -> bytes:
    wire = {name: value for name, value in attributes.items() if value is not None}
    if topics:
        wire["topics"] = topics
    else:
        del wire["topics"]
    try:
        return to_json(wire)
    except _UNSERIALISABLE:  # only after someone changed the inside of data, or built it unchecked
        raise InvalidEvent(f"{attributes['type']} cannot be encoded: {_culprit(wire)}") from None


def decode(body: bytes, *, max_bytes: int = 1_048_576) -> Envelope:
    """Read the wire form. Raises ``PayloadTooLarge`` over ``max_bytes``, and ``InvalidEvent`` for all else amiss."""
    if len(body) > max_bytes:
        raise PayloadTooLarge(len(body), max_bytes)
    return opened(body) or _judged(body)


def _judged(body: bytes) -> Envelope:
    """As :func:`bus.opening.opened`, of any bytes."""
    try:
        return compact(Envelope.model_validate_json(body))
    except ValidationError as error:
        raise InvalidEvent(f"this is not an envelope: {_faults(error)}") from error


def read(envelope: Envelope) -> Event | dict[str, Any]:
    """The typed event where this process knows exactly this type and version, otherwise the envelope's own ``data``.

    Raises ``InvalidEvent`` where the model refuses the data, also by an exception of its own. The plain dict is shared
    by all readers of the envelope: do not change it.
    """
    model = model_of(envelope)
    return envelope.data if model is None else read_as(model, envelope.data)


def model_of(envelope: Envelope) -> type[Event] | None:
    """The class of exactly its type and version, where this process knows it."""
    schema = envelope.dataschema
    version = None if schema is None else version_in(schema, envelope.type)
    return None if version is None else lookup(envelope.type, version)


def _of_model(event: Event) -> tuple[str, int, dict[str, Any]]:
    model = type(event)
    name = model.__event_type__
    if name is None:
        raise InvalidEvent(
            f"{model.__qualname__} is an abstract base and cannot be published: "
            f'give it a type, as in class {model.__name__}(Event, type="...")'
        )
    try:
        # Names, not aliases, and no computed fields, so that what is written can be read. pydantic's warnings quote
        # values; as errors they stop at this boundary.
        data = event.model_dump(mode="json", by_alias=False, round_trip=True, warnings="error")
    except _UNSERIALISABLE:
        # Not chained: the text of a serialization error quotes values.
        raise InvalidEvent(f"{name} cannot be published: {_culprit(_fields(event))}") from None
    return name, model.__event_version__, data


def _of_mapping(event: Mapping[str, Any]) -> tuple[str, int | None, dict[str, Any]]:
    if not isinstance(event, Mapping):
        raise InvalidEvent(f"publish an Event or a dict with a 'type', not {type(event).__name__}")
    if "type" not in event:
        raise InvalidEvent("the dict has no 'type': add one, as in {'type': 'agent.post.created', ...}")
    name = check_type(event["type"])
    data = _plain(name, {field: value for field, value in event.items() if field != "type"})
    model = newest(name)
    return (name, None, data) if model is None else _of_model(read_as(model, data))


def _plain(name: str, data: dict[str, Any]) -> dict[str, Any]:
    """``data`` as plain JSON: itself where it is that already, otherwise what pydantic makes of its values."""
    try:
        return check_json(data)
    except ValueError:
        pass  # a date, perhaps, or a set
    _check_keys(name, data)
    try:
        plain: dict[str, Any] = to_jsonable_python(data, by_alias=False)
    except _UNSERIALISABLE:
        raise InvalidEvent(f"{name} cannot be published: {_culprit(data)}") from None
    try:
        return check_json(plain)
    except ValueError as error:
        raise InvalidEvent(f"{name} cannot be published: {error}") from None


def read_as(model: type[Event], data: dict[str, Any]) -> Event:
    """Read data as JSON, which to a strict model is not the same as Python values; by field name, or by alias.

    Raises ``InvalidEvent`` where the model refuses it, also by an exception of its own.
    """
    name, version = model.__event_type__, model.__event_version__
    try:
        judge = model.__pydantic_validator__
        if _reads_plainly(model):
            return judge.validate_python(data, by_alias=True, by_name=True)  # type: ignore[no-any-return]
        return judge.validate_json(to_json(data), by_alias=True, by_name=True)  # type: ignore[no-any-return]
    except ValidationError as error:
        raise InvalidEvent(f"the data is not a {name} version {version}: {_faults(error)}") from error
    except Exception as error:  # a validator of the app may raise anything, and the reader must live on
        why = f"{model.__qualname__} raised {type(error).__name__} while reading it"
        raise InvalidEvent(f"the data is not a {name} version {version}: {why}") from error


def _faults(error: ValidationError) -> str:
    """What is wrong in one line: where and why, of the first few."""
    found = error.errors(include_input=False, include_url=False)
    lines = [_fault(fault) for fault in found[:_NAMED_FAULTS]]
    more = len(found) - len(lines)
    return "; ".join([*lines, f"and {more:,} more"] if more else lines)


def _fault(fault: ErrorDetails) -> str:
    path = ""
    for key in fault["loc"]:
        path = step(path, key)
    path = path.removeprefix(".")
    why = _why(fault)
    if path == "data" and why.startswith(("data.", "data[", "data:")):  # check_json names the place itself
        return why
    return f"{path}: {why}" if path else why


def _why(fault: ErrorDetails) -> str:
    if fault["type"] == "union_tag_invalid":  # the one message of pydantic that quotes the input
        return "its tag names no known variant"
    if fault["type"] == "string_pattern_mismatch" and (why := PATTERN_FAULTS.get(fault["ctx"]["pattern"])):
        return why
    text = fault["msg"].removeprefix("Value error, ")[:300]
    return text if text.isprintable() else ascii(text)


def _check_keys(name: str, data: dict[str, Any]) -> None:
    """Refuse keys that are not text, also where pydantic would make them text and so could make two into one."""
    level: list[tuple[str, Any]] = [("data", data)]
    for _ in range(MAX_DEPTH):
        for path, value in level:
            wrong = next((key for key in value if not isinstance(key, str)), "") if isinstance(value, Mapping) else ""
            if wrong != "":
                kind = type(wrong).__name__
                raise InvalidEvent(f"{name} cannot be published: {path}: a key is of type {kind}: use str keys")
        level = [(step(path, key), inner) for path, value in level for key, inner in _members(value)]


def _culprit(fields: Mapping[str, Any]) -> str:
    """Which value does not become JSON. Slow, and asked only once it is known that there is one."""
    path, value = "data", fields
    for _ in range(MAX_DEPTH):
        wrong = next(((key, inner) for key, inner in _members(value) if not _serialises(inner)), None)
        if wrong is None and value is fields:
            return "a value does not fit its field's type, or a serializer of the model failed"
        if wrong is None:
            return f"{path}: a value of type {type(value).__name__} does not become JSON: publish plain values"
        path, value = step(path, wrong[0]), wrong[1]
    return f"nested deeper than {MAX_DEPTH} levels, or refers to itself: publish a flatter event"


def _members(value: object) -> Iterable[tuple[object, Any]]:
    if isinstance(value, Event):
        return _fields(value).items()
    if isinstance(value, Mapping):
        return value.items()
    return enumerate(value) if isinstance(value, list | tuple | set | frozenset) else ()


def _fields(event: Event) -> dict[str, Any]:
    return {**event.__dict__, **(event.__pydantic_extra__ or {})}


def _serialises(value: object) -> bool:
    try:
        to_jsonable_python(value)
    except _UNSERIALISABLE:
        return False
    return True
