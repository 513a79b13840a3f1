"""A plugin of pytest that is loaded first: libraries that transformers imports say nothing about kernels."""

import nas.display.console  # noqa: F401
