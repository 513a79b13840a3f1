"""Events reach every listener in order, and a listener that fails stops neither the others nor the search."""

from __future__ import annotations

import logging

import pytest

from nas.stages.events import Announcer, Event, Progressed, StepEnded


class Broken:
    """A listener without which a search must do."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self, event: Event) -> None:
        raise self.error


def test_every_listener_hears_every_event_in_order() -> None:
    heard: list[tuple[int, Event]] = []
    announce = Announcer()
    announce.listeners += [lambda event, place=place: heard.append((place, event)) for place in (1, 2)]
    events = [Progressed("first"), StepEnded()]
    for event in events:
        announce(event)
    assert heard == [(place, event) for event in events for place in (1, 2)]


def test_a_listener_that_fails_is_named_once_for_each_kind_of_event(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Event] = []
    announce = Announcer()
    announce.listeners += [Broken(OSError("No space left on device")), heard.append]
    with caplog.at_level(logging.WARNING):
        for event in (Progressed("first"), Progressed("second"), StepEnded()):
            announce(event)
    assert len(heard) == 3
    first, second = (record.getMessage() for record in caplog.records)
    assert first == "Broken failed at Progressed (OSError: No space left on device); the search continues"
    assert second.startswith("Broken failed at StepEnded")


def test_ctrl_c_in_a_listener_is_not_swallowed() -> None:
    announce = Announcer()
    announce.listeners.append(Broken(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        announce(StepEnded())
