"""Pictures that are none of the experiment's: to choose a learning rate on, and to learn after study.

They come from whatever `headcam.video.items` opens: a frame store, a file of `headcam index`, a folder of pictures.
That none of them is a picture of the experiment is checked by content: by the id of the file or recording (its size
and bytes, see `headcam.files.recording_id`), which a store keeps of what it was made from. So stimuli that were put
into a store are found too; a stimulus that somebody saved anew, in another format or size, is another picture here.
"""

from pathlib import Path

from headcam.errors import InputError
from headcam.files import recording_id
from headcam.recognition_memory.stimuli.manifest import MemoryManifest
from headcam.video.items import Items, open_items


def open_other_pictures(
    data: str | Path, manifest: MemoryManifest, size: tuple[int, int], *, num: int, seed: int
) -> Items:
    """At most `num` pictures of `data`, chosen by `seed`, none of which is in `manifest`.

    Args:
        data: frame store, file of `headcam index`, or folder of pictures.
        manifest: of the experiment that they are to be kept apart from.
        size: (H, W) in pixels that they are resized to.
    Raises:
        InputError: nothing to open, or one of the pictures is studied or tested in the experiment.
    """
    items = open_items(data, size, num=num, seed=seed)
    own = {}
    for stimulus in manifest.stimuli:
        path = manifest.root / stimulus.path
        if not path.is_file():
            raise InputError(f"{path} of manifest {manifest.name} is missing", "bring it back, or prepare it again")
        own.setdefault(recording_id(path), stimulus.path)
    shared = sorted({own[recording] for recording in items.recordings if recording in own})
    if shared:
        raise InputError(
            f"{len(shared)} pictures of {data} belong to the experiment {manifest.name}, such as {shared[0]}",
            "give pictures that are neither studied nor tested",
        )
    return items
