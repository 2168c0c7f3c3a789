"""The masked autoencoder against transformers' ViTMAE and timm's ViT, and what must hold for any."""

from contextlib import nullcontext
from functools import partialmethod

import pytest
import timm
import torch
from safetensors.torch import load_file

from headcam.cli import main
from headcam.errors import InputError
from headcam.ssl.mae import MAE, MaskedAutoencoder, normalize_patches
from headcam.ssl.masking import num_visible, patchify, random_mask, unpatchify
from headcam.ssl.positions import sincos_2d
from headcam.ssl.vit import VisionTransformer


def small(**changes) -> MaskedAutoencoder:
    settings = dict(img_size=64, patch_size=16, embed_dim=48, depth=3, num_heads=4)
    settings |= dict(decoder_embed_dim=32, decoder_depth=2, decoder_num_heads=4)
    return MaskedAutoencoder(**(settings | changes))


def transformers_twin(ours: MaskedAutoencoder):
    """A transformers ViTMAEForPreTraining; `ours` takes over its weights, strictly: every key is used, none missing."""
    from mae_step import from_transformers
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    encoder, decoder = ours.encoder, ours.decoder_blocks
    twin = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=encoder.embed_dim,
            num_hidden_layers=len(encoder.blocks),
            num_attention_heads=encoder.blocks[0].attn.num_heads,
            intermediate_size=4 * encoder.embed_dim,
            image_size=encoder.img_size[0],
            patch_size=encoder.patch_size,
            decoder_hidden_size=ours.decoder_embed.out_features,
            decoder_num_hidden_layers=len(decoder),
            decoder_num_attention_heads=decoder[0].attn.num_heads,
            decoder_intermediate_size=4 * ours.decoder_embed.out_features,
            mask_ratio=ours.mask_ratio,
            norm_pix_loss=ours.norm_pix_loss,
            layer_norm_eps=1e-6,
        )
    )
    with torch.no_grad():  # these it builds at zero; biases too, where a swap of two would go unseen
        twin.vit.embeddings.position_embeddings.copy_(ours.encoder.pos_embed)
        twin.decoder.decoder_pos_embed.copy_(ours.decoder_pos_embed)
        for parameter in twin.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    ours.load_state_dict(from_transformers(twin.state_dict()))
    return twin


@pytest.mark.parametrize("norm_pix_loss", [True, False])
@pytest.mark.parametrize("decoder_depth", [1, 3])
def test_loss_and_gradients_equal_those_of_transformers(norm_pix_loss, decoder_depth):
    torch.manual_seed(0)
    ours = small(norm_pix_loss=norm_pix_loss, decoder_depth=decoder_depth)
    twin = transformers_twin(ours)
    images, noise = torch.randn(3, 3, 64, 64), torch.rand(3, 16)
    out = ours(images, noise)
    theirs = twin(images, noise=noise)
    assert abs(out["loss"] - theirs.loss) / theirs.loss < 1e-5
    out["loss"].backward()
    theirs.loss.backward()
    pairs = [
        (ours.encoder.patch_embed.proj.weight, twin.vit.embeddings.patch_embeddings.projection.weight),
        (ours.mask_token, twin.decoder.mask_token),
        (ours.decoder_pred.weight, twin.decoder.decoder_pred.weight),
        (ours.encoder.blocks[0].mlp.fc1.weight, twin.vit.layers[0].mlp.fc1.weight),
    ]
    for a, b in pairs:
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6)
    # The predictions sit where the peer has them, once put back in image order.
    picked = theirs.logits.gather(1, out["mask"].ids_masked.unsqueeze(-1).expand_as(out["prediction"]))
    torch.testing.assert_close(out["prediction"], picked, rtol=1e-4, atol=1e-5)


def test_position_table_equals_that_of_transformers():
    from transformers import ViTMAEConfig, ViTMAEModel

    model = ViTMAEModel(ViTMAEConfig(hidden_size=48, num_hidden_layers=1, num_attention_heads=4, image_size=64))
    model.embeddings.patch_embeddings.projection._is_hf_initialized = False  # else it keeps the zeros it was built with
    model.embeddings.initialize_weights()
    torch.testing.assert_close(sincos_2d(48, (4, 4)), model.embeddings.position_embeddings.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("img_size, patch_size", [(64, 16), ((48, 80), 16), (56, 14), (32, 8)])
def test_encoder_weights_load_into_plain_timm(img_size, patch_size):
    torch.manual_seed(0)
    ours = VisionTransformer(img_size, patch_size, embed_dim=48, depth=2, num_heads=4).eval()
    theirs = timm.models.VisionTransformer(
        img_size=img_size, patch_size=patch_size, embed_dim=48, depth=2, num_heads=4, num_classes=0
    ).eval()
    theirs.load_state_dict(ours.state_dict())  # strict
    images = torch.randn(2, 3, *ours.img_size)
    torch.testing.assert_close(ours.forward_features(images), theirs.forward_features(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "size, patch, img, parameters",
    # original_ssl: published counts of the humanlike-vits encoders (table 1.8) and S/B/L at patch 16
    [
        ("s", 14, 224, 21_619_584),
        ("b", 14, 224, 85_706_496),
        ("l", 14, 224, 303_178_752),
        ("h", 14, 224, 630_764_800),
        ("h", 14, 476, 631_916_800),
        ("s", 16, 224, 21_665_664),
        ("b", 16, 224, 85_798_656),
        ("l", 16, 224, 303_301_632),
    ],
)
def test_parameter_counts_are_the_published_ones(size, patch, img, parameters):
    from headcam.ssl.vit import SIZES

    named = SIZES[size]
    with torch.device("meta"):
        model = VisionTransformer(img, patch, 3, named.embed_dim, named.depth, named.num_heads)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_visible_patches_do_not_enter_the_loss_and_hidden_ones_do_not_enter_the_encoder():
    torch.manual_seed(0)
    model = small(norm_pix_loss=False)
    images, noise = torch.randn(2, 3, 64, 64), torch.rand(2, 16)
    mask = random_mask(noise, model.num_visible(16))
    patches = patchify(images, 16)
    latent = model.encoder.forward_patches(patches, mask.ids_keep)
    hidden_changed = patches.scatter_add(1, mask.ids_masked.unsqueeze(-1).expand(-1, -1, 768), torch.ones(2, 12, 768))
    torch.testing.assert_close(latent, model.encoder.forward_patches(hidden_changed, mask.ids_keep), rtol=0, atol=0)
    target = model.forward_loss(patches.gather(1, mask.ids_masked.unsqueeze(-1).expand(-1, -1, 768)), torch.zeros(1))
    by_hand = sum(
        patches[b, k].double().square().mean() for b in range(2) for k in range(16) if mask.as_binary()[b, k]
    ) / (2 * 12)
    assert abs(float(target) - float(by_hand)) < 1e-6


def test_patchify_has_an_inverse_and_mae_order():
    images = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).view(2, 3, 4, 6)
    patches = patchify(images, 2)
    assert patches.shape == (2, 6, 12)
    # second patch of the first row: pixel (0, 2), all channels first
    assert patches[0, 1, :3].tolist() == images[0, :, 0, 2].tolist()
    assert torch.equal(unpatchify(patches, 2, (2, 3)), images)


def test_mask_counts_are_exact():
    assert num_visible(100, 0.9) == 10  # int(100 * (1 - 0.9)) would be 9
    assert num_visible(196, 0.75) == 49
    assert num_visible(256, 0.8) == 51
    assert num_visible(2048, 0.9) == 204
    assert num_visible(4, 0.99) == 1
    mask = random_mask(torch.tensor([[0.3, 0.1, 0.1, 0.9]]), 2)
    assert mask.ids_keep.tolist() == [[1, 2]] and mask.ids_masked.tolist() == [[0, 3]]
    assert mask.as_binary().tolist() == [[1, 0, 0, 1]]


def test_normalized_patches_have_mean_zero_and_unit_deviation():
    x = normalize_patches(torch.randn(2, 5, 48) * 3 + 7)
    torch.testing.assert_close(x.mean(-1), torch.zeros(2, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std(-1), torch.ones(2, 5), atol=1e-4, rtol=0)


def test_reconstruction_keeps_visible_patches():
    torch.manual_seed(0)
    model = small(img_size=(48, 64))
    images, noise = torch.randn(2, 3, 48, 64), torch.rand(2, 12)
    masked, completed = model.reconstruct(images, noise)
    binary = random_mask(noise, model.num_visible(12)).as_binary()
    area = unpatchify(binary.unsqueeze(-1).expand(-1, -1, 768), 16, (3, 4)).bool()
    assert torch.equal(masked[~area], images[~area]) and torch.equal(completed[~area], images[~area])
    assert (masked[area] == 0).all() and not torch.equal(completed[area], images[area])


def test_a_network_works_at_another_resolution_as_one_that_is_built_for_it():
    """The same weights and tables in a network of that size: same loss, same completion, same number of masked ones."""
    torch.manual_seed(0)
    model = small()
    images, noise = torch.randn(2, 3, 32, 96), torch.rand(2, 12)
    other = small(img_size=(32, 96))
    weights = model.state_dict()
    for name, width in (("encoder.pos_embed", 48), ("decoder_pos_embed", 32)):
        weights[name] = sincos_2d(width, (2, 6), field=(4, 4))  # the field of view of the 4 x 4 grid
    other.load_state_dict(weights)
    ours, theirs = model(images, noise), other(images, noise)
    assert ours["prediction"].shape == (2, 9, 768)
    torch.testing.assert_close(ours["loss"], theirs["loss"], rtol=1e-6, atol=0)
    for a, b in zip(model.reconstruct(images, noise), other.reconstruct(images, noise)):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def objective(**changes) -> MAE:
    settings = dict(img_size=64, patch_size=16, embed_dim=48, depth=1, num_heads=4)
    settings |= dict(decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=4)
    return MAE(**(settings | changes))


def test_progressive_resolution_declares_its_stages():
    module = objective(resolutions={200: 64, 0: 32, 100: 48})
    stages = [(step, law.name, law.size, law.noise) for step, (law,) in module.view_stages]
    assert stages == [(0, "image", (32, 32), 4), (100, "image", (48, 48), 9), (200, "image", (64, 64), 16)]
    assert module.views == module.view_stages[-1][1]  # what is held out is looked at in full size
    module.configure_model()
    for _, (law,) in module.view_stages:
        batch = {"image": torch.zeros(2, 3, *law.size, dtype=torch.uint8), "noise": torch.rand(2, law.noise)}
        assert torch.isfinite(module.losses(batch)["loss"])
    assert objective().view_stages == [(0, objective().views)]


class Killed(Exception):
    """What the run below dies of."""


def test_a_run_changes_resolution_on_its_way_and_after_a_restart(fit_config, tmp_path, monkeypatch):
    """Killed in the first stage and resumed, it ends with the weights of the run that was never stopped."""
    seen: list[tuple[bool, int]] = []  # whether training, and side, of every batch with data (not of what is counted)
    losses = MAE.losses

    def watched(self, batch, lasting=99):
        if not batch["image"].is_meta:
            seen.append((self.training, batch["image"].shape[-1]))
            if sum(training for training, _ in seen) > lasting:
                raise Killed
        return losses(self, batch)

    config = fit_config(model={"resolutions": {0: 16, 3: 32}}, trainer={"val_check_interval": 2, "max_steps": 5})

    def fit(run: str, lasting: int = 99) -> list[int]:
        """Sides of the training batches of a run that dies after `lasting` of them."""
        seen.clear()
        monkeypatch.setattr(MAE, "losses", partialmethod(watched, lasting=lasting))
        command = ["fit", "--config", str(config), "--out", str(tmp_path / run), "--checkpoint_every", "2"]
        with pytest.raises(Killed) if lasting < 5 else nullcontext():
            assert main(command) == 0
        assert {side for training, side in seen if not training} == {32}  # validation is at full size
        return [side for training, side in seen if training][:lasting]

    assert fit("straight") == [16, 16, 16, 32, 32]
    assert fit("stopped", lasting=2) == [16, 16]
    assert fit("stopped") == [16, 32, 32]
    straight, stopped = (load_file(tmp_path / run / "weights.safetensors") for run in ("straight", "stopped"))
    assert all(torch.equal(value, stopped[name]) for name, value in straight.items())


@pytest.mark.parametrize(
    "changes, telling",
    [
        (dict(resolutions={10: 64}), r"model.resolutions start at step 10"),
        (dict(resolutions={}), r"model.resolutions start at step none"),
        (dict(resolutions={0: 32, 10: 48}), r"resolutions end with 48 x 48, but img_size is 64 x 64"),
        (dict(resolutions={0: 40, 10: 64}), r"patch_size 16 does not divide the image side 40"),
        (dict(resolutions={0: 16, 10: 64}), r"mask_ratio 0.75 masks none of 1 patches"),
        (dict(img_size=(64, 32), resolutions={0: 64}), r"resolutions end with 64 x 64, but img_size is 64 x 32"),
        (dict(positions="separable"), r"positions 'separable' do not fit 1 frames"),
    ],
)
def test_a_schedule_of_resolutions_that_cannot_work_is_refused(changes, telling):
    with pytest.raises(InputError, match=telling):
        objective(**changes)


def test_learned_positions_learn_and_go_into_the_card():
    module = objective(positions="learned")
    assert module.card()["architecture"]["arguments"]["positions"] == "learned"
    module.configure_model()
    torch.manual_seed(0)
    batch = {"image": torch.randint(0, 256, (64, 3, 64, 64), dtype=torch.uint8), "noise": torch.rand(64, 16)}
    module.losses(batch)["loss"].backward()
    assert module.encoder.pos_embed.grad.abs().sum(dim=-1).min() > 0  # every place, and the class token
    assert not module.network.decoder_pos_embed.requires_grad


def test_another_mask_ratio_can_be_set_within_bounds():
    model = small()
    model.set_mask_ratio(0.5)
    assert model(torch.zeros(1, 3, 64, 64), torch.rand(1, 16))["prediction"].shape[1] == 8
    with pytest.raises(InputError, match="mask_ratio 0 masks none of 16 patches"):
        model.set_mask_ratio(0.0)


def test_it_learns_a_handful_of_pictures_and_not_noise():
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(0, 6, 32), torch.linspace(0, 6, 32), indexing="ij")
    pictures = torch.stack([torch.sin(x + k) + torch.cos(y * (1 + k / 4)) for k in range(8)])
    pictures = pictures.unsqueeze(1).expand(-1, 3, -1, -1).contiguous()
    final = {}
    for name in ("pictures", "noise"):
        torch.manual_seed(1)
        model = small(img_size=32, patch_size=8, norm_pix_loss=False)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(300):
            data = pictures if name == "pictures" else torch.randn_like(pictures)
            loss = model(data, torch.rand(8, 16))["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        final[name] = float(loss.detach()) / float(data.var())
    assert final["pictures"] < 0.35
    assert final["noise"] > 0.9


@pytest.mark.parametrize(
    "changes, telling",
    [
        (dict(patch_size=15), r"patch_size 15 does not divide the image side 64"),
        (dict(img_size=(64, 72)), r"patch_size 16 does not divide the image side 72"),
        (dict(mask_ratio=75.0), r"mask_ratio must be in \[0, 1\), got 75.*did you mean 0.75"),
        (dict(mask_ratio=0.0), r"mask_ratio 0 masks none of 16 patches"),
        (dict(num_heads=5), r"5 heads do not divide embed_dim 48"),
        (dict(decoder_num_heads=5), r"5 decoder heads do not divide decoder_embed_dim 32"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_fix(changes, telling):
    with pytest.raises(InputError, match=telling):
        small(**changes)


@pytest.mark.slow
def test_2048_pixels_in_patches_of_16_take_a_step():
    """16,384 patches, near the number of the retina's cones; attention never forms its matrix."""
    model = small(img_size=2048, patch_size=16, embed_dim=32, depth=1, decoder_depth=1, mask_ratio=0.8)
    out = model(torch.randn(1, 3, 2048, 2048), torch.rand(1, 16384))
    out["loss"].backward()
    assert out["prediction"].shape == (1, 16384 - 3276, 768) and torch.isfinite(out["loss"])
