"""Passwords in URLs: they are hidden in every text that leaves the process."""

from __future__ import annotations

import re

HIDDEN = "***"
USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^\s/?#:@'\"]*):[^\s/?#'\"]*@")
PARAMETER = re.compile(r"([?&](?:password|passwd|pwd|token|secret|access_key|api_key)=)[^\s&'\"]+", re.IGNORECASE)


def redacted(text: str) -> str:
    """``text`` with `HIDDEN` for the password of every URL in it, ``scheme://user:password@host``, and for parameters.

    A shell-quoted command and the text of an exception may be given as they are.
    """
    return PARAMETER.sub(rf"\1{HIDDEN}", USER.sub(rf"\1:{HIDDEN}@", text))
