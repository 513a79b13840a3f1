"""A plugin of pytest that is loaded first: libraries that transformers imports say nothing about kernels."""

import nas.planning.parser  # noqa: F401
