"""From hours and GPUs to batch, steps and time, on a small model whose numbers can be done by hand."""

import json

import pytest

from headcam.errors import InputError
from headcam.ssl.mae import MAE
from headcam.ssl.objective import ComputeSettings, OptimizerSettings
from headcam.ssl.planning.flops import training_flops
from headcam.ssl.planning.memory_plan import plan_memory
from headcam.ssl.planning.run_plan import GPUS, Gpu, gpu_of, plan_run
from headcam.ssl.stmae import STMAE

SETTINGS = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 4, "decoder_embed_dim": 32, "decoder_depth": 1}
GPU = Gpu("test", 1e9, 100e12)


def model(**compute) -> MAE:
    return MAE(**SETTINGS, decoder_num_heads=4, compute=ComputeSettings(**compute))


def test_steps_passes_time_and_learning_rate_follow_from_the_batch():
    plan = plan_run(model(), hours=10, gpu=GPU, gpus=4, batch_size=32, passes=3, share=0.5)
    assert (plan.batch_size, plan.accumulate, plan.global_batch) == (32, 1, 128)
    assert plan.steps == 844 and plan.samples == 844 * 128  # 3 x 36,000 seconds, the last step full
    assert plan.passes == pytest.approx(844 * 128 / 36_000)
    assert plan.lr == pytest.approx(1.5e-4 * 128 / 256)
    assert plan.samples_per_second(0.5) == pytest.approx(4 * 100e12 * 0.5 / training_flops(model()))
    assert plan.hours_of_run(0.25) == pytest.approx(2 * plan.hours_of_run(0.5))
    fixed = OptimizerSettings(base_lr_per_256=None, lr=1e-4)
    again = plan_run(MAE(**SETTINGS, decoder_num_heads=4, optimizer=fixed), hours=10, gpu=GPU, batch_size=32, steps=9)
    assert (again.lr, again.steps) == (1e-4, 9)


def test_what_is_computed_again_takes_time():
    plain, again = (
        plan_run(model(checkpointing=what), hours=1, gpu=GPU, batch_size=8, steps=100) for what in ("none", "all")
    )
    assert plain.recomputed == 0 < again.recomputed < 1 / 3
    assert again.hours_of_run(0.4) == pytest.approx(plain.hours_of_run(0.4) * (1 + again.recomputed))


def test_the_largest_batch_fills_the_device_and_a_larger_one_is_accumulated():
    largest = plan_run(model(), hours=1, gpu=GPU, batch_size=0, passes=1)
    assert largest.batch_size == largest.largest_batch == plan_memory(model()).largest_batch(1e9)

    wanted = 2 * largest.largest_batch + 2
    plan = plan_run(model(), hours=1, gpu=GPU, gpus=2, batch_size=1, global_batch=2 * wanted, passes=1)
    assert plan.accumulate == 3 and plan.batch_size <= plan.largest_batch
    assert plan.batch_size * plan.accumulate * 2 == plan.global_batch >= 2 * wanted
    # Gradients of earlier micro-steps stay.
    assert plan.memory.peak_bytes(1) > 0
    assert any(part == "gradients" for part in plan.memory.at_peak(plan.batch_size))


def test_clips_of_one_decode_count_as_images_for_the_learning_rate():
    clips = STMAE(**SETTINGS, decoder_num_heads=4, num_frames=4, tubelet_size=2, repeats=4)
    plan = plan_run(clips, hours=1, gpu=GPU, batch_size=8, passes=1)
    assert plan.views == 4
    assert plan.lr == pytest.approx(clips.optimizer_settings.peak_lr(32))
    assert "32 views" in plan.table()


def test_a_run_that_changes_resolution_costs_the_mean_of_its_steps_and_the_memory_of_the_largest():
    staged = MAE(**SETTINGS, decoder_num_heads=4, resolutions={0: 32, 30: 64})
    plan = plan_run(staged, hours=1, gpu=GPU, batch_size=8, steps=40)
    small = training_flops(MAE(**{**SETTINGS, "img_size": 32}, decoder_num_heads=4))
    assert plan.flops_a_sample == pytest.approx(0.75 * small + 0.25 * training_flops(model()))
    assert plan.memory.peak_bytes(8) == plan_memory(model()).peak_bytes(8)
    assert staged.views[0].size == (64, 64)


def test_the_table_and_the_file_say_the_same():
    plan = plan_run(model(), hours=10, gpu=GPU, gpus=4, batch_size=32, passes=3)
    text, file = plan.table(), json.loads(json.dumps(plan.as_json(), allow_nan=False))
    for part in ("10.00 hours", "844 steps", "40% of peak", "at 20%", "at 50%", "not measured on a GPU", "4 x test"):
        assert part in text
    assert file["steps"] == 844 and file["global_batch"] == 128
    assert list(file["hours_of_run_by_share_of_peak"]) == ["0.2", "0.4", "0.5"]
    assert file["hours_of_loading"] == pytest.approx(844 * 128 * 2.7e-3 / (16 * 4) / 3600)
    assert file["memory"]["peak_bytes"] == plan.memory.peak_bytes(32)


def test_a_device_without_a_known_peak_has_a_plan_without_time():
    plan = plan_run(model(), hours=1, gpu=gpu_of("card", "bf16-mixed", memory_gb=24), batch_size=4, passes=1)
    assert plan.hours_of_run(0.4) is None
    assert "unknown" in plan.table() and "--gpu_tflops" in plan.table()


def test_devices_by_name():
    assert gpu_of("H100-80GB", "bf16-mixed") == Gpu("H100-80GB", 80e9, 989e12)
    assert gpu_of("h100-80gb", "32-true").peak is None  # a peak is of one number format
    assert gpu_of("h100-80gb", "32-true", tflops=60) == Gpu("h100-80gb", 80e9, 60e12)
    assert all(gpu_of(name, "bf16-mixed").peak for name in GPUS)
    with pytest.raises(InputError, match=r"'k80'.*use one of a100-40gb, a100-80gb"):
        gpu_of("k80", "bf16-mixed")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hours": 0}, r"0 hours of video"),
        ({"hours": float("nan")}, r"hours of video"),
        ({"gpus": 0}, r"--gpus is 0"),
        ({"share": 1.5}, r"--share is 1.5"),
        ({"passes": None}, r"give one of --passes and --steps"),
        ({"steps": 5}, r"give one of --passes and --steps"),
        ({"gpus": 4, "global_batch": 3}, r"--global_batch is 3.*at least one a device \(4\)"),
        ({"gpu": Gpu("tiny", 1e5, None)}, r"not one sample fits on tiny.*checkpointing=all"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(change, message):
    settings = {"hours": 1, "gpu": GPU, "batch_size": 4, "passes": 1}
    with pytest.raises(InputError, match=message):
        plan_run(model(), **{**settings, **change})
