"""Run every benchmark of this folder one after another, and print which bars fall short (`make bench`).

Exit status 0 whether or not a bar holds; a benchmark that fails to run is named and gives 1.
"""

import json
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
NOT_BENCHMARKS = {"all.py", "footage.py", "harness.py"}


def main() -> int:
    short, held, failed = [], 0, []
    for script in sorted(FOLDER.glob("*.py")):
        if script.name in NOT_BENCHMARKS:
            continue
        print(f"== {script.name}", flush=True)
        done = subprocess.run([sys.executable, str(script), *sys.argv[1:]], stdout=subprocess.PIPE, text=True)
        print(done.stdout, flush=True)
        if done.returncode:
            failed.append(script.name)
            continue
        for name, ratio in json.loads(done.stdout.splitlines()[-1])["ratios"].items():
            if "not_applicable" in ratio:
                print(f"{name}: not applicable here: {ratio['not_applicable']}")
            elif ratio["holds"]:
                held += 1
            else:
                short.append(f"{name}: {ratio['median']:.2f} of {ratio['bar']}")
    print(f"{held} bars hold" + (f"; short: {', '.join(short)}" if short else ""))
    if failed:
        print(f"failed to run: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
