"""DINO against its formulas written out, against lightly's parts, and what must hold whatever the settings."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import yaml

from headcam.cli import main
from headcam.errors import InputError
from headcam.ssl.dino import DINO
from headcam.ssl.dino_network import DINOHead, DINONetwork, dino_loss
from headcam.ssl.vit import VisionTransformer

SMALL = dict(
    size="ti", img_size=32, local_crops_size=16, patch_size=8, embed_dim=48, depth=2, num_heads=4,
    out_dim=96, head_hidden_dim=64, head_bottleneck_dim=32, local_crops_number=3,
)  # fmt: skip


def small(**changes) -> DINO:
    """An objective with its network, in training mode."""
    torch.manual_seed(0)
    module = DINO(**(SMALL | changes))
    module.configure_model()
    return module.train()


def pixels(module: DINO, batch_size: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    batch = module.example_batch(batch_size, "cpu")
    return {
        k: torch.randint(0, 256, x.shape, dtype=x.dtype, generator=generator)
        if x.dtype == torch.uint8
        else torch.rand(x.shape, generator=generator)
        for k, x in batch.items()
    }


def training(module: DINO, max_steps: int = 10, step: int = 0, batch_size: int = 4) -> SimpleNamespace:
    """Give `module` what it asks of a trainer."""
    module._trainer = SimpleNamespace(
        max_steps=max_steps, global_step=step, log_every_n_steps=1, world_size=1, accumulate_grad_batches=1,
        datamodule=SimpleNamespace(batch_size=batch_size), callbacks=[],
    )  # fmt: skip
    return module._trainer


def plain_loss(student: list[torch.Tensor], teacher: list[torch.Tensor], center, student_temp, teacher_temp):
    """Algorithm 1 of the paper with multi-crop (equation 3): every pair of different views, one after the other."""
    total, terms = 0.0, 0
    for q, t in enumerate(teacher):
        t = F.softmax((t - center) / teacher_temp, dim=-1)
        for v, s in enumerate(student):
            if v != q:
                total = total + (-t * F.log_softmax(s / student_temp, dim=-1)).sum(-1).mean()
                terms += 1
    return total / terms


@pytest.mark.parametrize("num_local", [0, 1, 8])
def test_the_loss_and_its_gradient_are_those_of_the_double_loop(num_local):
    torch.manual_seed(1)
    student = [torch.randn(5, 300, dtype=torch.float64).mul_(3).requires_grad_() for _ in range(2 + num_local)]
    teacher, center = [torch.randn(5, 300, dtype=torch.float64) for _ in range(2)], torch.randn(300).double()
    wanted = plain_loss(student, teacher, center, 0.1, 0.04)
    gradients = torch.autograd.grad(wanted, student)

    views = torch.stack(student, 1) / 0.1
    t = ((torch.stack(teacher, 1) - center) / 0.04).softmax(-1)
    ours = dino_loss(views[:, :2], views[:, 2:] if num_local else None, t)
    assert ours.item() == pytest.approx(wanted.item(), rel=1e-12)
    for a, b in zip(torch.autograd.grad(ours, student), gradients):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    single = dino_loss(views[:, :2].float(), views[:, 2:].float() if num_local else None, t.float())
    assert single.item() == pytest.approx(wanted.item(), rel=1e-6)  # 32 bits are enough


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
def test_loss_and_head_equal_those_of_lightly():
    heads = pytest.importorskip("lightly.models.modules.heads")
    from lightly.loss import DINOLoss

    torch.manual_seed(2)
    ours, theirs = DINOHead(48, 96, 64, 32), heads.DINOProjectionHead(48, 64, 32, 96)
    linears = [m for m in theirs.layers if isinstance(m, torch.nn.Linear)]
    for a, b in zip((m for m in ours.mlp if isinstance(m, torch.nn.Linear)), linears, strict=True):
        a.load_state_dict(b.state_dict())
    with torch.no_grad():
        ours.last_layer.weight_v.copy_(theirs.last_layer.weight_v)
    x = torch.randn(7, 48)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours(x, 0.1), theirs(x) / 0.1, rtol=1e-5, atol=1e-5)
    for head in (ours.double(), theirs.double()):
        head(x.double()).pow(2).sum().backward()
    torch.testing.assert_close(ours.mlp[0].weight.grad, linears[0].weight.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ours.last_layer.weight_v.grad, theirs.last_layer.weight_v.grad, rtol=1e-9, atol=1e-12)

    loss = DINOLoss(96)
    loss.center.copy_(torch.randn(96) / 9)
    student, teacher = [torch.randn(5, 96) for _ in range(6)], [torch.randn(5, 96) for _ in range(2)]
    probabilities = ((torch.stack(teacher, 1) - loss.center[0]) / 0.05).softmax(-1)
    views = torch.stack(student, 1) / 0.1
    assert float(dino_loss(views[:, :2], views[:, 2:], probabilities)) == pytest.approx(
        float(loss(teacher, student, teacher_temp=0.05)), rel=1e-6
    )


@pytest.mark.parametrize("backbone", ["vit", "resnet50"])
def test_grouped_crops_give_what_a_call_per_crop_gives(backbone):
    conv = dict(backbone=backbone, embed_dim=None, depth=None, num_heads=None, local_crops_number=2)
    module = small(**conv) if backbone != "vit" else small()
    network = module.network.eval()  # batch normalisation by running statistics: crops do not meet
    with torch.no_grad():  # teacher and centre as in the midst of training
        for p in (*network.encoder.parameters(), *network.head.parameters()):
            p.add_(0.01 * torch.randn_like(p))
        network.center.normal_(std=0.1)
    batch = pixels(module, batch_size=2)
    views = {k: module.normalize(v.flatten(0, 1)).view(v.shape) for k, v in batch.items()}

    def output(encoder, head, x):
        if backbone == "vit":
            side = x.shape[-1] // 8
            x = x.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
            return head(encoder.forward_patches(x, grid=(side, side))[:, 0])
        return head(encoder.forward_features(x).mean(1))

    student = [output(network.student_encoder, network.student_head, x) for k in views for x in views[k].unbind(1)]
    with torch.no_grad():
        teacher = [output(network.encoder, network.head, x) for x in views["global"].unbind(1)]
    wanted = plain_loss(student, teacher, network.center, 0.1, 0.04)
    module.eval()
    ours = module.losses(batch)["loss"]
    assert float(ours.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    parameters = [p for p in network.parameters() if p.requires_grad]
    for a, b in zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(wanted, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_crops_packed_into_one_sequence_give_the_same(monkeypatch):
    module = small(drop_path_rate=0.5)
    batch, plain = pixels(module), None
    for backend in ("sdpa", "xformers"):  # which computes by sdpa where there is no CUDA
        for block in module.network.student_encoder.blocks:
            block.attn.backend = backend
        loss = module.losses(batch)["loss"].detach()
        plain = loss if plain is None else plain
    called = []
    packed = VisionTransformer.forward_packed
    monkeypatch.setattr(VisionTransformer, "forward_packed", lambda *a: called.append(1) or packed(*a))
    assert float(module.losses(batch)["loss"].detach()) == pytest.approx(float(plain), rel=1e-5) and called


def test_the_teacher_is_an_average_of_the_student_and_gets_no_gradient():
    module = small(momentum_teacher=0.9, use_bn_in_head=True)
    trainer, network = training(module, max_steps=100), module.network
    for a, b in zip(network.encoder.parameters(), network.student_encoder.parameters(), strict=True):
        assert torch.equal(a, b) and not a.requires_grad  # equal at the start
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1.0)
    wanted = {k: v.clone().double() for k, v in network.state_dict().items() if k.startswith(("encoder", "head"))}
    trained = dict(network.named_parameters())
    for step in range(3):
        trainer.global_step = module._stepping = step
        module.losses(pixels(module, seed=step))["loss"].backward()
        assert all(p.grad is None for p in (*network.encoder.parameters(), *network.head.parameters()))
        optimizer.step()
        optimizer.zero_grad()
        module.after_optimizer_step()
        m = 1 - 0.1 * 0.5 * (1 + math.cos(math.pi * step / 100))
        for key in wanted:
            if key in trained:
                student = trained[f"student_{key}"].detach().double()
                wanted[key] = m * wanted[key] + (1 - m) * student
    for key, value in wanted.items():
        if key in trained:
            torch.testing.assert_close(trained[key].detach().double(), value, rtol=1e-5, atol=1e-7)
    assert network.head.mlp[1].num_batches_tracked == 3  # running statistics are the teacher's own


def test_the_centre_is_the_moving_mean_of_all_outputs_of_a_step():
    """One batch, two micro-batches, and two processes that add up their sums: the same centre."""
    centers = []
    for parts in (1, 2):
        module = small()
        training(module)
        batch = pixels(module, 4)
        for k in range(parts):
            module.losses({key: x[k * 4 // parts : (k + 1) * 4 // parts] for key, x in batch.items()})
        module.after_optimizer_step()
        centers.append(module.network.center)
    torch.testing.assert_close(centers[0], centers[1], rtol=1e-5, atol=1e-7)
    module = small()
    views = module.normalize(pixels(module)["global"].flatten(0, 1))
    with torch.no_grad():
        outputs = module.network.head(module.network.encoder.forward_features(views)[:, 0])
    torch.testing.assert_close(centers[0], 0.1 * outputs.mean(0), rtol=1e-4, atol=1e-6)


def test_processes_share_one_centre(monkeypatch):
    network = DINONetwork(lambda: VisionTransformer(16, 8, embed_dim=16, depth=1, num_heads=2, positions="learned"), 8)
    mine, theirs = torch.randn(3, 2, 8), torch.randn(3, 2, 8)

    def add_up(tensor: torch.Tensor) -> int:
        tensor += theirs.sum((0, 1))
        return 2

    monkeypatch.setattr("headcam.ssl.dino_network.sum_over_processes", add_up)
    network.note_outputs(mine)
    network.update_center(0.9)
    torch.testing.assert_close(network.center, 0.1 * torch.cat([mine, theirs]).mean((0, 1)))


def test_a_skipped_step_moves_neither_teacher_nor_centre():
    module = small()
    training(module)
    module.losses(pixels(module))
    with torch.no_grad():
        for p in module.network.student_encoder.parameters():
            p.add_(1)
    before = {k: v.clone() for k, v in module.network.state_dict().items()}
    module.step_check.bad = torch.tensor(1.0)
    module.after_optimizer_step()
    assert all(torch.equal(v, before[k]) for k, v in module.network.state_dict().items())
    module.step_check.bad = torch.tensor(0.0)
    module.losses(pixels(module))
    module.after_optimizer_step()
    after = module.network.state_dict()
    assert not torch.equal(after["center"], before["center"])
    assert not torch.equal(after["encoder.cls_token"], before["encoder.cls_token"])


def test_schedules_follow_the_step():
    module = small(
        warmup_teacher_temp=0.02, warmup_teacher_temp_steps=10, teacher_temp=0.07, weight_decay_end=0.4,
        momentum_teacher=0.996, freeze_last_layer_steps=2,
    )  # fmt: skip
    module.optimizer_settings.weight_decay = 0.04
    trainer = training(module, max_steps=100)
    assert [module.teacher_temperature(s) for s in (0, 5, 10, 99)] == pytest.approx([0.02, 0.045, 0.07, 0.07])
    assert [module.teacher_momentum(s) for s in (0, 50, 100)] == pytest.approx([0.996, 0.998, 1.0])
    assert [module.weight_decay(s) for s in (0, 50, 100)] == pytest.approx([0.04, 0.22, 0.4])
    headcam = small(momentum_teacher=0.9995, momentum_teacher_steps=10**6)
    training(headcam, max_steps=100)
    assert headcam.teacher_momentum(100) == pytest.approx(0.9995, abs=1e-9)
    scaled = small(momentum_teacher=0.996, momentum_teacher_batch=1024)
    training(scaled, max_steps=100, batch_size=256)
    assert scaled.teacher_momentum(0) == pytest.approx(0.996**0.25)

    weight = module.network.student_head.last_layer.weight_v
    optimizer = torch.optim.AdamW([{"params": [weight], "weight_decay": 0.0}])
    for step in range(4):
        trainer.global_step = step
        module.losses(pixels(module))["loss"].backward()
        assert weight.grad is not None  # of frozen ones too: processes wait for each other's
        assert bool(weight.grad.any()) == (step >= 2)
        before = weight.detach().clone()
        module.on_before_optimizer_step(optimizer)
        optimizer.step()
        optimizer.zero_grad()
        assert torch.equal(weight, before) == (step < 2)
        assert optimizer.param_groups[0]["weight_decay"] == module.weight_decay(step)


def test_gradients_are_clipped_one_by_one(monkeypatch):
    module = small(clip_grad=0.5)
    monkeypatch.setattr("headcam.ssl.objective.Objective.configure_gradient_clipping", lambda *a, **k: None)
    gradients = {}
    for name, p in module.network.named_parameters():
        if p.requires_grad and p.ndim == 2:
            gradients[name] = torch.randn_like(p) * 10 ** (len(gradients) % 4 - 3)
            p.grad = gradients[name].clone()
    module.configure_gradient_clipping(None)
    norms = [float(g.norm()) for g in gradients.values()]
    assert min(norms) < 0.5 < max(norms)
    for name, g in gradients.items():
        factor = min(1.0, 0.5 / (float(g.norm()) + 1e-6))
        torch.testing.assert_close(module.network.get_parameter(name).grad, g * factor)


def test_paths_are_dropped_in_the_student_by_the_noise_of_the_sample_only():
    module = small(drop_path_rate=0.9)
    assert [law.noise for law in module.views] == [4, 4]
    batch = pixels(module)
    state = torch.random.get_rng_state()
    loss = module.losses(batch)["loss"]
    assert torch.equal(state, torch.random.get_rng_state())  # nothing from the global generator
    assert torch.equal(loss, module.losses(batch)["loss"])
    other = {**batch, "local_noise": batch["local_noise"].flip(0)}
    assert not torch.equal(loss, module.losses(other)["loss"])
    module.eval()
    held_out = module.losses(batch)["loss"]
    assert torch.equal(held_out, module.losses(other)["loss"])  # no noise in validation
    module.losses(batch)
    assert module.network._num_outputs == 3 * 8  # and the centre takes note of training batches only


def test_losses_run_on_the_meta_device():
    module = DINO(**SMALL, drop_path_rate=0.1)
    module.network = module.skeleton
    values = module.losses(module.example_batch(2))
    assert values["loss"].is_meta and values["loss"].shape == ()


def test_initialisation_is_the_published_one():
    torch.manual_seed(0)
    network = DINONetwork(
        lambda: VisionTransformer(32, 8, embed_dim=192, depth=2, num_heads=3, positions="learned"), 96
    )
    encoder = network.student_encoder
    tables = (
        encoder.blocks[0].attn.qkv.weight,
        encoder.pos_embed,
        encoder.cls_token,
        network.student_head.mlp[0].weight,
    )
    for weight in tables:  # truncated normal; a class token is only 192 numbers
        assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.02 if weight.numel() > 9999 else 0.2)
    assert not encoder.blocks[0].attn.qkv.bias.any() and encoder.patch_embed.proj.bias.any()
    bound = 1 / math.sqrt(256)
    assert float(network.student_head.last_layer.weight_v.detach().abs().max()) == pytest.approx(bound, rel=0.01)


def test_the_card_is_the_teacher_s():
    card = DINO(size="s").card()
    assert card["parameters"] == 21_665_664 and card["architecture"]["arguments"]["positions"] == "learned"
    assert card["parameters_total"] == 2 * (
        21_665_664 + 384 * 2048 + 2048 + 2048 * 2049 + 2048 * 256 + 256 + 65_536 * 256
    )
    trunk = DINO(backbone="resnext50_32x4d").card()
    assert trunk["parameters"] == 22_979_904 and trunk["architecture"]["class"] == "ResNet"


def test_it_learns_to_tell_pictures_apart():
    """Eight pictures, two noisy views of each: the loss falls, and what the teacher says tells them apart."""
    module = small(out_dim=32, local_crops_number=0, momentum_teacher=0.99)
    trainer = training(module, max_steps=10**6)
    corners = torch.rand(8, 3, 2, 2, generator=torch.Generator().manual_seed(0)) * 255
    pictures = F.interpolate(corners, size=(32, 32), mode="bilinear").unsqueeze(1)
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=3e-4)
    values = []
    for step in range(100):
        trainer.global_step = step
        noise = torch.randint(-20, 21, (8, 2, 3, 32, 32), generator=torch.Generator().manual_seed(step))
        found = module.losses({"global": (pictures + noise).clamp(0, 255).byte()})
        found["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        module.after_optimizer_step()
        values.append({k: float(v.detach()) for k, v in found.items()})
    first, last = values[0], values[-1]
    assert last["loss"] < 0.5 * first["loss"]
    told = [
        v["mean_entropy"] - v["teacher_entropy"] for v in (first, last)
    ]  # nats; eight pictures: at most ln 8 = 2.08
    assert told[0] < 0.8 and told[1] > 1.2


@pytest.mark.parametrize(
    "changes, telling",
    [
        (dict(local_crops_size=40), r"local crops of 40 x 40 pixels are larger than the global ones of 32 x 32"),
        (dict(local_crops_size=20), r"patch_size 8 does not divide local_crops_size 20.*16 or 24"),
        (dict(local_crops_size=4), r"patch_size 8 does not divide local_crops_size 4\..*of 8$"),
        (dict(img_size=36), r"patch_size 8 does not divide the image side 36"),
        (dict(teacher_temp=0.0), r"teacher_temp is 0.0"),
        (dict(momentum_teacher=1.5), r"momentum_teacher is 1.5.*\[0, 1\]"),
        (dict(momentum_teacher_batch=0), r"momentum_teacher_batch is 0"),
        (dict(local_crops_scale=(0.4, 0.05)), r"local_crops_scale is \(0.4, 0.05\)"),
        (dict(out_dim=1), r"out_dim is 1"),
        (dict(local_crops_number=-1), r"local_crops_number is -1"),
        (dict(clip_grad=-1.0), r"clip_grad is -1.0"),
        (dict(backbone="resnet50"), r"embed_dim 48 does not apply to resnet50"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_the_fix(changes, telling):
    with pytest.raises(InputError, match=telling):
        DINO(**(SMALL | changes))
    assert len(DINO(**(SMALL | dict(local_crops_number=0, local_crops_size=40))).views) == 1  # no crop, no size


def config(path, stores, **init) -> str:
    settings = SMALL | dict(
        drop_path_rate=0.1, weight_decay_end=0.4, freeze_last_layer_steps=2, warmup_teacher_temp_steps=5,
        teacher_temp=0.06, momentum_teacher=0.9,
        optimizer=dict(lr=1e-3, base_lr_per_256=None, betas=[0.9, 0.999], weight_decay=0.04, warmup_steps=2),
    ) | init  # fmt: skip
    data = dict(train=[str(stores[0])], val=[str(stores[1])], batch_size=4, num_workers=0)
    trainer = dict(max_steps=6, val_check_interval=3, log_every_n_steps=1, accelerator="cpu", enable_progress_bar=False)
    text = yaml.safe_dump(
        {
            "seed_everything": 0,
            "model": {"class_path": "headcam.ssl.dino.DINO", "init_args": settings},
            "data": {"class_path": "headcam.video.data_module.FrameDataModule", "init_args": data},
            "trainer": trainer,
            "checkpoint_every": 3,
        }
    )
    path.write_text(text)
    return str(path)


def test_a_resumed_run_equals_an_uninterrupted_one(stores, tmp_path, monkeypatch):
    recipe = config(tmp_path / "dino.yaml", stores)
    assert main(["fit", "--config", recipe, "--out", str(tmp_path / "whole")]) == 0
    # The other is killed in its fifth step, one behind its checkpoint.
    losses = DINO.losses

    def killed(self, batch):
        if self.training and self._trainer is not None and self.global_step == 4:
            raise KeyboardInterrupt
        return losses(self, batch)

    monkeypatch.setattr(DINO, "losses", killed)
    command = ["fit", "--config", recipe, "--out", str(tmp_path / "parts")]
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        status = main(command)
        raise SystemExit(status)
    monkeypatch.setattr(DINO, "losses", losses)
    assert main(command) == 0
    whole, parts = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("whole", "parts")
    )
    assert whole["global_step"] == parts["global_step"] == 6
    for key, value in whole["state_dict"].items():  # teacher and centre are among them
        assert torch.equal(value, parts["state_dict"][key]), key
    assert {"network.center", "network.encoder.cls_token", "network.head.mlp.0.weight"} < set(whole["state_dict"])
    groups = [checkpoint["optimizer_states"][0]["param_groups"] for checkpoint in (whole, parts)]
    assert groups[0][0]["weight_decay"] == groups[1][0]["weight_decay"] > 0.3 and groups[0][1]["weight_decay"] == 0

    header, *rows = (tmp_path / "parts" / "metrics.csv").read_text().splitlines()
    assert {"train/rankme", "train/teacher_momentum", "val/loss"} <= set(header.split(","))
    assert len(rows) == 6
