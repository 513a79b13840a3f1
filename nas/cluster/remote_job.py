"""A search as a job of a Ray cluster: handed over, watched and stopped by Ray's Jobs API, from any machine."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
import time
from dataclasses import dataclass
from typing import Any

from search_spaces.errors import InputError
from trials.storage.redact import redacted, redacted_line, redacted_message

FAILED, INTERRUPTED = 1, 130
ANSWER_SECONDS = 20.0  # for the first answer of an address
SILENT_SECONDS = 60.0  # without output, after which the connection is made anew: a dead one does not say so
LOST_SECONDS = 600.0  # for which a lost connection is tried again
TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
WAY_IN = "put the cluster's token into RAY_AUTH_TOKEN, or into the file ~/.ray/auth_token or RAY_AUTH_TOKEN_PATH"


@dataclass
class Job:
    """A job of the cluster whose Jobs API is at ``address``; ``shown`` characters of its log are printed."""

    client: Any  # ray.job_submission.JobSubmissionClient
    address: str
    name: str
    shown: int = 0
    told_to_wait: bool = False

    def start(self, command: str, runtime: dict[str, Any]) -> None:
        """Hand the job over. Raises InputError when the cluster does not take it."""
        try:
            self.client.submit_job(entrypoint=command, runtime_env=runtime, submission_id=self.name)
        except Exception as error:  # of requests, or RuntimeError or ValueError with the text of the answer
            raise InputError(
                f"--submit {self.address}: the cluster did not take the job: {redacted_message(error)}"
            ) from error
        _say(f"job {self.name} on {self.address}; Ctrl-C stops it")

    def follow(self) -> int:
        """Print the log until the job has ended; returns the exit code of the job.

        A connection that breaks is made again for `LOST_SECONDS`, while the job goes on. Raises InputError when the
        cluster never started the job.
        """
        lost: float | None = None
        while True:
            try:
                asyncio.run(self._print_log())
                found = self.client.get_job_info(self.name)
            except BrokenPipeError:  # of our own output; a connection raises other classes
                _say(f"nobody reads the output; the job goes on; {self._by_hand('logs --follow')}")
                return FAILED
            except Exception as error:  # of aiohttp, requests or Ray: a connection breaks in many ways
                if lost is None:
                    lost = time.monotonic()
                    _say(
                        f"no connection to {self.address} ({redacted_line(error, 150)}); the job goes on; trying again"
                    )
                if time.monotonic() - lost > LOST_SECONDS:
                    _say(f"error: no connection for {LOST_SECONDS:.0f} s; {self._by_hand('logs --follow')}")
                    return FAILED
            else:
                lost = None
                if found.status.is_terminal():
                    return self._exit_code(found)
                self._tell_to_wait(found)
            time.sleep(1.0)

    async def _print_log(self) -> None:
        """Print what the log has beyond ``shown``, until it ends or is silent for `SILENT_SECONDS`."""
        position = 0
        lines = self.client.tail_job_logs(self.name)
        try:
            while True:
                text = await asyncio.wait_for(anext(lines), SILENT_SECONDS)
                print(text[max(0, self.shown - position) :], end="", flush=True)
                position += len(text)
                self.shown = max(self.shown, position)
        except (StopAsyncIteration, TimeoutError):
            return
        finally:
            await lines.aclose()

    def _tell_to_wait(self, found: Any) -> None:
        if found.driver_node_id is None and not self.told_to_wait:
            self.told_to_wait = True
            _say(f"the cluster has not started job {self.name} yet; waiting as long as the cluster does")

    def stop(self) -> int:
        """Stop the job, print the rest of its log, and wait until it has ended; returns its exit code."""
        _say(f"stopping job {self.name}")
        try:
            self.client.stop_job(self.name)
            return self.follow()
        except KeyboardInterrupt:
            _say(f"the job may still be running; {self._by_hand('stop')}")
        except InputError:
            _say(f"job {self.name} was stopped before it had begun")
        except Exception as error:  # as in `follow`
            if "does not exist" not in str(error):  # interrupted before the cluster had it
                _say(f"error: the job could not be stopped ({redacted_line(error, 150)}); {self._by_hand('stop')}")
                return FAILED
        return INTERRUPTED

    def _exit_code(self, found: Any) -> int:
        """The exit code of a job that has ended. Raises InputError when it never ran."""
        if found.driver_exit_code is not None:
            return _as_in_a_shell(found.driver_exit_code)
        if str(found.status) == "STOPPED":
            return INTERRUPTED
        reason = redacted_message(found.message)
        if found.driver_node_id is None:
            raise InputError(f"--submit {self.address}: the cluster did not start the job: {reason}")
        _say(
            f"error: the job ended without an exit code: {reason}; what is finished is kept; the same command continues"
        )
        return FAILED

    def _by_hand(self, what: str) -> str:
        return f"by hand: RAY_AUTH_MODE=token ray job {what} --address {self.address} {self.name}"


def _as_in_a_shell(code: int) -> int:
    """``code``, with 128 + N for a process that signal N has ended."""
    return code if code >= 0 else 128 - code


def _say(text: str) -> None:
    print(redacted(text), file=sys.stderr, flush=True)


def connect(address: str) -> Any:
    """Ray's client of the Jobs API at ``address``.

    Raises InputError when nothing or something else answers there, and for a token that is missing or wrong.
    """
    is_open = _answers_without_token(address)
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # before Ray is imported, which reads it
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # Ray would prefer them to ``address``
        os.environ.pop(name, None)
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        client = JobSubmissionClient(address)
    except AuthenticationError as error:
        wrong = "incorrect" in str(error)
        problem = "the cluster has another token" if wrong else f"no token found ({redacted_message(error, 100)})"
        raise InputError(f"--submit {address}: {problem}; {WAY_IN}") from error
    except Exception as error:  # of requests, json or Ray
        raise InputError(f"--submit {address}: no Jobs API of Ray is there ({redacted_line(error, 150)})") from error
    if is_open:
        _say(f"warning: {address} asks for no token; whoever reaches it can run programs there")
    return client


def _answers_without_token(address: str) -> bool:
    """Whether a request without a token succeeds at ``address``. Raises InputError when nothing answers there."""
    import requests

    if not re.match(r"https?://[^/\s]", address):
        raise InputError(f"--submit {address!r}: not the address of a Jobs API; give http://HOST:8265")
    try:
        return requests.get(f"{address.rstrip('/')}/api/version", timeout=ANSWER_SECONDS).ok
    except (requests.RequestException, ValueError) as error:  # ValueError: a host that no name can have
        raise InputError(
            f"--submit {address}: nothing answers there ({type(error).__name__}); "
            "give the address of the head's dashboard, such as http://localhost:8265 through a tunnel"
        ) from error
