"""The house law of AGENTS.md, held by reading the source and by importing it in fresh processes."""

from __future__ import annotations

import ast
import doctest
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src" / "firstlight"
TESTS = ROOT / "tests"
FILES = sorted(SRC.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8"), str(path)) for path in FILES}

ORDER = (
    "runtime",
    "tokens",
    "data",
    "model",
    "optim",
    "train",
    "infer",
    "eval",
    "rl",
    "interop",
    "recipes",
    "serve",
    "cli",
)
"""The import rule: a folder imports only from its left. ``errors`` and ``config`` are left of all."""

MAX_LINES = 450
MAX_LINES_OF = {"model/gpt.py": 350}

WITHOUT_A_TEST_FILE = {
    "__init__.py": "holds the version only",
    "__main__.py": "two lines; every test that starts `python -m firstlight` runs them",
    "tokens/document.py": "a frozen dataclass; used in every test of packing and of bpb",
    "data/batch.py": "two frozen dataclasses; used in every test of the loader and of the step",
    "data/sources/base.py": "protocol types; used in every test under tests/data/sources",
    "recipes/report_samples.py": "part of the report; tests/recipes/test_report.py has its tests",
    "recipes/report_style.py": "constants; tests/recipes/test_report.py renders them",
    "recipes/launch.py": "begins every run; tests/recipes/test_base.py and tests/resilience go through it",
    "recipes/stage.py": "one launch of any stage; test_base.py, test_tuned.py, test_rl.py and tests/resilience run all of it",
    "recipes/mid.py": "what differs from SFT; tests/recipes/test_tuned.py has its tests",
    "recipes/sft.py": "what differs from mid-training; tests/recipes/test_tuned.py has its tests",
    "recipes/settings.py": "defaults and their help; tests/cli/test_train.py reads them",
}

STANDARD_OUTPUT_IS_A_PIPE = {"data/build_worker.py", "data/sources/docstrings.py"}
"""These run as processes of ours whose standard output their parent reads."""

NO_TORCH_EXCEPT = {"data/batch.py", "data/loader.py"}
"""Files under tokens/ and data/ that may import torch; the others run in tokenising workers."""


def name_of(path: Path) -> str:
    return path.relative_to(SRC).as_posix()


def module_of(path: Path) -> str:
    parts = path.relative_to(SRC.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def place(name: str) -> int:
    """Place of a file's folder in the import order; files beside the folders are left of all, __main__ right of all."""
    folder = name.split("/")[0]
    if folder in ORDER:
        return ORDER.index(folder)
    return len(ORDER) if folder == "__main__.py" else -1


def imported_modules(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import, those inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports hide where a module lives"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def offenders(check: type[ast.AST], wrong: object, files: list[Path] | None = None) -> list[str]:
    """ "file:line" of each node of a type for which ``wrong(node)`` is true."""
    return [
        f"{name_of(path)}:{node.lineno}"  # pyrefly: ignore
        for path in files or FILES
        for node in ast.walk(TREES[path])
        if isinstance(node, check) and wrong(node)  # pyrefly: ignore
    ]


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def test_a_folder_imports_only_from_its_left() -> None:
    wrong = []
    for path, tree in TREES.items():
        for line, module in imported_modules(tree):
            parts = module.split(".")
            if parts[0] != "firstlight" or len(parts) < 2:
                continue
            if parts[1] in ORDER and ORDER.index(parts[1]) > place(name_of(path)):
                wrong.append(f"{name_of(path)}:{line} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_every_folder_has_a_place_in_the_import_order() -> None:
    folders = {path.relative_to(SRC).parts[0] for path in FILES if len(path.relative_to(SRC).parts) > 1}
    assert folders == set(ORDER)


def test_an_init_file_re_exports_nothing() -> None:
    wrong = [
        name_of(path)
        for path in FILES
        if path.name == "__init__.py"
        for node in TREES[path].body
        if isinstance(node, ast.Import | ast.ImportFrom)
        and not (isinstance(node, ast.ImportFrom) and node.module == "__future__")
    ]
    assert not wrong


def test_only_one_file_reads_the_environment() -> None:
    def reads(node: ast.AST) -> bool:
        return dotted(node) in ("os.environ", "os.environb", "os.getenv", "os.putenv", "os.unsetenv")

    def imports(node: ast.AST) -> bool:
        return isinstance(node, ast.ImportFrom) and node.module == "os" and any("env" in a.name for a in node.names)

    files = [path for path in FILES if name_of(path) != "runtime/environment.py"]
    assert offenders(ast.Attribute, reads, files) + offenders(ast.ImportFrom, imports, files) == []


def test_only_the_command_line_and_the_console_print() -> None:
    allowed = {"runtime/console.py", *STANDARD_OUTPUT_IS_A_PIPE}
    files = [p for p in FILES if not name_of(p).startswith("cli/") and name_of(p) not in allowed]
    assert offenders(ast.Call, lambda node: dotted(node.func) in ("print", "sys.stdout.write"), files) == []


def test_nothing_declares_a_global() -> None:
    assert offenders(ast.Global, lambda node: True) == []


def test_nothing_can_execute_a_file_it_reads() -> None:
    forbidden_modules = {"pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
    wrong = [
        f"{name_of(path)}:{line} imports {module}"
        for path, tree in TREES.items()
        for line, module in imported_modules(tree)
        if module.split(".")[0] in forbidden_modules
    ]
    calls = {"eval", "exec", "compile", "__import__", "torch.load", "torch.save", "torch.jit.load", "os.system"}
    wrong += offenders(ast.Call, lambda node: dotted(node.func) in calls)
    wrong += offenders(ast.keyword, lambda node: node.arg == "allow_pickle" and ast.unparse(node.value) != "False")
    assert not wrong, "\n".join(wrong)


def test_no_test_changes_the_clock_of_the_whole_process() -> None:
    # A server of another test may be waiting by it: with a clock set back for a moment, its event loop sleeps for hours.
    # The module under test gets a `time` of its own instead: monkeypatch.setattr(module, "time", SimpleNamespace(...)).
    names = "monotonic|perf_counter|time|sleep|process_time|monotonic_ns|perf_counter_ns|time_ns"
    pattern = re.compile(rf"""setattr\(\s*(?:(?:\w+\.)*time\s*,\s*["'](?:{names})["']|["']time\.(?:{names})["'])""")
    assert pattern.search('setattr(console.time, "monotonic", clock)')
    assert pattern.search('setattr("time.sleep", clock)')
    found = [path for path in sorted(TESTS.rglob("*.py")) if path != Path(__file__)]
    assert [str(path.relative_to(ROOT)) for path in found if pattern.search(path.read_text(encoding="utf-8"))] == []


def test_no_file_is_too_long() -> None:
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: n for name, n in lengths.items() if n > MAX_LINES_OF.get(name, MAX_LINES)} == {}


def test_every_module_says_what_it_does() -> None:
    silent = [name_of(p) for p in FILES if TREES[p].body and not ast.get_docstring(TREES[p])]
    assert silent == []


def public_functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Public functions of a module and public methods of its public classes."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node.name, node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for item in node.body:
                if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef) and not item.name.startswith("_"):
                    yield f"{node.name}.{item.name}", item


def test_public_functions_are_typed() -> None:
    wrong = []
    for path, tree in TREES.items():
        for name, node in public_functions(tree):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            untyped = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
            if node.returns is None:
                untyped.append("the result")
            if untyped:
                wrong.append(f"{name_of(path)}:{node.lineno} {name}: {', '.join(untyped)}")
    assert not wrong, "\n".join(wrong)


def test_public_functions_of_more_than_five_lines_are_documented() -> None:
    wrong = [
        f"{name_of(path)}:{node.lineno} {name}"
        for path, tree in TREES.items()
        for name, node in public_functions(tree)
        if "." not in name and ast.get_docstring(node) is None and (node.end_lineno or 0) - node.body[0].lineno + 1 > 5
    ]
    assert not wrong, "\n".join(wrong)


def test_every_module_has_its_test_file() -> None:
    missing = []
    for path in FILES:
        name = name_of(path)
        if path.name == "__init__.py" or name in WITHOUT_A_TEST_FILE:
            continue
        if not (TESTS / Path(name).parent / f"test_{path.name}").exists():
            missing.append(name)
    assert not missing, "no test file for:\n" + "\n".join(missing)


def test_the_list_of_modules_without_a_test_file_is_up_to_date() -> None:
    present = {name_of(path) for path in FILES}
    stale = [name for name in WITHOUT_A_TEST_FILE if name not in present]
    with_one = [n for n in WITHOUT_A_TEST_FILE if (TESTS / Path(n).parent / f"test_{Path(n).name}").exists()]
    assert stale + with_one == []


def test_the_examples_in_docstrings_are_true() -> None:
    failed = []
    num_examples = 0
    for path in FILES:
        if ">>>" not in path.read_text(encoding="utf-8"):
            continue
        found = doctest.testmod(importlib.import_module(module_of(path)), verbose=False)
        num_examples += found.attempted
        if found.failed:
            failed.append(f"{name_of(path)}: {found.failed}")
    assert not failed
    assert num_examples > 5


def run_fresh(code: str, folder: Path, **arguments: object) -> dict:
    """Run code in a fresh interpreter in an empty folder; its standard output must be one JSON object."""
    path = os.pathsep.join([str(SRC.parent), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    done = subprocess.run(
        [sys.executable, "-B", "-c", code, json.dumps(arguments)],
        cwd=folder, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


IMPORT_ALL = """
import contextlib, importlib, io, json, os, sys, threading
modules, third_party, inside = (json.loads(sys.argv[1])[k] for k in ("modules", "third_party", "inside"))
for name in third_party:
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
import torch, torch.distributed

def state():
    return [torch.get_num_threads(), str(torch.get_default_dtype()), torch.get_rng_state().sum().item(),
            torch.is_grad_enabled(), torch.get_float32_matmul_precision(), torch.cuda.is_initialized(),
            torch.are_deterministic_algorithms_enabled(), threading.active_count()]

events, reads = [], []
def hook(event, arguments):
    if event.startswith("socket.") or event in ("subprocess.Popen", "os.fork", "os.mkdir", "os.rename", "os.remove",
                                                "os.putenv", "_thread.start_new_thread", "os.system"):
        events.append(f"{event} {arguments!r:.200}")
    elif event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        events.append(f"open {arguments!r:.200}")

original = type(os.environ).__getitem__
def recorded(self, key):
    frame = sys._getframe(1)
    while frame and frame.f_code.co_filename.startswith("<frozen"):
        frame = frame.f_back
    while frame and frame.f_code.co_filename.endswith(("_collections_abc.py", "os.py")):
        frame = frame.f_back
    if frame and frame.f_code.co_filename.startswith(inside):
        reads.append(f"{frame.f_code.co_filename}:{frame.f_lineno} {key}")
    return original(self, key)
type(os.environ).__getitem__ = recorded

start_thread = threading.Thread.start
def start(self):
    events.append(f"thread {self.name}")
    start_thread(self)
threading.Thread.start = start

before = state()
out, err = io.StringIO(), io.StringIO()
sys.addaudithook(hook)
with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    for name in modules:
        importlib.import_module(name)
found = list(events)
print(json.dumps({"events": found, "reads": reads, "before": before, "after": state(), "files": os.listdir("."),
                  "printed": out.getvalue() + err.getvalue()}))
"""


def test_importing_everything_does_nothing(tmp_path: Path) -> None:
    # remote_code/ is copied into exported folders and runs there, inside transformers; nothing here imports it.
    own = [p for p in FILES if p.name != "__main__.py" and "remote_code" not in p.parts]
    modules = [*map(module_of, own), "firstlight.__main__"]
    third_party = sorted({
        module.split(".")[0] if module.split(".")[0] != "huggingface_hub" else "huggingface_hub.file_download"
        for tree in TREES.values()
        for _, module in imported_modules(tree)
        if module.split(".")[0] not in {"firstlight", "wandb", "trackio", "tensorboard", *sys.stdlib_module_names}
    })  # fmt: skip
    found = run_fresh(IMPORT_ALL, tmp_path, modules=modules, third_party=third_party, inside=str(SRC))
    assert found["events"] == []
    assert found["reads"] == []
    assert found["printed"] == ""
    assert found["files"] == []
    assert found["after"] == found["before"]


HEAVY = ("torch", "pyarrow", "huggingface_hub", "matplotlib", "transformers")

WHAT_IS_LOADED = """
import importlib, json, sys
arguments = json.loads(sys.argv[1])
for name in arguments["modules"]:
    importlib.import_module(name)
print(json.dumps({"loaded": [name for name in arguments["heavy"] if name in sys.modules]}))
"""


def test_the_command_line_loads_nothing_heavy_until_a_command_runs(tmp_path: Path) -> None:
    modules = [module_of(p) for p in FILES if name_of(p).startswith("cli/")]
    assert run_fresh(WHAT_IS_LOADED, tmp_path, modules=modules, heavy=HEAVY)["loaded"] == []


def test_tokenising_workers_load_no_torch(tmp_path: Path) -> None:
    modules = [
        module_of(p) for p in FILES if name_of(p).startswith(("tokens/", "data/")) and name_of(p) not in NO_TORCH_EXCEPT
    ]
    assert run_fresh(WHAT_IS_LOADED, tmp_path, modules=modules, heavy=["torch"])["loaded"] == []


# Commands in README, docs and the examples of the command line's own help.

FENCE = re.compile(r"^(```|~~~)[^\n]*\n(.*?)^\1", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(firstlight [^`\n]+)`")
PLACEHOLDER = re.compile(r"\b[A-Z][A-Z_]+\b|\bN\b|\bM\b|\.\.\.|…|[\[\]|<>]")


def command_lines() -> Iterator[tuple[str, str, bool]]:
    """(where, command line, whether it is whole) of everything a reader may type; continuation lines are joined.

    Commands inside a sentence may lack their arguments: there only the command and its flags must exist.
    """
    for page in [ROOT / "README.md", ROOT / "AGENTS.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = page.read_text(encoding="utf-8")
        for block in FENCE.finditer(text):
            for line in block.group(2).replace("\\\n", " ").splitlines():
                yield page.name, line, True
        for inline in INLINE.finditer(FENCE.sub("", text)):
            yield page.name, inline.group(1), False
    for path in FILES:
        if not name_of(path).startswith("cli/"):
            continue
        for _, node in public_functions(TREES[path]):
            for line in (ast.get_docstring(node) or "").splitlines():
                if line.startswith("    ") and "firstlight " in line:
                    yield name_of(path), line, True


def arguments_of(line: str) -> list[str] | None:
    """Words after the first ``firstlight`` of a shell line, or None where the line runs something else."""
    try:
        words = shlex.split(line.strip().removeprefix("$ "), comments=True)
    except ValueError:
        return None
    stages: list[list[str]] = [[]]
    for word in words:
        if word in ("|", ">", ">>", "2>", "&&", ";", "&"):
            stages.append([])
        else:
            stages[-1].append(word)
    for stage in stages:
        while stage and re.fullmatch(r"[A-Z_]+=\S*", stage[0]):
            stage = stage[1:]
        if "-m" in stage and stage[stage.index("-m") + 1 :][:1] == ["firstlight"]:
            return stage[stage.index("-m") + 2 :]
        if stage and stage[0].rsplit("/", 1)[-1] == "firstlight":
            return stage[1:]
    return None


COMMANDS = sorted(
    {(where, line.strip(), whole) for where, line, whole in command_lines() if arguments_of(line) is not None}
)


def flag_key(flag: str) -> str:
    return flag.split("=")[0].replace("_", "-")


@pytest.mark.parametrize(("where", "line", "whole"), COMMANDS, ids=[f"{row[0]}: {row[1][:60]}" for row in COMMANDS])
def test_a_command_in_the_words_exists_with_its_flags(where: str, line: str, whole: bool) -> None:
    from cyclopts import CycloptsError

    from firstlight.cli.main import app

    words = arguments_of(line)
    assert words is not None
    # `eval bpb|core|samples RUN` stands for three commands.
    words = [word.split("|")[0] if "|" in word and not word.startswith("-") else word for word in words]
    chain, apps, rest = app.parse_commands(words)
    if not rest and not chain:
        pytest.fail(f"{where}: no command in: {line}")
    # What follows `lm-eval` is another program's command line.
    if (rest and rest[0] in ("--help", "-h", "--version")) or tuple(chain) == ("lm-eval",):
        return
    command = apps[-1]
    assert command.default_command is not None, f"{where}: {' '.join(words)} is not a command"
    known = {flag_key(name) for argument in command.assemble_argument_collection() for name in argument.names}
    flags = {flag_key(word.strip("[]")) for word in rest if re.match(r"\[?-{1,2}[A-Za-z]", word)}
    assert flags <= known | {"--help", "-h"}, f"{where}: unknown flags {sorted(flags - known)} in: {line}"
    if whole and not PLACEHOLDER.search(" ".join(words)):
        try:
            app.parse_args(words, print_error=False, exit_on_error=False)
        except CycloptsError as error:
            pytest.fail(f"{where}: {line}: {error}")


def leaf_commands(app: object, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name in app:  # pyrefly: ignore
        if name.startswith("-"):
            continue
        inner = app[name]  # pyrefly: ignore
        below = [n for n in inner if not n.startswith("-")]
        if below:
            yield from leaf_commands(inner, (*prefix, name))
        else:
            yield (*prefix, name)


def test_every_command_imports_and_is_in_the_words() -> None:
    from firstlight.cli.main import app

    words = "\n".join(p.read_text(encoding="utf-8") for p in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    leaves = list(leaf_commands(app))
    assert ("train", "base") in leaves
    for leaf in leaves:
        apps = app.parse_commands(list(leaf))[1]
        assert apps[-1].assemble_argument_collection() is not None
    unnamed = [leaf for leaf in leaves if f"firstlight {' '.join(leaf)}" not in words]
    assert not unnamed, "in neither README.md nor docs/: " + ", ".join(" ".join(leaf) for leaf in unnamed)
