"""The two sides of the training benchmark are one model: transformers' GPT-2 and ours, with the same weights."""

import pytest
import torch
import torch.nn.functional as F

from headcam.ssl.vit import Size


def test_loss_and_gradients_equal_those_of_transformers(monkeypatch):
    pytest.importorskip("transformers")
    import gpt_train

    monkeypatch.setattr(gpt_train, "_SIZE", Size(24, 3, 2))
    monkeypatch.setattr(gpt_train, "_GRID", (3, 4))
    monkeypatch.setattr(gpt_train, "_VOCAB", 13)
    ours, peer = gpt_train.same_models()
    torch.manual_seed(0)
    with torch.no_grad():  # biases too, where a swap of two would go unseen
        for parameter in peer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ours.encoder.load_state_dict(gpt_train.from_transformers(peer.state_dict()))  # every key is used, none missing
    tokens = gpt_train.inputs()
    flat = tokens.flatten(1)

    scores = peer(flat[:, :-1]).logits
    torch.testing.assert_close(ours.encoder(flat[:, :-1]), scores, rtol=1e-4, atol=1e-5)
    wanted = F.cross_entropy(scores.flatten(0, 1), flat[:, 1:].flatten())
    found = ours(tokens)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    found.backward()
    wanted.backward()
    gradients = gpt_train.from_transformers({name: p.grad for name, p in peer.named_parameters()})
    assert set(gradients) == {name for name, _ in ours.encoder.named_parameters()}
    for name, parameter in ours.encoder.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-6, msg=name)
