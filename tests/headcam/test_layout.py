"""The repository's layout (DESIGN.md sections 2 and 3), read from the sources and tried in fresh interpreters."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# An import may only point to the left.
ORDER = ("headcam", "video", "ssl", "tokenizers", "evaluation", "recognition_memory", "extrapolation", "top")
# What puts the parts together: imports all, is imported by nobody else.
TOP = ("headcam/cli/", "headcam/demo", "headcam/doctor")
PARTS = [name for name in ORDER[1:-1] if (ROOT / name).is_dir()]
MODULES = sorted(path.relative_to(ROOT) for part in ("headcam", *PARTS) for path in (ROOT / part).rglob("*.py"))
OPTIONAL = (
    "decord",
    "torchcodec",
    "xformers",
    "mslk",
    "transformers",
    "ray",
    "submitit",
    "lightly",
    "faiss",
    "sklearn",
)


def layer_of_file(path: Path) -> str:
    name = path.as_posix()
    if name.startswith(TOP) or name == "headcam/__main__.py":
        return "top"
    return path.parts[0]


def layer_of_module(module: str) -> str | None:
    """The layer that an import of `module` points to; None for packages of others."""
    parts = module.split(".")
    if parts[0] != "headcam":
        return None
    if module.replace(".", "/").startswith(tuple(name.rstrip("/") for name in TOP)):
        return "top"
    return parts[1] if len(parts) > 1 and parts[1] in ORDER else "headcam"


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, whether it is imported when the file is) of all imports, those inside functions included."""
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            # `from headcam.video import plan` names a module, `from headcam.video.sampling.plan import Units` does not.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((name, id(node) not in inside) for name in names)


def test_there_is_something_to_read():
    assert {"headcam", "video", "ssl", "evaluation"} <= {path.parts[0] for path in MODULES} and len(MODULES) > 30


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_point_left_only(path):
    own = ORDER.index(layer_of_file(path))
    for module, _ in imports(path):
        layer = layer_of_module(module)
        if layer is not None:
            assert ORDER.index(layer) <= own, f"{path} imports {module}"


def test_optional_packages_are_imported_by_one_file_each_and_only_when_wanted():
    users: dict[str, set[Path]] = {}
    for path in MODULES:
        for module, at_import in imports(path):
            package = module.split(".")[0]
            if package in OPTIONAL:
                users.setdefault(package, set()).add(path)
                assert not at_import, f"{path} imports {module} before it is needed"
    assert all(len(paths) == 1 for paths in users.values()), users


@pytest.mark.parametrize("folder", [*PARTS, "tests", "benchmarks", "configs"])
def test_folders_of_the_top_level_are_no_packages(folder):
    """An `__init__.py` in ssl/ would shadow the standard library's module for a Python started here."""
    assert not list((ROOT / folder).rglob("__init__.py"))


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_public_things_say_what_they_are(path):
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    assert ast.get_docstring(tree), f"{path} has no docstring"
    for node in tree.body:
        public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        # A verb's `main(arguments)` is described by the module and by its --help.
        if public and not (node.name == "main" and path.as_posix().startswith("headcam/cli/")):
            assert ast.get_docstring(node), f"{path}: {node.name} has no docstring"


def run(*words: str, cwd: Path = ROOT, **environment: str) -> str:
    """Standard output of a fresh Python that is started as a user would: the current folder comes first on its path."""
    base = {k: v for k, v in os.environ.items() if k not in ("PYTHONSAFEPATH", "PYTHONPATH")}
    done = subprocess.run(
        [sys.executable, *words], cwd=cwd, capture_output=True, text=True, env=base | environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# Where the modules come from, asked in the process itself and in one that it spawns.
WHERE = """
import multiprocessing, sys

def where():
    import ssl
    import importlib.util
    import headcam.ssl.vit, headcam.video.sampling.plan
    ssl.create_default_context()
    theirs = importlib.util.find_spec("tokenizers")
    return ssl.__file__, theirs and theirs.origin, headcam.ssl.vit.__file__, headcam.video.sampling.plan.__file__

if __name__ == "__main__":
    here = where()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(where) == here
    print(*here, sep="\\n")
"""


@pytest.mark.parametrize("start", ["root", "elsewhere"])
def test_python_finds_its_own_ssl_and_hugging_face_s_tokenizers(tmp_path, start):
    """With the repository's root first on the path, as `python -c`, `python -m` and notebooks have it."""
    pytest.importorskip("tokenizers")
    (tmp_path / "where_script.py").write_text(WHERE)
    cwd = ROOT if start == "root" else tmp_path
    out = run(str(tmp_path / "where_script.py"), cwd=cwd, PYTHONPATH=str(cwd))
    standard, tokenizers, ours, plan = map(Path, out.splitlines())
    library = Path(os.__file__).parent
    assert standard == library / "ssl.py"
    assert ROOT not in tokenizers.parents or "site-packages" in tokenizers.parts
    assert ours == ROOT / "ssl" / "vit.py" and plan == ROOT / "video" / "sampling" / "plan.py"


def test_python_c_and_python_m_in_the_root_find_the_right_ssl():
    line = "import ssl, headcam.video.sampling.plan; print(ssl.__file__); print(ssl.OPENSSL_VERSION)"
    assert run("-c", line).splitlines()[0] == str(Path(os.__file__).parent / "ssl.py")
    run("-m", "pip", "--version")  # imports ssl
    assert run("-m", "headcam", "--version").strip()


def test_help_and_version_load_nothing_heavy():
    """`headcam --help` answers at once because it imports none of these."""
    line = (
        "import sys; from headcam.cli import main; main([{!r}]); print(); "
        "print(*sorted({{m.split('.')[0] for m in sys.modules}} & set({!r})))"
    )
    heavy = ["torch", "lightning", "numpy", "pandas", "pyarrow", "jsonargparse", "cv2", "av", "rich", "yaml"]
    for word in ("--help", "--version", "no-such-verb"):
        assert run("-c", line.format(word, heavy)).splitlines()[-1] == "", word


@pytest.mark.parametrize("verb", ["index", "store", "doctor", "probe", "demo"])
def test_a_verb_s_help_loads_no_torch(verb):
    line = (
        "import sys\nfrom headcam.cli import main\n"
        f"try: main([{verb!r}, '--help'])\nexcept SystemExit as stop: assert not stop.code\n"
        "print(); print(*sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'lightning', 'pyarrow', 'cv2'}))"
    )
    assert run("-c", line).splitlines()[-1] == ""


def test_the_lock_pins_every_package_with_hashes_and_names_no_address():
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    assert "://" not in lock and "--index" not in lock and "--find-links" not in lock
    packages = [block for block in lock.replace("\\\n", " ").splitlines() if block and not block.startswith("#")]
    assert len(packages) > 50
    assert all("==" in package and "--hash=sha256:" in package for package in packages)
