"""A plugin of pytest that is loaded first: libraries that transformers imports say nothing about kernels.

Ctrl-C is ignored by whatever a shell starts behind an &, and by what that starts. Tests about Ctrl-C need it.
"""

import signal

import nas.planning.parser  # noqa: F401

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
