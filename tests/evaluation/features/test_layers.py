"""Features by layer: each is that block's output, of ViTs for pictures and clips and of GPTs, in one pass."""

import numpy as np
import pytest
import torch
from PIL import Image

from headcam.errors import InputError
from headcam.evaluation.features.blocks import layer_count
from headcam.evaluation.features.encoders import EncoderExtractor, load_frozen
from headcam.evaluation.features.layers import LayersExtractor
from headcam.evaluation.protocols import EncoderFeatures
from headcam.ssl.resnet import ResNet
from headcam.ssl.vit import VisionTransformer

CARD = {"name": "small", "img_size": [16, 16], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
DEPTH = 3


def encoder(num_frames: int = 1) -> VisionTransformer:
    how = {"num_frames": 4, "tubelet_size": 2, "positions": "separable"} if num_frames > 1 else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=DEPTH, num_heads=2, **how)
        for parameter in model.parameters():  # norms that do nothing would hide that one is left out
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture
def batch() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)


def outputs_by_hooks(model: VisionTransformer, images: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What every block gave in an ordinary forward pass, and the features of that pass."""
    seen = []
    handles = [block.register_forward_hook(lambda m, i, out: seen.append(out)) for block in model.blocks]
    with torch.inference_mode():
        features = model.forward_features(images)
    for handle in handles:
        handle.remove()
    return seen, features


@pytest.mark.parametrize("num_frames", [1, 4])
@pytest.mark.parametrize("pool", ["avg", "cls"])
def test_layers_of_a_vit(batch, num_frames, pool):
    model = encoder(num_frames)
    images = torch.from_numpy(batch).permute(0, 3, 1, 2) / 255.0
    images = (images - torch.tensor(CARD["mean"]).view(3, 1, 1)) / torch.tensor(CARD["std"]).view(3, 1, 1)
    if num_frames > 1:  # a still is a clip of equal frames
        images = images.unsqueeze(2).expand(-1, -1, num_frames, -1, -1)
    seen, features = outputs_by_hooks(model, images)
    pooled = [tokens[:, 0] if pool == "cls" else tokens[:, 1:].mean(1) for tokens in [*seen, features]]

    every = LayersExtractor(model, CARD, EncoderFeatures(pool=pool), "cpu")
    table = every.compute(batch)
    assert table.shape == (3, every.dim) == (3, DEPTH * 16) and every.depth == DEPTH
    for k in range(DEPTH):
        for layer in (k + 1, k - DEPTH):
            alone = EncoderExtractor(model, CARD, EncoderFeatures(pool=pool, layer=layer), "cpu")
            assert alone.compute(batch) == pytest.approx(pooled[k].numpy(), abs=1e-5)
        assert table[:, k * 16 : (k + 1) * 16] == pytest.approx(pooled[k].numpy(), abs=1e-5)
    last = EncoderExtractor(model, CARD, EncoderFeatures(pool=pool), "cpu").compute(batch)
    assert last == pytest.approx(pooled[-1].numpy(), abs=1e-5)
    assert not np.allclose(last, pooled[-2].numpy(), atol=1e-2)  # after the final norm, not before


def test_no_more_blocks_run_than_are_needed(batch):
    model, ran = encoder(), []
    for k, block in enumerate(model.blocks):
        block.register_forward_hook(lambda m, i, out, k=k: ran.append(k))
    EncoderExtractor(model, CARD, EncoderFeatures(layer=2), "cpu").compute(batch)
    assert ran == [0, 1]
    ran.clear()
    LayersExtractor(model, CARD, EncoderFeatures(), "cpu").compute(batch)
    assert ran == [0, 1, 2]


def test_layers_of_a_gpt_are_those_that_it_has_one_by_one(gpt_run):
    model, card = load_frozen(gpt_run)
    every = LayersExtractor(model, card, EncoderFeatures(), "cpu")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8))
    batch = np.stack([every.prepare(picture)])
    table = every.compute(batch)
    assert table.shape == (1, 3 * 16)
    for k in range(3):
        alone = EncoderExtractor(*load_frozen(gpt_run, str(k + 1)), EncoderFeatures(), "cpu").compute(batch)
        assert table[:, k * 16 : (k + 1) * 16] == pytest.approx(alone, abs=1e-6)
        by_protocol = EncoderExtractor(model, card, EncoderFeatures(layer=k + 1), "cpu").compute(batch)
        assert by_protocol == pytest.approx(alone, abs=1e-6)


def test_tables_of_other_layers_have_other_names():
    extractors = [
        EncoderExtractor(encoder(), CARD, EncoderFeatures(), "cpu"),
        EncoderExtractor(encoder(), CARD, EncoderFeatures(layer=3), "cpu"),
        LayersExtractor(encoder(), CARD, EncoderFeatures(), "cpu"),
    ]
    assert len({str(e.identity) for e in extractors}) == 3
    assert extractors[0].weights_hash == extractors[1].weights_hash


@pytest.mark.parametrize("layer", [0, 4, -4])
def test_layers_that_are_not_there(layer):
    with pytest.raises(InputError, match=f"layer {layer} is none of an encoder of 3 blocks. Fix: give 1 to 3"):
        EncoderExtractor(encoder(), CARD, EncoderFeatures(layer=layer), "cpu")


def test_encoders_without_blocks(gpt_run):
    trunk = ResNet("resnet50", 32)
    with pytest.raises(InputError, match=r"a ResNet has no transformer blocks .* leave the layer out"):
        EncoderExtractor(trunk, CARD, EncoderFeatures(layer=2), "cpu")
    tokenizer, card = load_frozen(gpt_run / "tokenizer")
    with pytest.raises(InputError, match="a PaletteTokenizer has no transformer blocks"):
        LayersExtractor(tokenizer, card, EncoderFeatures(), "cpu")
    with pytest.raises(InputError, match="layer 2 is asked for, and all layers"):
        LayersExtractor(encoder(), CARD, EncoderFeatures(layer=2), "cpu")
    assert layer_count(encoder()) == 3 and layer_count(load_frozen(gpt_run)[0]) == 3
