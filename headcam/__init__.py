"""headcam: sample-efficient vision pretraining on first-person (headcam) video.

The parts live in the folders of the repository's top level (`video/`, `ssl/`, `evaluation/`, ...) and are imported
as `headcam.video`, `headcam.ssl`, `headcam.evaluation`, ... An installed wheel holds them as ordinary subpackages.
"""

from pathlib import Path as _Path

__version__ = "0.1.0"

# In a checkout or an editable install the folders stand beside this one, not in it. They have no `__init__.py`, so
# that a Python started in the repository root still finds the standard library's `ssl` and Hugging Face's
# `tokenizers`; adding the root to this package's path makes them importable as `headcam.ssl` and so on.
_root = _Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and 'name = "headcam"' in (_root / "pyproject.toml").read_text("utf-8"):
    __path__.append(str(_root))
