"""Choose the device and the precision that a recipe asks for."""

import os

import torch

from leaf.errors import ConfigError


def pick_dtype(name: str, device: str | torch.device) -> str:
    """Choose the precision a recipe names; `auto` is bfloat16 where the device computes in it, otherwise float32.

    A CPU without instructions for bfloat16 emulates it, at an eighth of the speed of float32 (products, AVX2).
    """
    if name != "auto":
        return name
    if torch.device(device).type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        found = torch.cpu.get_capabilities()
        native = any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    return "bfloat16" if native else "float32"


def pick_device(name: str) -> torch.device:
    """Choose the device a recipe names; `auto` is CUDA where there is one.

    Raises:
        ConfigError: there is no such device, or leaf does not run on it.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device is {name!r}; allowed are auto, cpu, cuda, cuda:0, ...") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device is {name!r}; leaf runs on cpu and cuda.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device is {name!r}, but {torch.cuda.device_count()} CUDA devices can be seen here. Use device: auto or "
            "cpu, or check the driver and CUDA_VISIBLE_DEVICES."
        )
    return device


def take_device(name: str) -> torch.device:
    """Choose the device a recipe names, and make a GPU that is named by number the current one.

    Accelerate trains on the current one.

    Raises:
        ConfigError: a number came under a launcher of several processes, each of which has a GPU of its own.
    """
    device = pick_device(name)
    if device.type != "cuda" or device.index is None:
        return device
    if int(os.environ.get("LOCAL_RANK", device.index)) != device.index or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"device is {name!r} under a launcher, where every process takes the GPU of its own rank. Use device: "
            "auto, and CUDA_VISIBLE_DEVICES to choose among the GPUs."
        )
    torch.cuda.set_device(device)
    return device
