"""Memory that a measurement can still take on its device. Introduced in chapter 3."""

import torch

from lib.cache.sizing import free_memory


def free_bytes(device: torch.device | str) -> int:
    """Bytes that this process can still take on a device, with those that its allocator holds and does not use."""
    if torch.device(device).type != "cuda":
        return free_memory()
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused
