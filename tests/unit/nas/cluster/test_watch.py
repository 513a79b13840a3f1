"""When a cluster counts as lost."""

from __future__ import annotations

import socket

from nas.cluster.watch import _answers, unanswered


def test_a_head_that_is_back_in_time_is_not_lost() -> None:
    now, up = [0.0], {"head:1": True, "node:2": True}
    look = unanswered({"the head": "head:1", "this node": "node:2"}, 30.0, lambda one: up[one], lambda: now[0])
    assert look() == ""
    up["head:1"] = False
    now[0] = 29.0
    assert look() == ""
    up["head:1"] = True
    now[0] = 100.0
    assert look() == ""
    up["head:1"] = False
    now[0] = 129.0
    assert look() == ""
    now[0] = 131.0
    assert look() == "the head has not answered for 31 s; finished trials are kept, and the same command continues"


def test_whoever_listens_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        assert _answers(address)
    assert not _answers(address)
