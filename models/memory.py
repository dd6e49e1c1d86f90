"""How many members take a step together: predicted from their shape, and from what the device has."""

import os

import torch

from models.network import Network

_FLOAT_BYTES = 4
_COPIES_OF_WEIGHTS = 8  # weights, the member's own, gradients twice, moments twice, and two while they are updated
_CACHE_BYTES = 32 * 2**20  # of a step's activations, on a processor
_SHARE_USED = 0.8  # of what is free on an accelerator: its allocator wants room


def member_bytes(model: Network, batch_rows: int) -> int:
    """What a member adds to a stack during a training step."""
    weights = sum(parameter.numel() for parameter in model.parameters())
    return _FLOAT_BYTES * (_COPIES_OF_WEIGHTS * weights + batch_rows * model.floats_per_row)


def free_bytes(device: torch.device) -> int:
    """What the device still has."""
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's own, for the asking
        return int(torch.cuda.mem_get_info(device)[0] + idle)
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def chunk_members(model: Network, batch_rows: int, device: torch.device) -> int:
    """How many members of one shape step together: on a processor what fits its cache, else what fits the memory."""
    room = free_bytes(device) * _SHARE_USED if device.type == "cuda" else _CACHE_BYTES
    return max(1, int(room / member_bytes(model, batch_rows)))
