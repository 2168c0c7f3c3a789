"""What this machine can do, and what is missing: decoders, attention, number formats, GPU, threads, free disk.

Every finding is looked up on the spot (packages by their installed version, processors by asking torch), nothing is
assumed from the platform's name.
"""

import os
import platform
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from types import ModuleType

from headcam import __version__
from headcam.errors import MissingPackage
from headcam.files import free_bytes
from headcam.runs import git_commit, processor_name

_GIB = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One line of the report: what, what was found, whether it is there, and the fix where it is not."""

    part: str
    what: str
    found: str
    ok: bool
    needed: bool = False
    fix: str = ""


def examine() -> list[Finding]:
    """Everything worth knowing about this machine, in the order of a reader's interest.

    Raises:
        MissingPackage: torch cannot be imported; nothing works without it.
    """
    try:
        import torch
    except Exception as error:  # a broken install raises more than ImportError
        raise MissingPackage(f"torch cannot be imported: {error}", "install it in a fresh environment") from error

    from headcam.ssl.training.precision import cpu_bf16

    findings = [
        Finding("headcam", "version", f"{__version__} at commit {git_commit() or 'unknown (no checkout)'}", True),
        Finding("machine", "python", f"{sys.version.split()[0]} on {platform.platform()}", sys.version_info >= (3, 11)),
        Finding(
            "machine",
            "processor",
            f"{processor_name()}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads",
            True,
        ),
        Finding(
            "machine",
            "free disk here",
            f"{free_bytes('.') / _GIB:.1f} GiB",
            free_bytes(".") > 5 * _GIB,
            False,
            "frame stores take about 0.15 GiB an hour of video at one frame a second; free some space",
        ),
        _package("torch", needed=True),
        _package("lightning", needed=True),
    ]
    bf16 = cpu_bf16()
    findings.append(
        Finding(
            "arithmetic",
            "bf16 on the CPU",
            bf16 or "no: precision bf16 runs as fp32",
            bf16 is not None,
            False,
            "nothing to do: this processor has neither AVX512-BF16 nor AMX",
        )
    )
    if torch.cuda.is_available():
        for k in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(k)
            findings.append(Finding("arithmetic", f"GPU {k}", f"{gpu.name}, {gpu.total_memory / _GIB:.0f} GiB", True))
    else:
        apple = torch.backends.mps.is_available()
        findings.append(
            Finding(
                "arithmetic",
                "GPU",
                "Apple Metal" if apple else "none",
                apple,
                False,
                "training runs on the CPU; for a GPU install the torch build that fits its driver",
            )
        )
    findings += [
        Finding("attention", "scaled_dot_product_attention", f"torch {torch.__version__}", True, True),
        _attention(),
        _decoder("pyav", "av", "pip install av", _of_pyav, needed=True),
        _decoder(
            "decord",
            "decord",
            "Linux x86-64: pip install decord; elsewhere decord2 has the same import name",
            lambda decord: decord.__version__,
        ),
        _decoder(
            "torchcodec",
            "torchcodec",
            "pip install 'headcam[torchcodec]', and FFmpeg's shared libraries: apt or conda install ffmpeg",
            _of_torchcodec,
        ),
        _decoder("opencv", "cv2", "pip install opencv-python-headless", _of_opencv),
        _package("ray", part="many machines", fix="only --engine ray needs it: pip install 'headcam[ray]'"),
        _package("simplejpeg", part="pictures", needed=True),
        _package("opencv-python-headless", part="pictures", needed=True),
        _package("webdataset", part="pictures", needed=True),
    ]
    return findings


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _package(name: str, part: str = "training", needed: bool = False, fix: str = "") -> Finding:
    version = _version(name)
    return Finding(part, name, version or "missing", version is not None, needed, fix or f"pip install {name}")


def _decoder(
    backend: str, module: str, fix: str, describe: Callable[[ModuleType], str], needed: bool = False
) -> Finding:
    """A decoder counts as there when it loads: wheels for another system, or without their libraries, install too."""
    if find_spec(module) is None:
        return Finding("decoders", backend, "missing", False, needed, fix)
    try:
        return Finding("decoders", backend, describe(import_module(module)), True, needed)
    except Exception as error:  # a broken install raises more than ImportError
        return Finding("decoders", backend, f"does not load: {' '.join(str(error).split())[:160]}", False, needed, fix)


def _of_pyav(av: ModuleType) -> str:
    libavcodec = ".".join(map(str, av.library_versions["libavcodec"]))
    return f"{av.__version__} (FFmpeg {av.ffmpeg_version_info}, libavcodec {libavcodec})"


def _of_torchcodec(torchcodec: ModuleType) -> str:
    if torchcodec.ffmpeg_major_version is None:  # recent versions import without them
        raise RuntimeError(f"{torchcodec.__version__} finds no FFmpeg libraries on this system that it can use")
    return f"{torchcodec.__version__} (FFmpeg {torchcodec.ffmpeg_major_version} of this system)"


def _of_opencv(cv2: ModuleType) -> str:
    libavcodec = re.search(r"avcodec:\s+YES \((\S+)\)", cv2.getBuildInformation())
    if not libavcodec:
        raise RuntimeError(f"{cv2.__version__} is built without FFmpeg")
    return f"{cv2.__version__} (libavcodec {libavcodec[1]})"


def _attention() -> Finding:
    version = _version("xformers")
    why = "not installed"
    if version:
        import torch

        from headcam.ssl.attention import resolve_backend

        why = resolve_backend("xformers", "cuda" if torch.cuda.is_available() else "cpu")[1].split(":")[0]
    found = f"xformers {version or ''}: {why or 'its kernels run'}".replace(" :", ":")
    return Finding("attention", "memory-efficient", found, not why, False, "none needed: torch has its own")
