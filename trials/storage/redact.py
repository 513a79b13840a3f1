"""Passwords and tokens: they are hidden in every text that leaves the process."""

from __future__ import annotations

import os
import re

from search_spaces.errors import UNCUT, named, one_line

HIDDEN = "***"
# A password may hold any character but a space, as SQLAlchemy reads it. A slash or the colon may have been forgotten.
USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*(?:://?|//)[^\s/?#:@'\"]*):\S*@")
PARAMETER = re.compile(
    r"([?&](?:password|passwd|pwd|(?:\w+_)?token|(?:\w+_)?secret|(?:secret_|account_)?(?:access_)?key|api_key|"
    r"sig|signature|x-amz-signature)=)[^\s&'\"]+",
    re.IGNORECASE,
)
HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
SECRET_NAME = re.compile(r"(TOKEN|PASSWORD|PASSWD|SECRET|ACCESS_KEY|API_KEY)$", re.IGNORECASE)
SHORTEST = 8  # characters of a secret; shorter values, such as "1" or "no", are in many texts


def redacted(text: str) -> str:
    """``text`` with `HIDDEN` for every secret in it.

    Secrets are the password of a URL, ``scheme://user:password@host``, parameters of a URL such as ``password=``,
    tokens of the hub, and the values of environment variables with names such as ``RAY_AUTH_TOKEN``.

    A shell-quoted command and the text of an exception may be given as they are.
    """
    for value in secrets_of_environment():
        text = text.replace(value, HIDDEN)
    text = USER.sub(rf"\1:{HIDDEN}@", text)
    return HUB_TOKEN.sub(HIDDEN, PARAMETER.sub(rf"\1{HIDDEN}", text))


def redacted_line(error: BaseException, most: int = 300) -> str:
    """The class and the message of ``error`` in one line of at most ``most`` characters, without secrets."""
    return redacted_message(named(error, UNCUT), most)


def redacted_message(error: object, most: int = 300) -> str:
    """As `one_line`, without secrets. The line is cut last, because half of a password could not be found any more."""
    return redacted(one_line(error, UNCUT))[:most]


def secrets_of_environment() -> list[str]:
    """The values of environment variables whose names say that they are secret, the longest first."""
    found = {value for name, value in os.environ.items() if SECRET_NAME.search(name) and len(value) >= SHORTEST}
    return sorted(found, key=len, reverse=True)
