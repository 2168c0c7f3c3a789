"""`headcam doctor`: findings are looked up, and what is missing comes with its fix."""

import importlib.util
import sys
from importlib import metadata

import av
import pytest

import headcam.doctor
from headcam.cli import main
from headcam.doctor import examine

MODULES = {"opencv-python-headless": "cv2"}


def test_this_machine_has_all_that_is_needed(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith("all that headcam needs is here")
    for part in ("machine:", "arithmetic:", "attention:", "decoders:", "pictures:", "GPU", "threads", "free disk"):
        assert part in out
    for package in ("torch", "av", "decord", "torchcodec", "opencv-python-headless", "ray"):
        version = metadata.version(package) if importlib.util.find_spec(MODULES.get(package, package)) else "missing"
        assert version in out, package
    assert f"libavcodec {'.'.join(map(str, av.library_versions['libavcodec']))}" in out


def test_an_optional_decoder_that_is_missing_is_no_failure(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(headcam.doctor, "find_spec", lambda name: None if name == "decord" else find(name))
    assert main(["doctor"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if " decord " in line)
    assert line.split()[0] == "--" and "missing" in line and "pip install decord" in line


def test_something_needed_that_is_missing_is_status_1_with_its_fix(monkeypatch, capsys):
    version = metadata.version

    def without_simplejpeg(name: str) -> str:
        if name == "simplejpeg":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(headcam.doctor.metadata, "version", without_simplejpeg)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "!!  simplejpeg" in out and "(pip install simplejpeg)" in out
    assert out.splitlines()[-1] == "missing: simplejpeg"


def test_a_decoder_that_does_not_import_counts_as_missing(monkeypatch, tmp_path):
    (tmp_path / "decord.py").write_text("raise OSError('libavcodec.so: cannot open shared object file')")
    monkeypatch.delitem(__import__("sys").modules, "decord", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    finding = next(f for f in examine() if f.what == "decord")
    assert not finding.ok and "libavcodec.so" in finding.found and finding.fix


@pytest.mark.parametrize(
    ("module", "content", "found", "fix"),
    [
        (
            "torchcodec",
            "__version__, ffmpeg_major_version = '9.9', None",
            "9.9 finds no FFmpeg",
            "headcam[tor",
        ),
        (
            "torchcodec",
            "raise RuntimeError('Could not load\\nlibtorchcodec')",
            "Could not load libtorchcodec",
            "ffmpeg",
        ),
        (
            "cv2",
            "__version__, getBuildInformation = '9.9', lambda: 'FFMPEG: NO'",
            "built without",
            "opencv-python",
        ),
    ],
)
def test_a_decoder_without_its_ffmpeg_counts_as_missing(monkeypatch, tmp_path, module, content, found, fix):
    (tmp_path / f"{module}.py").write_text(content)
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    finding = next(f for f in examine() if f.part == "decoders" and f.what == {"cv2": "opencv"}.get(module, module))
    assert not finding.ok and not finding.needed and found in finding.found and fix in finding.fix


def test_ray_that_is_missing_names_its_extra(monkeypatch, capsys):
    version = metadata.version

    def without_ray(name: str) -> str:
        if name == "ray":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(headcam.doctor.metadata, "version", without_ray)
    assert main(["doctor"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if " ray " in line)
    assert line.split()[:3] == ["--", "ray", "missing"] and "pip install 'headcam[ray]'" in line
