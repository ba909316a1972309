"""No file can bring code with it: what would run it is used nowhere, but in the two places named here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("pacs_node", "inference", "dicom_sr")
IMPORTS = ("pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "code", "codeop", "runpy", "yaml")
CALLS = (
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "torch.load",
    "torch.jit.load",
    "torch.hub.load",
    "numpy.load",
    "np.load",
    "logging.config.fileConfig",
    "logging.config.dictConfig",
)

#: module -> what it may use, and why
ALLOWED: dict[str, dict[str, str]] = {
    # offline: `pacs-node models convert`, with weights_only, into safetensors
    "inference.convert": {"pickle": "its errors", "torch.load": "weights_only"},
    # offline: a reader of our own with a table of the few names that it knows
    "inference.torchscript": {"pickle": "an Unpickler that finds nothing but its table"},
}
#: the trainers read what they have written themselves
TRAINERS = "inference.train."


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def uses(source: str) -> Iterator[tuple[str, str]]:
    """What of the lists a source text uses, and by which keywords."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.split(".")[0] in IMPORTS)
        elif isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in IMPORTS:
            yield str(node.module), ""
        elif isinstance(node, ast.Call):
            keywords = [f"{word.arg}={ast.unparse(word.value)}" for word in node.keywords]
            if _dotted(node.func) in CALLS:
                yield _dotted(node.func), " ".join(keywords)
            for keyword in ("shell=True", "allow_pickle=True", "weights_only=False"):
                if keyword in keywords:
                    yield keyword, ""


def violations(module: str, source: str) -> list[str]:
    """Uses that `ALLOWED` doesn't name."""
    found = []
    for name, keywords in uses(source):
        careful = "weights_only=True" in keywords or "allow_pickle=False" in keywords
        harmless = name.endswith("np.load") and (careful or module.startswith("inference.evaluate."))
        trains = module.startswith(TRAINERS) and careful
        allowed = name in ALLOWED.get(module, {}) and (name != "torch.load" or careful)
        if not (harmless or trains or allowed):
            found.append(f"{module} uses {name}")
    return found


def test_nothing_runs_code_that_came_as_data() -> None:
    found = []
    for package in PACKAGES:
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            module = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
            found += violations(module, path.read_text(encoding="utf-8"))
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import yaml",
        "eval(text)",
        "exec(text)",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "torch.jit.load(path)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "logging.config.fileConfig(path)",
    ],
)
@pytest.mark.parametrize("module", ["pacs_node.case", "inference.weights"])
def test_it_would_be_noticed(module: str, source: str) -> None:
    assert violations(module, source) != []


def test_the_exceptions_are_used() -> None:
    """One that isn't any more is taken out here."""
    for module, names in ALLOWED.items():
        path = REPOSITORY / Path(*module.split(".")).with_suffix(".py")
        assert set(names) <= {name for name, _ in uses(path.read_text(encoding="utf-8"))}
