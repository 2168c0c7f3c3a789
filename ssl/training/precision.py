"""Which number format training runs in: bf16 where the processor computes in it, fp32 where it would crawl.

bf16 on a CPU with neither AVX512-BF16 nor AMX is about a hundred times slower than fp32 (measured on a Zen 3), so the
capability is asked at run time, never assumed.
"""

import torch


def cpu_bf16() -> str | None:
    """The CPU's bf16 instructions (`AMX-BF16` or `AVX512-BF16`), or None where it has neither."""
    for name, probe in (("AMX-BF16", "_is_amx_tile_supported"), ("AVX512-BF16", "_is_avx512_bf16_supported")):
        # Private functions of torch: where a release lacks one, the capability counts as absent.
        if getattr(torch.cpu, probe, lambda: False)():
            return name
    return None


def resolve_precision(wanted: str | int | None, on_cpu: bool) -> tuple[str | int | None, str]:
    """The precision to run in and, where it is not the wanted one, a line that says why (else '').

    Args:
        wanted: Lightning's `trainer.precision`.
        on_cpu: whether training runs on the CPU.
    """
    if on_cpu and str(wanted) in ("bf16", "bf16-mixed", "bf16-true") and cpu_bf16() is None:
        return "32-true", f"precision {wanted} runs as 32-true: this CPU has neither AVX512-BF16 nor AMX"
    return wanted, ""
