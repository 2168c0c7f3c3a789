"""Masked autoencoders and tokenizers that study pictures: scores, masks, study, state, completions, refusals."""

import pytest
import torch
import yaml

from headcam.errors import InputError
from headcam.randomness import stream
from headcam.recognition_memory.learners.reconstruction import MAELearner, VQLearner, fixed_masks
from headcam.ssl.mae import MAE
from headcam.ssl.stmae import STMAE
from headcam.ssl.weights import save_weights
from headcam.tokenizers.autoencoders.conv_tokenizer import ConvTokenizer
from headcam.tokenizers.autoencoders.palette import PaletteTokenizer
from headcam.tokenizers.autoencoders.video_tokenizer import VideoTokenizer
from headcam.video.transforms import IMAGENET_MEAN, IMAGENET_STD

ENCODER = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
SMALL = ENCODER | {"decoder_embed_dim": 32, "decoder_depth": 1, "decoder_num_heads": 2}
CONV = {"img_size": 16, "ch": 8, "ch_mult": (1, 2, 2), "num_res_blocks": 1, "attn_resolutions": (), "z_channels": 8}


def pictures(count, size=16, seed=0):
    """Plain grounds with noise on them: patches have means and deviations of their own."""
    rng = stream(seed, "test pictures", 0)
    level = rng.integers(0, 200, (count, 3, 1, 1))
    return torch.from_numpy((level + rng.integers(0, 56, (count, 3, size, size))).astype("uint8"))


def study(learner, shown, updates, lr=3e-3):
    optimizer = torch.optim.Adam([p for p in learner.parameters() if p.requires_grad], lr=lr)
    for k in range(updates):
        optimizer.zero_grad()
        learner.study_loss(shown, stream(0, "test study", k)).backward()
        optimizer.step()
        learner.after_update()


def state(learner):
    return {name: value.clone() for name, value in learner.state_dict().items()}


def mae(seed=0, **changes) -> MAELearner:
    learner = MAELearner(**(SMALL | changes))
    learner.begin(seed, pictures(2))
    return learner


def saved_run(folder, objective_class, **arguments):
    """What a run leaves that can be restored: its config and a checkpoint."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        objective = objective_class(**arguments)
        objective.configure_model()
    path = f"{objective_class.__module__}.{objective_class.__name__}"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"class_path": path, "init_args": arguments}}))
    card = objective.card() | {"hours": 2.5}
    torch.save({"state_dict": objective.state_dict(), "headcam_card": card}, folder / "checkpoints" / "last.ckpt")
    return folder


def saved_tokenizer(folder, tokenizer_class=ConvTokenizer, **arguments):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        tokenizer = tokenizer_class(**arguments)
        for name, buffer in tokenizer.named_buffers():
            if name.endswith("initialized"):  # as after training
                buffer.fill_(1)
    architecture = {"class": type(tokenizer).__name__, "arguments": tokenizer.arguments}
    save_weights(folder, tokenizer, {"contract": "card", "version": 1, "name": "t", "architecture": architecture})
    return str(folder)


def vq(tmp_path, quantizer="vq", shown=None, **options) -> VQLearner:
    source = tmp_path / quantizer
    if not source.exists():
        size = {"fsq": 27, "lfq": 16}.get(quantizer, 16)
        saved_tokenizer(source, **CONV, embed_dim=8, codebook_size=size, quantizer=quantizer)
    learner = VQLearner(str(source), **options)
    learner.begin(0, pictures(2))
    return learner


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_the_error_of_a_masked_autoencoder_patch_by_patch(norm_pix_loss):
    """A loop in float64 over pictures, masks and patches, cut out of the picture by hand."""
    learner, shown = mae(norm_pix_loss=norm_pix_loss, num_masks=3), pictures(2, seed=1)
    study(learner, shown, 5)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    expected = []
    for picture in shown:
        image = (picture.double() / 255 - mean) / std
        errors = []
        for mask in learner.masks:
            out = learner.network(image[None].float(), mask[None])
            for place, values in zip(out["mask"].ids_masked[0].tolist(), out["prediction"][0].double().detach()):
                row, column = divmod(place, 4)
                true = image[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].permute(1, 2, 0).flatten()
                if norm_pix_loss:
                    true = (true - true.mean()) / (true.var() + 1e-6).sqrt()
                errors.append((values - true).square().mean())
        assert len(errors) == 3 * 12
        expected.append(torch.stack(errors).mean())
    scores = learner.scores(shown)
    assert scores.dtype == torch.float64
    torch.testing.assert_close(scores, torch.stack(expected), rtol=1e-5, atol=0)


def test_masks_share_out_the_patches_and_are_the_same_everywhere():
    masks = fixed_masks(16, 4, 8)
    assert masks.shape == (8, 16) and ((masks == 0).sum(1) == 4).all()
    assert ((masks[:4] == 0).sum(0) == 1).all() and ((masks[4:] == 0).sum(0) == 1).all()
    assert not torch.equal(masks[:4], masks[4:])
    assert torch.equal(fixed_masks(16, 4, 3), masks[:3]) and torch.equal(mae().masks, mae(seed=3).masks)
    odd = fixed_masks(9, 2, 5)  # 4 masks a round show 8 of 9
    assert ((odd == 0).sum(1) == 2).all() and (odd[:4] == 0).sum(0).max() == 1


def test_a_masked_autoencoder_is_more_familiar_with_what_it_studied_than_its_twin():
    """Two of the same weights, each with pictures of its own: what they learn of pictures as such falls out."""
    one, other, a, b = mae(), mae(), pictures(8, seed=1), pictures(8, seed=2)
    assert torch.equal(one.scores(a), other.scores(a))
    study(one, a, 100)
    study(other, b, 100)
    memory = torch.cat([other.scores(a) - one.scores(a), one.scores(b) - other.scores(b)])
    assert (memory > 0).sum() >= 14 and memory.mean() > 0.2


def test_masks_of_study_come_from_the_stream():
    learner, shown = mae(), pictures(3)
    one, again, other = (learner.study_loss(shown, stream(0, "test", k)).item() for k in (0, 0, 1))
    assert one == again != other


@pytest.mark.parametrize("make", [lambda _: mae(), vq])
def test_scores_do_not_depend_on_the_batch_and_states_go_on_bit_for_bit(make, tmp_path):
    learner, shown = make(tmp_path), pictures(5, seed=1)
    first = state(learner)
    study(learner, shown, 3)
    scores = learner.scores(shown)
    alone = torch.cat([learner.scores(one[None]) for one in shown.flip(0)]).flip(0)
    torch.testing.assert_close(scores, alone, rtol=1e-6, atol=0)
    again = make(tmp_path)
    again.load_state_dict(state(learner))
    assert torch.equal(again.scores(shown), scores)
    learner.begin(0, shown)
    assert all(torch.equal(value, first[name]) for name, value in state(learner).items())
    assert not torch.equal(learner.scores(shown), scores)


def test_random_weights_follow_from_the_seed_trained_ones_do_not(tmp_path):
    a, b, c = (mae(seed).network.decoder_pred.weight for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    run = saved_run(tmp_path / "run", MAE, **SMALL, size="ti", norm_pix_loss=True, mask_ratio=0.5)
    learner = MAELearner(str(run))
    assert learner.card["hours"] == 2.5 and learner.img_size == (16, 16)
    assert learner.network.norm_pix_loss and ((learner.masks == 0).sum(1) == 8).all()  # as trained
    learner.begin(0, pictures(2))
    first = state(learner)
    study(learner, pictures(2), 2)
    learner.begin(1, pictures(2))
    assert all(torch.equal(value, first[name]) for name, value in state(learner).items())


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_completions_keep_the_given_rows_and_know_nothing_of_the_others(norm_pix_loss):
    learner, shown = mae(norm_pix_loss=norm_pix_loss), pictures(3, seed=1)
    study(learner, shown, 20)
    made = learner.complete(shown, 8, stream(0, "test", 0))
    assert made.dtype == torch.uint8 and torch.equal(made[:, :, :8], shown[:, :, :8])
    changed = shown.clone()
    changed[:, :, 8:] = 255 - shown[:, :, 8:]
    assert torch.equal(learner.complete(changed, 8, stream(0, "test", 0))[:, :, 8:], made[:, :, 8:])
    for rows in (0, 6, 16):
        with pytest.raises(InputError, match=f"{rows} of 16 rows .* whose patches are 4 high"):
            learner.complete(shown, rows, stream(0, "test", 0))


def test_a_completion_is_the_prediction_at_its_place():
    """A network that predicts the same values for every patch completes each hidden patch with them."""
    learner, shown = mae(), pictures(2)
    wanted = pictures(1, 4, seed=7)[0]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    values = ((wanted / 255 - mean) / std).permute(1, 2, 0).flatten()
    with torch.no_grad():
        learner.network.decoder_pred.weight.zero_()
        learner.network.decoder_pred.bias.copy_(values)
    made = learner.complete(shown, 4, stream(0, "test", 0))
    assert torch.equal(made[:, :, 4:], wanted.repeat(1, 3, 4).expand(2, -1, -1, -1))


def test_normalised_predictions_get_the_statistics_of_what_is_given():
    """Not those of the hidden patches: twice as bright and as deep below, the completion stays that of the top."""
    learner, wanted = mae(norm_pix_loss=True), torch.from_numpy(stream(0, "test values", 0).standard_normal(48))
    top = pictures(1, seed=1)[:, :, :8] // 3
    shown = torch.cat([top, 2 * top], dim=2)
    with torch.no_grad():
        learner.network.decoder_pred.weight.zero_()
        learner.network.decoder_pred.bias.copy_(wanted)
    made = learner.complete(shown, 8, stream(0, "test", 0))[0, :, 8:12, 4:8]
    mean, std = (torch.tensor(values).view(3, 1, 1).double() for values in (IMAGENET_MEAN, IMAGENET_STD))
    image = (top[0].double() / 255 - mean) / std
    patches = torch.stack([image[:, r : r + 4, c : c + 4].flatten() for r in (0, 4) for c in (0, 4, 8, 12)])
    values = wanted * patches.var(dim=1).mean().sqrt() + patches.mean()
    expected = (values.view(4, 4, 3).permute(2, 0, 1) * std + mean) * 255
    assert (made.double() - expected.clamp(0, 255)).abs().max() < 0.51


@pytest.mark.parametrize("quantizer", ["vq", "ema", "fsq", "lfq", "gumbel"])
def test_a_tokenizer_that_studied_reconstructs_better(tmp_path, quantizer):
    learner, shown, others = vq(tmp_path, quantizer), pictures(6, seed=1), pictures(6, seed=2)
    records = {name: value.clone() for name, value in learner.named_buffers()}
    before = learner.scores(shown), learner.scores(others)
    learner.train()  # whatever mode it is put in
    study(learner, shown, 30)
    after = learner.scores(shown)
    assert after.mean() < 0.7 * before[0].mean()
    assert (before[0] - after).mean() > (before[1] - learner.scores(others)).mean()
    # What codebooks learn outside of the optimizer stays as it was, and nothing is kept for it.
    assert all(torch.equal(value, records[name]) for name, value in learner.named_buffers())
    assert not getattr(learner.tokenizer.quantizer, "_seen", None)


def test_the_error_of_a_tokenizer_in_units_of_pixels(tmp_path):
    learner, shown = vq(tmp_path), pictures(2, seed=1)
    out, _ = learner.tokenizer(shown.float() / 127.5 - 1)
    expected = ((out.double() + 1) / 2 - shown.double() / 255).square().mean(dim=(1, 2, 3)).detach()
    torch.testing.assert_close(learner.scores(shown), expected, rtol=1e-5, atol=0)
    losses = [vq(tmp_path, pixel_loss=loss).study_loss(shown, stream(0, "test", 0)).item() for loss in ("l1", "l2")]
    images = shown.float() / 127.5 - 1
    out, codes = learner.tokenizer(images)
    pixel = (out - images).abs().mean(), (out - images).square().mean()
    assert losses == pytest.approx([(error + codes.loss).item() for error in pixel], rel=1e-5)


def test_sources_that_do_not_fit_are_refused(tmp_path):
    clips = saved_run(tmp_path / "clips", STMAE, **SMALL, size="ti", num_frames=4, tubelet_size=2, mask_ratio=0.5)
    palette = saved_tokenizer(tmp_path / "palette", PaletteTokenizer, img_size=16, codebook_size=4)
    video = {"img_size": 16, "num_frames": 4, "downsample": (2, 4, 4), "ch": 8, "num_res_blocks": 1}
    video = saved_tokenizer(tmp_path / "video", VideoTokenizer, **video, codebook_size=8, embed_dim=8)
    for make, message in (
        (lambda: MAELearner(str(clips)), "clips is a run of stmae, not of a masked autoencoder of pictures"),
        (lambda: MAELearner(str(tmp_path / "weights.safetensors")), "holds an encoder without its decoder"),
        (lambda: MAELearner(str(tmp_path / "nowhere")), "config.yaml does not exist"),
        (lambda: MAELearner(**(SMALL | {"patch_size": 5})), "patch_size 5 does not divide the image side 16"),
        (lambda: MAELearner(**SMALL, num_masks=0), "num_masks is 0"),
        (lambda: mae().scores(pictures(1, 32)), "3 x 32 x 32 do not fit a masked autoencoder for 3 x 16 x 16"),
        (lambda: VQLearner(palette), "palette is a palette, in which nothing learns"),
        (lambda: VQLearner(video), "video is no tokenizer of pictures"),
        (lambda: VQLearner(str(tmp_path / "nowhere")), "nowhere.* does not exist"),
        (lambda: VQLearner(palette, pixel_loss="lpips"), "pixel_loss is 'lpips'"),
        (lambda: vq(tmp_path).complete(pictures(1), 8, stream(0, "test", 0)), "VQLearner completes no pictures"),
        (lambda: vq(tmp_path).begin(0, pictures(1, 8)), "3 x 8 x 8 do not fit a tokenizer for 3 x 16 x 16"),
    ):
        with pytest.raises(InputError, match=message):
            make()
