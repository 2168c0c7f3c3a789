"""Learning rates by layer and by step, against statements by hand."""

import math

import pytest
import torch

from headcam.evaluation.finetuning.head import Classifier
from headcam.evaluation.finetuning.optimizer import build_optimizer, set_rate, steps_below_head
from headcam.evaluation.protocols import Finetune
from headcam.ssl.resnet import ResNet
from headcam.ssl.vit import VisionTransformer


def classifier(encoder):
    return Classifier(encoder, 3, "avg", 0.0, torch.Generator())


def vit():
    return VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=4, num_heads=2, positions="learned")


def test_layers_of_a_vision_transformer():
    model = classifier(vit())
    steps = steps_below_head(model)
    found = {name: steps[p] for name, p in model.named_parameters()}
    for name, below in found.items():
        if name.startswith("encoder.blocks."):
            assert below == 4 - int(name.split(".")[2]), name  # the last block is one step below the head
        elif name.startswith(("encoder.norm", "linear")):
            assert below == 0, name
        else:
            assert below == 5, name  # patches, class token, positions: depth + 1


def test_layers_of_a_resnet():
    model = classifier(ResNet("resnet50", 32))
    steps = steps_below_head(model)
    at = {name: steps[p] for name, p in model.named_parameters()}
    assert at["encoder.conv1.weight"] == at["encoder.bn1.bias"] == 17  # 3 + 4 + 6 + 3 blocks and one
    assert at["encoder.layer1.0.conv1.weight"] == 16 and at["encoder.layer2.0.conv1.weight"] == 13
    assert at["encoder.layer4.2.bn3.weight"] == 1 and at["linear.weight"] == 0


def test_every_weight_is_in_one_group_with_its_rate_and_decay():
    model = classifier(vit())
    optimizer = build_optimizer(model, Finetune(layer_decay=0.5, weight_decay=0.05))
    steps = steps_below_head(model)
    seen = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            seen.append(parameter)
            assert group["scale"] == 0.5 ** steps[parameter]
            (name,) = [n for n, p in model.named_parameters() if p is parameter]
            no_decay = parameter.ndim == 1 or name in ("encoder.cls_token", "encoder.pos_embed")
            assert group["weight_decay"] == (0.0 if no_decay else 0.05), name
    assert len(seen) == len({id(p) for p in seen}) == len(list(model.parameters()))


def test_fixed_positions_stay_fixed():
    encoder = VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, positions="sincos")
    optimizer = build_optimizer(classifier(encoder), Finetune())
    assert not any(p is encoder.pos_embed for group in optimizer.param_groups for p in group["params"])


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        (Finetune(epochs=4), {0: 1.0, 39: 1.0}),
        (Finetune(epochs=4, warmup_epochs=0.5), {0: 0.2, 3: 0.8, 5: 1.0}),
        (
            Finetune(epochs=4, schedule="cosine", warmup_epochs=1),
            {0: 0.1, 10: 1.0, 25: 0.5, 39: 0.5 * (1 + math.cos(math.pi * 29 / 30))},
        ),
    ],
)
def test_rates_by_step(protocol, expected):
    optimizer = torch.optim.AdamW([{"params": [torch.nn.Parameter(torch.zeros(1))], "scale": 0.25}], lr=0.0)
    for step, factor in expected.items():
        set_rate(optimizer, protocol, 2e-3, step, steps_per_epoch=10)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(2e-3 * 0.25 * factor)
