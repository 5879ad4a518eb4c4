"""Webhook parameters, URLs, call parameters, keyboards, texts, faults and the manual clock, as pure rules."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from deploy.local.emulator.errors import ApiError
from deploy.local.emulator.faults import Fault, FaultKind, FaultPlan, Met
from deploy.local.emulator.formatting import find_commands, read_text
from deploy.local.emulator.keyboards import read_markup
from deploy.local.emulator.parameters import Parameters, read_parameters
from deploy.local.emulator.registration import (
    Registration,
    WebhookUrl,
    check_registration,
    parse_url,
    requested_registration,
)
from tests.manual_clock import ManualClock


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://a.example/x?y=1#z", WebhookUrl(True, "a.example", 443, "/x?y=1")),
        ("a.example", WebhookUrl(True, "a.example", 443, "/")),
        ("HTTP://A.example:81?y", WebhookUrl(False, "a.example", 81, "/?y")),
        ("https://u:p%40@a.example:8443/", WebhookUrl(True, "a.example", 8443, "/", "u:p@")),
        ("http://[::1]:80/", WebhookUrl(False, "[::1]", 80, "/")),
        ("https://", None),
        ("https://a b/", None),
        ("ws://a.example/", None),
        ("https://a.example:0/", None),
    ],
)
def test_urls_are_taken_apart_as_the_server_does(text: str, url: WebhookUrl | None) -> None:
    """https unless it says http; ports, userinfo and query kept; what is no URL is None."""
    assert parse_url(text) == url


def test_a_changed_parameter_is_a_change_and_the_same_call_is_none() -> None:
    """Also with defaults spelled out; drop_pending_updates and certificates are never a no-op."""
    base = requested_registration(Registration(), Parameters({"url": "https://a/"}), local_mode=False)
    spelled = Parameters({"url": "https://a/", "max_connections": 40, "allowed_updates": []})
    same = requested_registration(base, spelled, local_mode=False)
    assert base.is_unchanged_by(same, drops_pending=False)
    assert not base.is_unchanged_by(same, drops_pending=True)
    for name, value in {"url": "https://b/", "secret_token": "s", "ip_address": "1.2.3.4"}.items():
        changed = requested_registration(
            base, Parameters({"url": "https://a/", name: value}), local_mode=False
        )
        assert not base.is_unchanged_by(changed, drops_pending=False)
    with_file = requested_registration(
        base, Parameters({"url": "https://a/"}, {"certificate": b"x"}), local_mode=False
    )
    assert not base.is_unchanged_by(with_file, drops_pending=False)
    assert not with_file.is_unchanged_by(base, drops_pending=False)


def test_local_mode_takes_http_and_any_port() -> None:
    """What is 400 otherwise."""
    wish = Registration(url="http://a.example:1234/")
    assert check_registration(wish, local_mode=True).port == 1234
    with pytest.raises(ApiError, match="HTTPS"):
        check_registration(wish, local_mode=False)


def test_parameters_come_in_four_ways() -> None:
    """Query, form, JSON, multipart; JSON values as the text that a form would carry."""
    body = (
        b'--B\r\nContent-Disposition: form-data; name="a"\r\n\r\n\xc3\xa9\r\n'
        b'--B\r\nContent-Disposition: form-data; name="f"; filename="f.bin"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n\x00\xff\r\n\r\n--B--\r\n"
    )
    multipart = read_parameters("q=1", "multipart/form-data; boundary=B", body)
    assert (multipart.text("a"), multipart.file("f"), multipart.integer("q")) == ("é", b"\x00\xff\r\n", 1)
    json = read_parameters("", "application/json", b'{"a": [1], "b": true, "c": null, "d": 5, "e": "t"}')
    assert (json.json("a"), json.flag("b"), "c" in json, json.integer("d"), json.text("e")) == (
        [1],
        True,
        False,
        5,
        "t",
    )
    form = read_parameters("", "application/x-www-form-urlencoded", b"a=1+2&b=%C3%A9")
    assert (form.text("a"), form.text("b")) == ("1 2", "é")
    with pytest.raises(ApiError, match="parse"):
        read_parameters("", "application/json", b"{")


def test_a_number_that_is_none_counts_as_the_default() -> None:
    """The server's leniency, bounds included."""
    call = Parameters({"a": "x", "b": "1000", "c": " 7 "})
    assert (call.integer("a", 5), call.integer("b", 5, high=100), call.integer("c", 5)) == (5, 100, 7)


@pytest.mark.parametrize(
    ("button", "error"),
    [
        ({"text": "x", "callback_data": "a" * 64}, None),
        ({"text": "x", "callback_data": "a" * 65}, "BUTTON_DATA_INVALID"),
        ({"text": "x", "callback_data": "é" * 33}, "BUTTON_DATA_INVALID"),
        ({"text": "x", "callback_data": ""}, "BUTTON_DATA_INVALID"),
        ({"text": "x", "url": "https://a.example"}, None),
        ({"text": "x"}, "Text buttons are unallowed"),
        ({"callback_data": "a"}, "Can't find field"),
        ("x", "must be an Object"),
    ],
)
def test_inline_buttons_are_checked(button: object, error: str | None) -> None:
    """callback_data is 1 to 64 bytes, a button has a text and an action."""
    call = Parameters({"reply_markup": {"inline_keyboard": [[button]]}})
    if error is None:
        assert read_markup(call) == {"inline_keyboard": [[button]]}
    else:
        with pytest.raises(ApiError, match=error):
            read_markup(call)


def test_html_becomes_text_and_entities_in_utf_16_units() -> None:
    """An emoji counts two; character references are resolved; unknown tags are refused."""
    text, entities = read_text('\U0001f600<b>a<i>b</i></b> <a href="u">c</a>&lt;', "HTML", None)
    assert text == "\U0001f600ab c<"
    assert {(entity["type"], entity["offset"], entity["length"]) for entity in entities} == {
        ("bold", 2, 2),
        ("italic", 3, 1),
        ("text_link", 5, 1),
    }
    for broken in ("<b>", "</b>", "<b><i></b></i>", "<blink>x</blink>"):
        with pytest.raises(ApiError, match="can't parse entities"):
            read_text(broken, "HTML", None)


def test_commands_are_marked() -> None:
    """Anywhere in a text, but not inside of words or paths."""
    found = find_commands("\U0001f600 /start x /go@some_bot a/b /x/y")
    assert [(entity["offset"], entity["length"]) for entity in found] == [(3, 6), (12, 12)]


def test_faults_hit_the_next_n_calls_of_their_method_and_bot() -> None:
    """Latency adds to another fault; counted ones are used up; others stay until cleared."""
    plan = FaultPlan()
    plan.add(Fault(FaultKind.LATENCY, seconds=1.5))
    number = plan.add(Fault(FaultKind.HANG, method="getMe", count=1, bot_id=1))
    assert plan.take(1, "sendMessage", 0.0) == Met(1.5, None)
    assert plan.take(2, "getMe", 0.0) == Met(1.5, None)
    met = plan.take(1, "GETME", 0.0)
    assert (met.latency_seconds, met.fault and met.fault.kind) == (1.5, FaultKind.HANG)
    assert plan.take(1, "getMe", 0.0) == Met(1.5, None)
    assert [entry[0] for entry in plan.active()] == [number - 1]
    plan.clear(number - 1)
    assert plan.active() == []


def test_a_flood_limit_is_a_window_of_its_bot_and_method() -> None:
    """Who calls within it is told what is left, and marked; it costs no hit of the rule, and the next hit begins another."""
    plan = FaultPlan()
    limit = Fault(FaultKind.TOO_MANY_REQUESTS, count=2, retry_after=10)
    number = plan.add(limit)
    assert plan.take(1, "getMe", 100.0) == Met(0.0, limit)
    assert plan.take(1, "GETME", 100.5) == Met(0.0, replace(limit, retry_after=10), is_early=True)
    assert plan.take(1, "getMe", 108.5) == Met(0.0, replace(limit, retry_after=2), is_early=True)
    assert plan.active() == [(number, limit, 1)]
    assert plan.take(1, "getMe", 110.0) == Met(0.0, limit)
    assert plan.take(2, "getMe", 110.0) == Met(0.0, None)
    assert plan.take(1, "setWebhook", 110.0) == Met(0.0, None)
    assert plan.take(1, "getMe", 119.0).is_early
    assert plan.take(1, "getMe", 120.0) == Met(0.0, None)


def test_a_flood_limit_ends_with_its_fault() -> None:
    """Cleared, whether or not it would have hit again."""
    plan = FaultPlan()
    number = plan.add(Fault(FaultKind.TOO_MANY_REQUESTS, count=1, retry_after=10))
    assert plan.take(1, "getMe", 100.0).fault is not None
    plan.clear(number + 1)
    assert plan.take(1, "getMe", 101.0).is_early
    plan.clear(number)
    assert plan.take(1, "getMe", 102.0) == Met(0.0, None)


def test_the_manual_clock_calls_back_in_order_each_at_its_time() -> None:
    """Callbacks see the time that they asked for, one asked for meanwhile included; a cancelled one is not called."""
    clock, seen = ManualClock(now=1000.0, monotonic=0.0), []

    def note() -> None:
        seen.append(clock.now())

    def again() -> None:
        note()
        clock.call_at(clock.monotonic() + 1, note)

    clock.call_at(5, note)
    clock.call_at(2, again)
    clock.call_at(4, note).cancel()
    assert clock.next_timer_in() == 2.0
    clock.advance(10)
    assert seen == [1002.0, 1003.0, 1005.0]
    assert (clock.now(), clock.next_timer_in()) == (1010.0, None)
