"""Layers of GPTs and tokenizers as encoders: which numbers they give, their random twins, and what is refused."""

import pytest
import torch

from headcam.errors import InputError
from headcam.files import sha256_file
from headcam.randomness import stream
from headcam.ssl.weights import save_weights
from headcam.tokenizers.autoencoders.palette import PaletteTokenizer
from headcam.tokenizers.autoencoders.video_tokenizer import VideoTokenizer
from headcam.tokenizers.autoregression.encoder import TokenEncoder, load_token_encoder
from headcam.tokenizers.autoregression.gpt import GPT
from headcam.tokenizers.autoregression.loading import class_number, load_gpt_and_tokenizer

SIZE = (6, 8)


def gpt(vocab_size=8, grid=SIZE, start_token="learned", num_classes=0, seed=1):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GPT(vocab_size, grid, 24, 4, 2, start_token=start_token, num_classes=num_classes).eval()


def palette(size=SIZE, colours=8, seed=0):
    tokenizer = PaletteTokenizer(size, colours)
    tokenizer.quantizer.codebook.copy_(torch.from_numpy(stream(seed, "test palette", 0).uniform(0, 255, (colours, 3))))
    return tokenizer.eval()


def clips():
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return VideoTokenizer(16, 4, (2, 8, 8), ch=4, num_res_blocks=1, codebook_size=16, embed_dim=8).eval()


def card(model, **more):
    architecture = {"class": type(model).__name__, "arguments": model.arguments}
    return {"contract": "card", "version": 1, "name": "small", "architecture": architecture, **more}


def save_run(folder, model, tokenizer):
    """A run folder of a GPT with its tokenizer, as `headcam fit` leaves it."""
    path = save_weights(folder / "tokenizer", tokenizer, card(tokenizer))
    save_weights(folder, model, card(model, img_size=list(model.img_size), tokenizer={"hash": sha256_file(path)}))
    return folder


@pytest.fixture
def images():
    pixels = torch.from_numpy(stream(0, "test pixels", 0).integers(0, 256, (3, 3, *SIZE), dtype="uint8"))
    return pixels, palette().normalize(pixels)


@pytest.mark.parametrize(("layer", "block"), [(1, 1), (3, 3), (-1, 4), (-3, 2), ("2", 2), ("-4", 1), (None, 2)])
def test_layers_of_a_gpt_are_its_hidden_states(images, layer, block):
    model, tokenizer = gpt(), palette()
    encoder = TokenEncoder(tokenizer, model, layer)
    made = encoder.forward_features(images[1])
    assert encoder.layer == block and (encoder.embed_dim, encoder.num_prefix_tokens) == (24, 0)
    found = {}
    hooks = [b.register_forward_hook(lambda m, i, o, k=k: found.update({k: o})) for k, b in enumerate(model.blocks, 1)]
    with torch.no_grad():
        model(tokenizer.encode(images[0]).flatten(1)[:, :-1])
    for hook in hooks:
        hook.remove()
    expected = model.norm(found[block]) if block == 4 else found[block]
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-6)
    assert made.shape == (3, 48, 24)


def test_layers_of_a_tokenizer(images):
    tokenizer = palette()
    latents = TokenEncoder(tokenizer).forward_features(images[1])
    torch.testing.assert_close(latents, images[0].float().flatten(2).transpose(1, 2))
    quantized = TokenEncoder(tokenizer, None, "quantized").forward_features(images[1])
    colours = tokenizer.quantizer.codebook[tokenizer.encode(images[0]).flatten(1)]
    assert torch.equal(quantized, colours) and quantized.shape == (3, 48, 3)


def test_a_picture_is_a_clip_of_equal_frames_to_models_of_clips():
    tokenizer = clips()
    pixels = torch.from_numpy(stream(1, "test pixels", 0).integers(0, 256, (2, 3, 16, 16), dtype="uint8"))
    normalised, still = tokenizer.normalize(pixels), pixels.unsqueeze(2).expand(-1, -1, 4, -1, -1)
    for layer in ("latents", "quantized"):
        made = TokenEncoder(tokenizer, None, layer).forward_features(normalised)
        assert torch.equal(made, TokenEncoder(tokenizer, None, layer).forward_features(tokenizer.normalize(still)))
        assert made.shape == (2, 8, 8)
    model = gpt(16, tokenizer.grid)
    made = TokenEncoder(tokenizer, model, 4).forward_features(normalised)
    with torch.no_grad():
        assert torch.equal(made, model.features(tokenizer.encode(still), 4))


def test_the_random_twin_of_a_gpt_keeps_its_tokenizer(images):
    encoder = TokenEncoder(palette(), gpt(), 3)
    twin, again, other = encoder.random_twin(5), encoder.random_twin(5), encoder.random_twin(6)
    assert twin.layer == 3 and twin.tokenizer is encoder.tokenizer
    made = [one.forward_features(images[1]) for one in (encoder, twin, again, other)]
    assert torch.equal(made[1], made[2])
    assert not torch.allclose(made[0], made[1]) and not torch.allclose(made[1], made[3])


def test_the_random_twin_of_a_tokenizer_is_all_random():
    tokenizer = clips()
    twin = TokenEncoder(tokenizer, None, "quantized").random_twin(5)
    assert twin.layer == "quantized" and twin.tokenizer.arguments == tokenizer.arguments
    weights = (t.tokenizer.encoder.conv_out.state_dict() for t in (twin, TokenEncoder(tokenizer)))
    assert all(not torch.equal(a, b) for a, b in zip(*(list(w.values())[:1] for w in weights)))


def test_from_a_run_folder_with_a_card_for_pictures(tmp_path, images):
    run = save_run(tmp_path / "run", gpt(), palette())
    encoder, about = load_token_encoder(run, "3")
    assert torch.equal(
        encoder.forward_features(images[1]), TokenEncoder(palette(), gpt(), 3).forward_features(images[1])
    )
    assert (about["name"], about["layer"], about["img_size"]) == ("small, layer 3", 3, [6, 8])
    assert (about["mean"], about["std"]) == ([0, 0, 0], [1, 1, 1])
    own, about = load_token_encoder(run / "tokenizer")
    assert own.gpt is None and about["name"] == "small, layer latents"


def test_the_tokenizer_is_found_beside_weights_and_checkpoints(tmp_path):
    run = save_run(tmp_path / "run", gpt(), palette())
    for source in (run, run / "weights.safetensors"):
        _, tokenizer, about = load_gpt_and_tokenizer(source)
        assert torch.equal(tokenizer.quantizer.codebook, palette().quantizer.codebook) and about["name"] == "small"
    (run / "tokenizer").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="holds no tokenizer"):
        load_gpt_and_tokenizer(run)
    assert load_gpt_and_tokenizer(run, tmp_path / "elsewhere")[1].vocab_size == 8


def test_another_tokenizer_is_refused(tmp_path):
    run = save_run(tmp_path / "run", gpt(), palette())
    other = save_run(tmp_path / "other", gpt(9), palette(colours=9))
    save_weights(tmp_path / "same_shape", palette(seed=1), card(palette()))
    save_weights(tmp_path / "unknown", gpt(), card(gpt(), img_size=[6, 8]))  # a card that names no tokenizer
    for source, tokenizer, message in (
        (run, tmp_path / "same_shape", "trained on tokens of another tokenizer"),
        (run, other, "trained on tokens of another tokenizer"),
        (tmp_path / "unknown", other, "a vocabulary of 9, where the model has 8"),
    ):
        with pytest.raises(InputError, match=message):
            load_gpt_and_tokenizer(source, tokenizer)
    with pytest.raises(InputError, match="device abacus cannot be used"):
        load_gpt_and_tokenizer(run, device="abacus")


def test_classes_go_by_number_or_by_the_name_in_the_card():
    about = {"classes": ["kitchen", "street"]}
    assert [class_number(about, label) for label in ("street", "0", None)] == [1, 0, None]
    with pytest.raises(InputError, match=r"no class stret. Fix: give one of kitchen, street"):
        class_number(about, "stret")
    with pytest.raises(InputError, match="give a number, if it has classes"):
        class_number({}, "street")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TokenEncoder(palette(), gpt(), 5), "layer 5 is none of a GPT of 4 blocks"),
        (lambda: TokenEncoder(palette(), gpt(), 0), "layer 0 is none"),
        (lambda: TokenEncoder(palette(), gpt(), "latents"), "layer latents is none of a GPT"),
        (lambda: TokenEncoder(palette(), None, "3"), "layer 3 is none of a tokenizer"),
        (lambda: TokenEncoder(palette(), gpt(start_token="class", num_classes=2)), "wants a class"),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(InputError, match=message):
        call()
