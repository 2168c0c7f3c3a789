"""A probe on ImageNet-size features with 20 learning rates at once stays within 1.5 GiB of memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

LIMIT = 1536  # MiB of anonymous memory; pages of the mapped file are the system's to take back

# In a process of its own: what other tests hold does not count. The sum of squares runs over all rows, the three steps
# are of a round that was read from all over the file.
STEPS = """
import json, sys, threading, time
from itertools import islice
import numpy as np
import torch

from headcam.evaluation.heads.normalisation import Moments, Normalisation
from headcam.evaluation.heads.rows import ShuffledRows
from headcam.evaluation.heads.training import HeadTrainer
from headcam.evaluation.protocols import LinearProbe

torch.set_num_threads(1)
peak, done = 0, False

def watch():
    global peak
    while not done:
        with open("/proc/self/status") as file:
            facts = dict(line.split(":", 1) for line in file)
        peak = max(peak, int(facts["RssAnon"].split()[0]))
        time.sleep(0.005)

watcher = threading.Thread(target=watch)
watcher.start()
n, dim, classes = 1_281_167, 768, 1000
table = np.lib.format.open_memmap(sys.argv[1], "w+", np.float16, (n, dim))  # sparse: takes no room on the disk
rng = np.random.default_rng(0)
table[:: n // 50] = rng.normal(size=(len(table[:: n // 50]), dim))
table = np.load(sys.argv[1], mmap_mode="r")
labels = np.arange(n) * classes // n
rows = np.flatnonzero(np.arange(n) % 5)
protocol = LinearProbe(base_lr_per_256=tuple(0.001 * 1.4**k for k in range(20)), batch_size=1024)
moments = Moments.of(table, rows, products=False)
data = ShuffledRows(table, labels, rows, Normalisation.of(moments, protocol), batch_size=1024, seed=0)
trainer = HeadTrainer(dim, classes, protocol.base_lr_per_256, protocol, batch_size=1024, steps=50 * data.steps)
for x, y in islice(data.batches(0), 3):
    trainer.step(x, y)
done = True
watcher.join()
print(json.dumps({"peak": peak / 1024, "steps": data.steps, "batch": len(x), "classes": len(y.unique()),
                  "moved": float(trainer.weight.abs().max())}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs /proc")
def test_three_steps_at_the_size_of_imagenet(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", STEPS, str(tmp_path / "features.npy")], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert found["moved"] > 0 and found["batch"] > 1000 and found["steps"] > 1000
    assert found["classes"] > 600  # of 1,000 in a batch of 1,024, chance would give 640: the rows lie class by class
    assert found["peak"] < LIMIT
