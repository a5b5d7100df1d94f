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


def _cpu_multiplies_bf16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "amx_tile", "bf16"))
