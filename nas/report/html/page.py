"""The page as one self-contained file: the data, a template, a style sheet and a script."""

from __future__ import annotations

import json
import os
import time
from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from nas.display.console import clock
from nas.report.html.data import Page

PAGE = "report.html"
REPORT = "report"  # the folder of the page, in the study's folder and in an artifact store
FOLDER = files("nas.report.html")
SCRIPTS = ("drawing.js", "models.js", "curves.js", "sizes.js", "layers.js", "page.js")
UNSAFE = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def render(page: Page) -> str:
    """The text of the page. Whatever comes from outside is escaped, and nothing but its own script can run."""
    written = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(page.written))
    text = as_script_data(page)
    data = Markup(text)  # nosec B704  # escaped by `as_script_data`
    return _template().render(page=page, written=written, data=data)


@cache
def _template() -> Template:
    """The template with its style sheet and its script. A running search fills it after every rung."""
    style = FOLDER.joinpath("page.css").read_text("utf-8")
    script = "".join(FOLDER.joinpath(name).read_text("utf-8") for name in SCRIPTS)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"count": _count, "compact": _compact, "clock": clock, "loss": _loss}
    environment.globals |= {
        "style": Markup(style),  # nosec B704  # a file of this package
        "script": Markup(script),  # nosec B704  # files of this package
        "script_hash": b64encode(sha256(script.encode()).digest()).decode(),
    }
    return environment.from_string(FOLDER.joinpath("template.html.j2").read_text("utf-8"))


def as_script_data(page: Page) -> str:
    """The JSON of the ``page``, without any character that could end a script element."""
    return json.dumps(page.to_dict(), separators=(",", ":"), allow_nan=False).translate(UNSAFE)


def write(page: Page, path: Path) -> Path:
    """Write the ``page`` to ``path``, in one step: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(render(page), "utf-8")
    os.replace(temporary, path)
    return path


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _compact(number: float) -> str:
    """A number with three significant digits and a unit: 65.5k, 8.39M."""
    for limit, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{unit}"
    return f"{number:g}"


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
