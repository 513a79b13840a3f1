"""Reading a file never runs code: no pickle, no YAML with tags, no code of a model that nobody allowed.

The syntax trees of all modules are searched. ``cloudpickle`` between processes of Ray is not from a disk.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(file for room in ("nas", "trials", "search_spaces") for file in (ROOT / room).rglob("*.py"))
PICKLES = {"pickle", "_pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "jsonpickle", "cloudpickle"}
RUNS = {"eval", "exec", "compile", "__import__"}  # built-in functions
NOTHING = "eval('None')"  # `forget_interruption` runs this
READS_PICKLES = {"read_pickle", "add_safe_globals", "unsafe_load", "unsafe_load_all", "full_load", "full_load_all"}
YAML = {"safe_load", "safe_load_all", "safe_dump", "parse", "SafeLoader", "YAMLError"}
YAML_EVENTS = "Event"  # what `yaml.parse` yields
AUTO = {"AutoConfig", "AutoModelForCausalLM", "AutoTokenizer", "AutoModel", "AutoProcessor"}
ALLOWED = "own_code"  # the name of what the user of `nas.evaluate` has allowed
FRESH = "fresh_load.py"  # loads our own exports as others do, in a process of its own


def violations(tree: ast.AST, name: str) -> Iterator[str]:
    """Yields every violation in a module called ``name``: the line and the rule."""
    for node in ast.walk(tree):
        rules = {ast.Import: _import, ast.ImportFrom: _import_from, ast.Call: _call, ast.Attribute: _attribute}
        rules |= {ast.Constant: _constant, ast.FunctionDef: _defaults}
        for rule in rules.get(type(node), lambda *_: iter(()))(node, name):
            yield f"{name}, line {getattr(node, 'lineno', 0)}: {rule}"


def _import(node: ast.Import, name: str) -> Iterator[str]:
    for one in node.names:
        if one.name.partition(".")[0] in PICKLES:
            yield f"imports {one.name}"
        if one.name == "yaml" and one.asname:
            yield "renames yaml"


def _import_from(node: ast.ImportFrom, name: str) -> Iterator[str]:
    module = (node.module or "").partition(".")[0]
    names = {one.name for one in node.names}
    if module in PICKLES or (names & PICKLES and node.module != "ray"):
        yield f"imports from {node.module}"
    hidden = names & {"torch": {"load", "serialization"}, "numpy": {"load"}, "yaml": names}.get(module, set())
    if hidden:
        yield f"imports {', '.join(sorted(hidden))} from {module}, where calls are not seen"


def _call(node: ast.Call, name: str) -> Iterator[str]:
    called = ast.unparse(node.func)
    keywords = {one.arg: ast.unparse(one.value) for one in node.keywords}
    if called in RUNS and ast.unparse(node) != NOTHING:
        yield f"calls {called}"
    if called == "torch.load" and keywords.get("weights_only") != "True":
        yield "torch.load without weights_only=True"
    if (
        called in ("np.load", "numpy.load", "np.lib.format.read_array")
        and keywords.get("allow_pickle", "False") != "False"
    ):
        yield "np.load with allow_pickle"  # the default is not to
    if called in ("np.load", "numpy.load") and len(node.args) > 2:
        yield "np.load with an argument whose name is not seen"
    if keywords.get(ALLOWED) == "True":
        yield f"{ALLOWED}=True, which only a user may say"
    if called == "yaml.parse" and keywords.get("Loader") != "yaml.SafeLoader":
        yield "yaml.parse without SafeLoader"
    if called in ("cloudpickle.load", "cloudpickle.dump"):
        yield f"{called} with a file"
    kind, _, method = called.rpartition(".")
    loads = kind in AUTO and method in ("from_pretrained", "from_config") and name != FRESH
    if loads and keywords.get("trust_remote_code") not in ("False", ALLOWED):
        yield f"{called} without trust_remote_code=False"


def _attribute(node: ast.Attribute, name: str) -> Iterator[str]:
    whole = ast.unparse(node)
    if node.attr in READS_PICKLES:
        yield f"uses {whole}"
    if ast.unparse(node.value) == "yaml" and not (node.attr in YAML or node.attr.endswith(YAML_EVENTS)):
        yield f"uses {whole}, which is not a safe loader"
    if whole in ("torch.hub.load", "torch.jit.load", "torch.package", "torch.serialization"):
        yield f"uses {whole}"


def _defaults(node: ast.FunctionDef, name: str) -> Iterator[str]:
    arguments = [*node.args.posonlyargs, *node.args.args]
    values = [*node.args.defaults, *node.args.kw_defaults]
    named = [*arguments[len(arguments) - len(node.args.defaults) :], *node.args.kwonlyargs]
    for argument, value in zip(named, values, strict=True):
        if argument.arg == ALLOWED and value is not None and ast.unparse(value) != "False":
            yield f"{ALLOWED} by default"


def _constant(node: ast.Constant, name: str) -> Iterator[str]:
    if node.value == "trust_remote_code" and name != FRESH:
        yield "names trust_remote_code in a string, where its value is not seen"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_module_runs_code_that_it_reads(file: Path) -> None:
    assert not list(violations(ast.parse(file.read_text("utf-8")), file.name))


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "import torch, joblib",
        "from marshal import loads",
        "import cloudpickle",
        "from joblib import load",
        "import yaml as y",
        "from yaml import load",
        "from torch import load",
        "from numpy import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=choice)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=choice)",
        "np.load(path, None, True)",
        "load_tokenizer(path, own_code=True)",
        "def load(path: str, own_code: bool = True): ...",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "yaml.full_load(text)",
        "yaml.parse(text)",
        "yaml.parse(text, Loader=yaml.FullLoader)",
        "cloudpickle.load(file)",
        "eval(text)",
        "eval('None', names)",
        "exec(text)",
        "compile(source=text)",
        "AutoConfig.from_pretrained(path)",
        "AutoModelForCausalLM.from_config(config)",
        "AutoTokenizer.from_pretrained(path, trust_remote_code=True)",
        "AutoTokenizer.from_pretrained(path, **options)",
        "options = {'trust_remote_code': True}",
        "torch.hub.load(path)",
        "pandas.read_pickle(path)",
    ],
)
def test_the_rules_find_what_they_forbid(code: str) -> None:
    assert list(violations(ast.parse(code), "module.py"))


@pytest.mark.parametrize(
    "code",
    [
        "from ray import cloudpickle",
        "cloudpickle.loads(task)",
        "from numpy.typing import NDArray",
        "np.load(path, mmap_mode='r')",
        "torch.load(path, weights_only=True)",
        "yaml.safe_load(text)",
        "isinstance(event, yaml.AliasEvent)",
        "model.eval()",
        "eval('None')",
        "re.compile(pattern)",
        "AutoTokenizer.from_pretrained(path, trust_remote_code=own_code)",
    ],
)
def test_the_rules_allow_what_is_safe(code: str) -> None:
    assert not list(violations(ast.parse(code), "module.py"))
