"""Planned memory against what the same step keeps and takes on the CPU, and against arithmetic for a GPU."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from headcam.errors import InputError
from headcam.ssl.dino import DINO
from headcam.ssl.mae import MAE
from headcam.ssl.objective import ComputeSettings, Objective
from headcam.ssl.planning.memory_plan import _AutocastOfCuda, plan_memory, trace_step
from headcam.ssl.stmae import STMAE

SMALL = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 4}
DECODER = {"decoder_embed_dim": 32, "decoder_depth": 2, "decoder_num_heads": 4}


def mae(checkpointing: str = "none") -> Objective:
    return MAE(**SMALL, **DECODER, compute=ComputeSettings(checkpointing=checkpointing))


def stmae(checkpointing: str = "none") -> Objective:
    clip = {"num_frames": 4, "tubelet_size": 2, "repeats": 2}
    return STMAE(**SMALL, **DECODER, **clip, compute=ComputeSettings(checkpointing=checkpointing))


def dino(checkpointing: str = "none") -> Objective:
    return DINO(
        **SMALL,
        local_crops_size=32,
        local_crops_number=2,
        out_dim=64,
        compute=ComputeSettings(checkpointing=checkpointing),
    )


def built(objective: Objective) -> Objective:
    objective.configure_model()
    return objective


def saved_bytes(objective: Objective, batch_size: int, autocast: torch.dtype | None = None) -> int:
    """Bytes of the distinct storages that a real forward saves for backward, without weights, casts and the batch."""
    batch = objective.example_batch(batch_size, "cpu")
    own = {t.data_ptr() for t in [*objective.network.parameters(), *objective.network.buffers(), *batch.values()]}
    found = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage  # held, so that no other takes its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            objective.losses(batch)["loss"].backward()
    return sum(storage.nbytes() for storage in found.values())


@pytest.mark.parametrize(
    ("make", "checkpointing"),
    [(mae, "none"), (mae, "encoder"), (mae, "all"), (stmae, "all"), (stmae, "decoder"), (dino, "none"), (dino, "all")],
)
def test_the_plan_says_to_the_byte_what_a_real_step_keeps(make, checkpointing):
    plan = plan_memory(make(checkpointing), "32-true")
    weights_rearranged = plan.parts.index("weights cast or rearranged")
    for batch_size in (2, 5):
        objective = built(make(checkpointing))
        kept = sum(fixed + batch_size * each for fixed, each in plan.kept.values())
        # Rearranged weights (the flattened patch kernel) are saved too, but are no activations; they are in the plan.
        rest = saved_bytes(objective, batch_size) - kept
        assert 0 <= rest <= plan.fixed[:, weights_rearranged].max()

        ledger = trace_step(built(make(checkpointing)), objective.example_batch(batch_size, "cpu"))
        assert {part: n for part, n in ledger.kept.items() if n} == {
            part: fixed + batch_size * each for part, (fixed, each) in plan.kept.items() if fixed + batch_size * each
        }


@pytest.mark.parametrize(("make", "checkpointing"), [(mae, "none"), (mae, "all"), (stmae, "none"), (dino, "none")])
def test_the_peak_at_any_batch_is_that_of_a_real_step(make, checkpointing):
    objective = built(make(checkpointing))
    plan = plan_memory(objective, "32-true")
    trained = sum(p.numel() for p in objective.network.parameters() if p.requires_grad)
    for batch_size in (2, 7):
        ledger = trace_step(objective, objective.example_batch(batch_size, "cpu"))
        real = max(sum(moment.values()) for moment in ledger.moments)
        assert plan.peak_bytes(batch_size) == real + 8 * trained  # the optimizer's two moments, not made by a step


@pytest.mark.parametrize("checkpointing", ["none", "all"])
def test_the_allocator_of_the_cpu_sees_the_same_peak(checkpointing):
    """The profiler's record of allocations, which knows nothing of the ledger, workspaces of kernels included."""
    objective = built(
        MAE(
            "ti",
            img_size=192,
            depth=2,
            decoder_depth=2,
            decoder_embed_dim=192,
            compute=ComputeSettings(checkpointing=checkpointing),
        )
    )
    batch = objective.example_batch(8, "cpu")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        for parameter in objective.network.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        loss = objective.losses(batch)["loss"]
        objective.network.zero_grad(set_to_none=True)
        loss.backward()
    sizes = [e.nbytes() for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    grown = int(np.cumsum(sizes).max())
    plan = plan_memory(objective, "32-true")
    # What stood before: weights, batch, and the optimizer's moments, which the plan adds.
    before = sum(t.nbytes for t in [*objective.network.parameters(), *batch.values()])
    before += 2 * sum(p.nbytes for p in objective.network.parameters() if p.requires_grad)
    assert grown + before == pytest.approx(plan.peak_bytes(8), rel=0.02)


def test_sixteen_bits_keep_what_arithmetic_says():
    """36 bytes a token and channel, 4 a head and token, and two norms' mean and deviation in each block."""
    plan = plan_memory(MAE("ti", img_size=64, depth=3, decoder_depth=1), "bf16-mixed")
    assert plan.kept["encoder.blocks"] == (0, 3 * 5 * (36 * 192 + 4 * 3 + 16))
    objective = built(MAE("ti", img_size=64, depth=3, decoder_depth=1))
    real = trace_step(objective, objective.example_batch(2, "cpu"), torch.bfloat16)
    assert real.kept["encoder.blocks"] == 2 * plan.kept["encoder.blocks"][1]


@pytest.mark.slow
def test_the_record_of_the_originals_is_beaten():
    """ViT-H/14 at 1792 pixels, mask 0.8, on 80 GB: batch 8 there, without checkpointing; 40 is the bar."""

    def plan(checkpointing):
        settings = ComputeSettings(checkpointing=checkpointing)
        return plan_memory(MAE("h", 1792, 14, mask_ratio=0.8, compute=settings), "bf16-mixed")

    without, full = plan("none"), plan("all")
    assert without.largest_batch(80e9, usable=1.0) >= 8  # what the originals did fits
    assert full.largest_batch(80e9) >= 40
    for found in (without, full):
        batch = found.largest_batch(80e9)
        assert found.peak_bytes(batch) <= 0.9 * 80e9 < found.peak_bytes(batch + 1)
    assert full.largest_batch(8e9) == 0
    # By hand 7.44 GB an image, and 1.28 without the inside of blocks.
    assert without.peak_bytes(11) - without.peak_bytes(10) == pytest.approx(7.44e9, rel=0.02)
    assert full.peak_bytes(11) - full.peak_bytes(10) < 1.28e9


def test_many_devices_add_buckets_or_divide_the_state():
    alone, many = plan_memory(mae(), processes=1), plan_memory(mae(), processes=4)
    trained = alone.at_peak(2)["optimizer state"][0] // 2
    assert many.peak_bytes(2) == alone.peak_bytes(2) + trained
    sharded = plan_memory(mae(), processes=4, shard=True)
    assert sharded.at_peak(2)["optimizer state"][0] == 2 * trained // 4
    assert sharded.at_peak(2)["weights"][0] == alone.at_peak(2)["weights"][0] // 4
    assert sharded.at_peak(2)["blocks gathered by FSDP"][0] == 2 * 4 * (12 * 48**2 + 13 * 48)


def test_accumulated_gradients_stay_for_backward():
    one, several = plan_memory(mae("all")), plan_memory(mae("all"), accumulate=True)
    assert several.peak_bytes(1) >= one.peak_bytes(1)
    backward = [phase == "backward" for phase in several.phases]
    gradients = several.fixed[backward][:, several.parts.index("gradients")]
    assert (
        gradients.min()
        == gradients[0]
        > one.fixed[[p == "backward" for p in one.phases]][0, one.parts.index("gradients")]
    )


def test_the_table_adds_up_and_says_what_it_is():
    plan = plan_memory(mae(), "bf16-mixed")
    for batch_size in (1, 64):
        assert sum(f + batch_size * s for f, s in plan.at_peak(batch_size).values()) == plan.peak_bytes(batch_size)
    text = plan.table(64)
    assert "batch 64" in text and "kept for backward: encoder.blocks" in text and "not measured on a GPU" in text
    json = plan.as_json(64)
    assert json["peak_bytes"] == plan.peak_bytes(64) and json["parts"]["weights"]["per_sample"] == 0


def test_planning_leaves_the_objective_alone():
    objective = built(mae())
    network, weights = objective.network, [p.clone() for p in objective.network.parameters()]
    plan_memory(objective)
    assert objective.network is network and all(p.grad is None for p in network.parameters())
    assert all(torch.equal(a, b) for a, b in zip(weights, network.parameters()))


def test_operations_that_cuda_keeps_in_fp32_are_kept_so():
    x = torch.ones(2, 8, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert F.log_softmax(x, -1).dtype == torch.bfloat16  # the CPU's own rule
        with _AutocastOfCuda():
            assert F.log_softmax(x, -1).dtype == x.sum().dtype == torch.float32
            assert F.linear(x.float(), torch.ones(4, 8)).dtype == torch.bfloat16


def test_a_precision_without_a_rule_is_refused():
    with pytest.raises(InputError, match=r"precision '64-true'.*Fix: use 32-true"):
        plan_memory(mae(), "64-true")
