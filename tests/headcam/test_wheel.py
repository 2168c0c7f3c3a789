"""The built wheel in an environment without the checkout, and what the source archive holds."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("build")
pytest.importorskip("hatchling")

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
_PARTS = ("video", "ssl", "tokenizers", "evaluation", "recognition_memory", "extrapolation")
FOLDERS = [part for part in _PARTS if any((ROOT / part).glob("*.py"))]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """The wheel and the source archive."""
    out = tmp_path_factory.mktemp("dist")
    words = [sys.executable, "-m", "build", "--wheel", "--sdist", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """A folder that holds the installed wheel and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    words = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder), str(built[0])]
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    return folder


def run(installed: Path, cwd: Path, code: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run code with the wheel and the other packages on the path.

    Without the module `site` (-S) no .pth file is read, so the editable install of the checkout does not exist.
    """
    packages = dict.fromkeys(sysconfig.get_path(k) for k in ("purelib", "platlib"))
    path = os.pathsep.join([str(installed), *packages])
    base = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    return subprocess.run(
        [sys.executable, "-S", "-P", "-c", code, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=base | {"PYTHONPATH": path},
    )


HEADCAM = "import sys; from headcam.cli import main; sys.exit(main(sys.argv[1:]))"


def test_every_module_imports_from_the_wheel(installed, tmp_path):
    modules = [
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
        for folder in ("headcam", *FOLDERS)
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path.name != "__main__.py"
    ]
    modules = [m if m.split(".")[0] == "headcam" else f"headcam.{m}" for m in modules]
    code = (
        "import importlib, sys\nfrom pathlib import Path\nhome = Path(sys.argv[1]).resolve()\n"
        "for name in sys.argv[2:]:\n"
        "    file = Path(importlib.import_module(name).__file__).resolve()\n"
        "    assert home in file.parents, (name, file)\n"
        "print(len(sys.argv) - 2)"
    )
    done = run(installed, tmp_path, code, str(installed), *modules)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(modules) > 30


def test_the_command_works_without_the_checkout(installed, tmp_path):
    done = run(installed, tmp_path, HEADCAM, "doctor")
    assert done.returncode == 0, done.stderr
    assert "unknown (no checkout)" in done.stdout and "all that headcam needs is here" in done.stdout
    assert (installed / "bin" / "headcam").is_file()


def test_a_packaged_config_is_found_by_its_name(installed, tmp_path):
    done = run(installed, tmp_path, HEADCAM, "fit", "--config", "configs/ssl/mae_vits16.yaml", "--print_config")
    assert done.returncode == 0, done.stderr
    assert "class_path: headcam.ssl.mae.MAE" in done.stdout
    done = run(installed, tmp_path, HEADCAM, "fit", "--config", "configs/ssl/nowhere.yaml")
    assert done.returncode == 2 and "configs/ssl/mae_vits16.yaml" in done.stderr and done.stderr.count("\n") == 1


def test_the_wheel_holds_all_files_of_the_package_and_no_tests(built):
    names = set(zipfile.ZipFile(built[0]).namelist())
    junk = ("__pycache__", ".ruff_cache", ".part")
    for folder in ("headcam", *FOLDERS, "configs"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and not any(word in path.as_posix() for word in junk):
                inside = path.relative_to(ROOT).as_posix()
                inside = inside if folder == "headcam" else f"headcam/{inside}"
                assert inside in names, inside
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"headcam"}
    assert not [name for name in names if "tests" in name or "__pycache__" in name or "benchmarks" in name]
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)


def test_the_source_archive_holds_all_that_a_clone_holds(built):
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for wanted in ("LICENSE", "README.md", "pyproject.toml", "Makefile", "requirements.lock", "tests/conftest.py"):
        assert wanted in names, wanted
    for folder in ("headcam", *FOLDERS, "configs", "tests", "benchmarks"):
        assert any(name.startswith(f"{folder}/") for name in names), folder
    assert not [name for name in names if "__pycache__" in name or ".venv" in name]
