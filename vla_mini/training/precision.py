"""Which precision to train in: what the hardware does natively, unless the user says otherwise."""

import torch


def choose_precision(requested: str, *, accelerator: str = "auto") -> str:
    """`requested`, or for "auto": bf16-mixed where the CPU or GPU multiplies bf16 natively, else 32-true.

    Emulated bf16 is slower than fp32, so it is never chosen.
    """
    if requested != "auto":
        return requested
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    native = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else _cpu_multiplies_bf16()
    return "bf16-mixed" if native else "32-true"


def check_precision(precision: str, *, accelerator: str) -> None:
    """ValueError for a precision that the hardware lacks, before any work."""
    on_gpu = accelerator != "cpu" and torch.cuda.is_available()
    if precision.startswith("16") and not on_gpu:  # Lightning would silently take bf16
        raise ValueError(f"trainer.precision={precision} is for GPUs; on CPUs there are bf16-mixed, 32-true and 64-true")
    if precision.startswith("bf16") and on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(f"trainer.precision={precision}: this GPU does no bf16; auto takes what it does")


def _cpu_multiplies_bf16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "amx_tile", "bf16"))
