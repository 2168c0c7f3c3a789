"""Protocols: what exactly was done to get a number, as frozen values with a name, a version and a hash.

A protocol is a YAML file: those of `configs/protocols/` come with the package and are known by their names, others are
given by path. Every number in `scores.csv` carries the label and the hash of its protocol; two numbers may be compared
where the hashes are equal, and where a setting differs, so does the hash. A change of the code that changes numbers
without changing a setting raises the version of the kind, and files and results of another version are refused.

| kind | what is measured | shipped |
| --- | --- | --- |
| `KNN` | votes of the nearest training pictures in frozen features | `knn`, `knn-sweep` |
| `LinearProbe` | a linear layer on frozen features, cached or augmented, of one block or each | `linear`, `linear-*` |
| `LabelCurve` | a probe of frozen features against the number of labels a class | `label-curve` |
| `Finetune` | all weights, trained on some or all labels | `fewshot-*`, `finetune-*`, `video-*` |
| `EncoderFeatures`, `PixelFeatures` | what the probes read | part of the others |
| `Chance` | guessing | beside everything |

Nothing here chooses anything on test pictures: where a protocol lists several values (learning rates, k, epochs), the
choice is made on a fifth of the training pictures, and then all of them are used at that value.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml

import headcam
from headcam.errors import InputError
from headcam.files import sha256_json

SELECTION = "first fifth of each class by SHA-256 of content, whole recordings where they are known"


@dataclass(frozen=True)
class Clips:
    """How clips are cut from labelled videos, for training and for the test.

    Attributes:
        step_seconds: between two frames of a clip (8 / 30 for rate 8 at 30 frames a second); a video that is shorter
            than a clip is shown with its frames spread evenly over all of it.
        num_frames: of a clip for an encoder of pictures, whose logits of the frames are averaged; an encoder of clips
            has its own number.
        test_clips: clips of a test video, evenly spaced over it; their class probabilities are averaged.
        flip: "never", "always", or "by class names": mirror images in training unless a class name speaks of left or
            right (Something-Something does).
    """

    step_seconds: float = 8 / 30
    num_frames: int = 16
    test_clips: int = 1
    flip: Literal["never", "always", "by class names"] = "by class names"


@dataclass(frozen=True)
class EncoderFeatures:
    """Frozen features of an encoder: resize, centre crop, one forward pass in eval mode, pool.

    The picture is scaled (bicubic, antialiased, up or down) so that it covers `resize_ratio` times the encoder's
    image size, then cropped in the middle: for 224 pixels the short side becomes 256, as in the evaluations of
    He et al. (2016) and most papers since. EXIF rotation is not applied, as in the usual ImageNet loaders. A model for
    clips takes a picture as a clip of equal frames.

    Attributes:
        pool: "avg", mean of the patch tokens, or "cls", the class token; after the encoder's last norm where `layer`
            is None.
        layer: the block whose output is taken (1 is the first, no norm after it), None: the encoder's features.
        clips: of videos, how clips are cut from them; None of pictures.
    """

    pool: Literal["avg", "cls"] = "avg"
    layer: int | None = None
    resize_ratio: float = 256 / 224
    interpolation: str = "bicubic, antialiased"
    dtype: str = "float16"
    clips: Clips | None = None
    name: str = "encoder-features"
    version: int = 2

    VERSION: ClassVar[int] = 2


@dataclass(frozen=True)
class PixelFeatures:
    """The baseline that needs no model: the whole picture, averaged over area to `side` x `side` x 3 values in [0, 1].

    The mean of the training pictures is taken off: all pixels are positive, and without that the cosine between any
    two pictures is close to 1. It makes the baseline stronger and does not change what a linear probe can reach.
    """

    side: int = 16
    centre: str = "mean of the training pictures removed"
    dtype: str = "float16"
    clips: Clips | None = None
    name: str = "pixel-features"
    version: int = 2

    VERSION: ClassVar[int] = 2


@dataclass(frozen=True)
class KNN:
    """Weighted k-nearest-neighbour vote of Wu et al. (2018), set as in the evaluation of DINO (Caron et al. 2021).

    Attributes:
        k: numbers of neighbours; with several, and with several temperatures, the pair is chosen on `selection`.
        temperature: a neighbour's vote is exp(cosine / temperature).
    """

    features: EncoderFeatures | PixelFeatures = EncoderFeatures()
    k: tuple[int, ...] = (20,)
    temperature: tuple[float, ...] = (0.07,)
    similarity: str = "cosine"
    selection: str = SELECTION
    name: str = "knn"
    version: int = 2

    VERSION: ClassVar[int] = 2

    @property
    def metric(self) -> str:
        """Stem of its metrics' names, such as `knn/k20_T0.07`, or the protocol's name where there is a choice."""
        if len(self.k) == len(self.temperature) == 1:
            return f"{self.name}/k{self.k[0]}_T{self.temperature[0]:g}"
        return self.name


@dataclass(frozen=True)
class LinearProbe:
    """A normalisation without affine parameters, then one linear layer, on frozen features.

    Attributes:
        base_lr_per_256: learning rates that are tried, for a batch of 256; the actual one is rate x batch / 256.
        epochs: passes over the training set, the same in the search and in the final fit.
        batch_size: pictures a step (all of them where there are fewer).
        momentum: of stochastic gradient descent.
        weight_decay: 0, as in He et al. (2022), appendix A.1; else decoupled, on weights and not on biases.
        normalisation: "batchnorm", each feature by its mean and variance (He et al. 2022); "whitening", also made
            uncorrelated, so that few passes are enough. The statistics are those of the training set, exact.
        eps: added to the variance (batchnorm), or to each eigenvalue as a share of their mean (whitening).
        augmentation: "none": features are computed once, and cached. "crop and flip": every epoch has other crops
            (torchvision's RandomResizedCrop, 0.08 to 1 of the area, 3/4 to 4/3) and mirror images, computed anew by
            the frozen encoder in eval mode; the statistics are then of the uncropped training pictures.
        layers: "given": that of `features`; "all": one probe on every block, as a curve.
        selection: the part of the training set that the learning rate is chosen on.
    """

    features: EncoderFeatures | PixelFeatures = EncoderFeatures()
    base_lr_per_256: tuple[float, ...] = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0)
    epochs: int = 50
    batch_size: int = 256
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "cosine to 0, each step"
    normalisation: Literal["batchnorm", "whitening"] = "batchnorm"
    eps: float = 1e-6
    augmentation: Literal["none", "crop and flip"] = "none"
    layers: Literal["given", "all"] = "given"
    start: str = "zeros"
    selection: str = SELECTION
    name: str = "linear"
    version: int = 2

    VERSION: ClassVar[int] = 2

    @property
    def metric(self) -> str:
        """Stem of its metrics' names."""
        return self.name


@dataclass(frozen=True)
class LabelCurve:
    """A linear probe on cached features against the number of labelled pictures a class.

    Attributes:
        probe: how each point is measured; its learning rate is chosen inside the labels of the point.
        labels_per_class: points of the curve; those above the smallest class's pictures are left out, by name.
        draws: independent draws of each point, numbered from 0; see `headcam.evaluation.labelled.draws`.
    """

    probe: LinearProbe = LinearProbe()
    labels_per_class: tuple[int, ...] = (2, 5, 10, 20, 50, 100, 200, 500)
    draws: int = 10
    name: str = "label-curve"
    version: int = 1

    VERSION: ClassVar[int] = 1

    @property
    def features(self) -> EncoderFeatures | PixelFeatures:
        return self.probe.features

    @property
    def metric(self) -> str:
        """Stem of its metrics' names."""
        return self.name


@dataclass(frozen=True)
class Labels:
    """Which training pictures a protocol may use.

    Attributes:
        per_class: exactly so many of each class; None: not by class.
        fraction: `int(fraction * n)` of all training pictures, classes as they come (the originals' unstratified
            form: 0.010147 are 13,000 of ImageNet, 0.02 are 25,623); with `per_class` None. None with it: all pictures.
        draws: independent draws, numbered from 0; one is a number with an interval over pictures only.
        rule: how a draw is made; see `headcam.evaluation.labelled.draws`.
    """

    per_class: int | None = None
    fraction: float | None = None
    draws: int = 1
    rule: str = "first by SHA-256 of draw, class and file name"


@dataclass(frozen=True)
class Finetune:
    """All weights of an encoder, with a linear head, trained on labelled pictures or clips.

    The head is the published one (Orhan 2023): batch normalisation without affine parameters (eps 1e-6) and a linear
    layer, on the class token after the last norm or on the mean of the patch tokens. Learning rate and number of
    epochs are chosen on a fifth of the labels of the draw; then all of them are used from the start at that rate for
    so many epochs, and the test pictures are scored, once.

    Attributes:
        labels: which training pictures, in which draws.
        pool: "cls" or "avg", as in `EncoderFeatures`.
        lr: learning rates that are tried, for batches of `batch_size`, not scaled by anything.
        epochs: the longest training; the choice is among `choose_epoch_every`, 2 x that, ... `epochs`.
        schedule: "constant", or "cosine" (to 0 at the last step, after `warmup_epochs`; then the number of epochs is
            `epochs`, and only the learning rate is chosen).
        batch_size: pictures a step over all processes.
        betas, weight_decay: of AdamW; no decay of biases, norms, tokens and positions.
        layer_decay: learning rate factor of each block below the head (Clark et al. 2020); 1: none.
        drop_path: stochastic depth at the last block.
        label_smoothing: share of the uniform distribution in the targets.
        clip_grad: largest norm of the gradient; None: not clipped.
        augmentation: "minimal": random resized crop and flip. "heavy": also RandAugment, random erasing, mixup and
            cutmix, with the settings of He et al. (2022), table 9.
        crop_scale: share of the picture's area that a training crop takes.
        interpolation: of training crops of pictures; test pictures, and clips, are resampled bicubic.
        resize: the short side of a test picture before its centre is cropped, as pixels more than the image size.
        precision: of the encoder's products ("bfloat16": autocast); weights, head and loss are in float32.
        clips: of video protocols; None for pictures.
    """

    labels: Labels = Labels()
    pool: Literal["avg", "cls"] = "cls"
    lr: tuple[float, ...] = (1e-4,)
    epochs: int = 50
    choose_epoch_every: int = 1
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_epochs: float = 0.0
    batch_size: int = 128
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    drop_path: float = 0.0
    label_smoothing: float = 0.0
    clip_grad: float | None = None
    augmentation: Literal["minimal", "heavy"] = "minimal"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    resize: int = 32
    precision: Literal["float32", "bfloat16"] = "float32"
    clips: Clips | None = None
    head: str = "BatchNorm1d(affine=False, eps=1e-6), Linear (normal, std 0.01)"
    selection: str = SELECTION
    name: str = "finetune"
    version: int = 1

    VERSION: ClassVar[int] = 1

    @property
    def metric(self) -> str:
        """Stem of its metrics' names."""
        return self.name


@dataclass(frozen=True)
class Chance:
    """What guessing gets: every class with the same probability, exact, no interval."""

    rule: str = "uniform guess"
    name: str = "chance"
    version: int = 1

    VERSION: ClassVar[int] = 1


Protocol = EncoderFeatures | PixelFeatures | KNN | LinearProbe | LabelCurve | Finetune | Chance
KINDS: dict[str, type] = {kind.__name__: kind for kind in (KNN, LinearProbe, LabelCurve, Finetune)}  # of YAML files
DEFAULT = ("knn", "linear")  # what `headcam probe` does where no protocol is named


def label(protocol: Protocol) -> str:
    """Name and version, such as `linear-v2`."""
    return f"{protocol.name}-v{protocol.version}"


def protocol_hash(protocol: Protocol) -> str:
    """SHA-256 over all settings, those of the features included."""
    return sha256_json(asdict(protocol))


def settings(protocol: Protocol) -> dict[str, Any]:
    """All settings with the kind, as a YAML file would hold them; JSON values."""
    return {"kind": type(protocol).__name__, **json.loads(json.dumps(asdict(protocol)))}


def from_settings(values: Mapping[str, Any]) -> Protocol:
    """The protocol of `settings`.

    Raises:
        InputError: an unknown kind, or one of another version.
    """
    values = dict(values)
    kind = values.pop("kind")
    return _built(KINDS[kind], values, f"protocol {values.get('name')}")


def on_pixels(protocol: Protocol) -> Protocol | None:
    """The same protocol on raw pixels; None where it needs a network."""
    if isinstance(protocol, LabelCurve):
        probe = on_pixels(protocol.probe)
        return None if probe is None else replace(protocol, probe=probe)
    if isinstance(protocol, LinearProbe) and (protocol.augmentation != "none" or protocol.layers == "all"):
        return None
    if not isinstance(protocol, KNN | LinearProbe):
        return None
    return replace(protocol, features=PixelFeatures(clips=protocol.features.clips))


def on_media(protocol: Protocol, media: str) -> Protocol:
    """The protocol as it is on "pictures" or "videos": frozen features of videos say how clips are cut.

    Raises:
        InputError: a protocol of the other kind.
    """
    if isinstance(protocol, Finetune) and (protocol.clips is None) == (media == "videos"):
        kind = "pictures" if protocol.clips is None else "videos"
        raise InputError(f"protocol {protocol.name} is for {kind}, and the set is of {media}", "name one that fits")
    if media == "pictures" or isinstance(protocol, Finetune):
        return protocol
    if isinstance(protocol, LinearProbe) and (protocol.augmentation != "none" or protocol.layers == "all"):
        raise InputError(f"protocol {protocol.name} is for pictures, and the set is of videos", "use linear or knn")
    features = protocol.probe.features if isinstance(protocol, LabelCurve) else protocol.features
    return with_features(protocol, clips=features.clips or Clips())


def with_features(protocol: Protocol, **changes: Any) -> Protocol:
    """The protocol with other settings of its encoder's features, such as `pool`."""
    if isinstance(protocol, Finetune):
        return replace(protocol, **changes)
    if isinstance(protocol, LabelCurve):
        return replace(protocol, probe=with_features(protocol.probe, **changes))
    return replace(protocol, features=replace(protocol.features, **changes))


def shipped() -> dict[str, Path]:
    """The protocols that come with the package: name -> file."""
    folders = [Path(folder, "configs", "protocols") for folder in headcam.__path__]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def protocol(source: str | Path) -> Protocol:
    """A protocol by the name of a shipped one, or from a YAML file.

    Raises:
        InputError: as `read_protocol`; or a file that takes the name of a shipped protocol for other settings.
    """
    files = shipped()
    if str(source) in files:
        return read_protocol(files[str(source)])
    if Path(source).suffix not in (".yaml", ".yml"):
        raise InputError(f"protocol {source} is unknown", f"use a YAML file, or one of {', '.join(sorted(files))}")
    found = read_protocol(Path(source))
    if found.name in files and found != read_protocol(files[found.name]):
        raise InputError(
            f"{source} calls itself {found.name} and has other settings than the shipped protocol of that name",
            "give it a name of its own",
        )
    return found


def read_protocol(path: Path) -> Protocol:
    """A protocol from its YAML file: `kind`, `name`, `version` and any settings; what is left out has its default.

    Raises:
        InputError: no such file, no YAML, an unknown kind or setting, a value of another type, or a protocol of
            another version of its kind.
    """
    if not path.is_file():
        raise InputError(f"protocol file {path} does not exist", "give a YAML file, or the name of a shipped protocol")
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no YAML: {' '.join(str(error).split())}", "mend the file") from error
    if not isinstance(found, dict) or "kind" not in found:
        raise InputError(f"{path} is no protocol: it has no kind", f"begin it with one of kind: {', '.join(KINDS)}")
    kind = found.pop("kind")
    if kind not in KINDS:
        raise InputError(f"{path}: kind {kind} is unknown", f"use one of {', '.join(KINDS)}")
    for key in ("name", "version"):
        if key not in found:
            raise InputError(f"{path}: a protocol has no {key}", f"write name: and version: {KINDS[kind].VERSION}")
    return _built(KINDS[kind], found, f"{path}")


def _built(kind: type, values: Any, where: str) -> Any:
    """A dataclass of a mapping, its parts included."""
    if not isinstance(values, Mapping):
        raise InputError(f"{where} is {values!r}", "write a mapping of settings")
    version = values.get("version", getattr(kind, "VERSION", None))
    if version != getattr(kind, "VERSION", None):
        raise InputError(
            f"{where} is of version {version} of {kind.__name__}, and this headcam knows version {kind.VERSION}",
            "use the version of headcam that the file was written for, or write it anew for this one",
        )
    types_of = typing.get_type_hints(kind)
    fields = {f.name for f in dataclasses.fields(kind)}
    unknown = [key for key in values if key not in fields]
    if unknown:
        raise InputError(f"{where}: setting {unknown[0]} is unknown", f"use {', '.join(sorted(fields))}")
    return kind(**{key: _value(types_of[key], value, f"{where}: {key}") for key, value in values.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    """`value` as the annotation `hint` wants it."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in parts:
            return None
        rest = [part for part in parts if part is not type(None)]
        return _value(rest[0], value, where)  # of `EncoderFeatures | PixelFeatures` files name encoders
    if dataclasses.is_dataclass(hint):
        return _built(hint, value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple) or not value:
            raise InputError(f"{where} is {value!r}", "write a list of values in [ ]")
        if parts[-1] is not Ellipsis and len(value) != len(parts):
            raise InputError(f"{where} has {len(value)} values", f"give {len(parts)}")
        return tuple(_value(parts[0], item, where) for item in value)
    if origin is Literal:
        if value not in parts:
            raise InputError(f"{where} is {value!r}", f"use one of {', '.join(map(str, parts))}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 1e-4 as a string
        try:
            return float(value)
        except ValueError:
            pass
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise InputError(f"{where} is {value!r}", f"give a value of type {hint.__name__}")
    return value
