"""Process groups: start them for a layout, end them."""

from __future__ import annotations

import hashlib
import socket
from datetime import timedelta
from urllib.parse import urlsplit

import numpy as np
import torch
import torch.distributed as dist

from megalign.cluster.network import use_interface_to
from megalign.config.layout import Layout
from megalign.engine.device import BACKEND, DEVICE
from megalign.engine.host_memory import keep_freed_memory
from megalign.engine.mcore import model_parallel_cuda_manual_seed, parallel_state
from megalign.errors import EnvironmentProblem, first_line


def start(layout: Layout, *, rank: int, world_size: int, local_rank: int, init_method: str) -> None:
    """Join the process group and cut it into the layout's groups.

    Args:
        layout: the parallel layout.
        rank, world_size, local_rank: this process.
        init_method: how the processes find each other, `env://`, `tcp://host:port` or `file://path`.

    Raises:
        ConfigError: `world_size` is not the layout's.
        EnvironmentProblem: the processes do not find each other.
    """
    layout.check_world_size(world_size)
    if DEVICE.type == "cuda":
        torch.cuda.set_device(local_rank)
    else:
        keep_freed_memory()
        use_interface_to(urlsplit(init_method).hostname or "localhost")
    if not dist.is_initialized():
        _meet(rank, world_size, init_method)
    p = layout.parallel
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=p.tensor,
        pipeline_model_parallel_size=p.pipeline,
        virtual_pipeline_model_parallel_size=p.virtual_pipeline,
        context_parallel_size=p.context,
        create_gloo_process_groups=False,
    )


def _meet(rank: int, world_size: int, init_method: str) -> None:
    try:
        dist.init_process_group(
            BACKEND, init_method=init_method, rank=rank, world_size=world_size, timeout=timedelta(minutes=30)
        )
    except (RuntimeError, ValueError) as error:
        raise EnvironmentProblem(
            f"Rank {rank} on {socket.gethostname()} could not join the other processes at {init_method}: "
            f"{first_line(error)}.",
            "All of them must reach rank 0 there, and each other.",
            "Look at the other ranks' errors and at the network; set MASTER_ADDR to an address of rank 0's host that all "
            "reach, MASTER_PORT to a free port, and GLOO_SOCKET_IFNAME (NCCL_SOCKET_IFNAME on GPUs) to the interface.",
        ) from error


def seed_dropout(seed: int, step: int) -> None:
    """Dropout's generators as a function of (seed, step, rank): there is no random state to save or restore.

    Ranks that hold other samples, positions or layers draw differently; tensor-parallel ranks draw alike where they hold
    the same activations (Megatron gives them a second generator, apart by one, for where they do not).
    """
    place = [
        parallel_state.get_pipeline_model_parallel_rank(),
        parallel_state.get_data_parallel_rank(with_context_parallel=True),
    ]
    digest = hashlib.sha256(f"dropout {seed} {step} {place}".encode()).digest()
    model_parallel_cuda_manual_seed(int.from_bytes(digest[:4], "big") >> 1, force_reset_rng=True)


def stop() -> None:
    """End the groups and leave the process group."""
    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


def broadcast_from_last_stage(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` of the last pipeline stage on every rank of the pipeline."""
    group = parallel_state.get_pipeline_model_parallel_group()
    if group.size() > 1:
        dist.broadcast(tensor, src=parallel_state.get_pipeline_model_parallel_last_rank(), group=group)
    return tensor


def sum_over_replicas(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` summed over data-parallel ranks that hold whole windows, in place: context ranks count as one."""
    group = parallel_state.get_data_parallel_group()
    if group.size() > 1:
        dist.all_reduce(tensor, group=group)
    return tensor


def sum_over_data_parallel(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` summed over data- and context-parallel ranks, each of which counts its own part, in place."""
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    if group.size() > 1:
        dist.all_reduce(tensor, group=group)
    return tensor


def gather_rows(rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """All data-parallel ranks' rows, in rank order, without gradient.

    Args:
        rows: [counts[own rank], ...], equal shapes but for the first axis.
        counts: number of rows of every rank.
    """
    group = parallel_state.get_data_parallel_group()
    if group.size() == 1:
        return rows.detach()
    largest = max(counts)
    padded = rows.new_zeros(largest, *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    everyone = rows.new_empty(group.size() * largest, *rows.shape[1:])
    dist.all_gather_into_tensor(everyone, padded, group=group)
    return torch.cat([part[:count] for part, count in zip(everyone.split(largest), counts, strict=True)])


def rank() -> int:
    """This process's number in the process group."""
    return dist.get_rank()


def barrier() -> None:
    """Wait for all processes."""
    dist.barrier()


def sum_counts(counts: list[int]) -> list[int]:
    """Counts summed over data-parallel ranks; context-parallel ranks read the same samples and count the same."""
    total = sum_over_replicas(torch.tensor(counts, dtype=torch.int64, device=DEVICE))
    return [int(value) for value in total]


def gather_from_all(values: list[float]) -> np.ndarray:
    """The values of every process: float64 [processes, values]."""
    own = torch.tensor(values, dtype=torch.float64, device=DEVICE)
    if dist.get_world_size() == 1:
        return own[None].cpu().numpy()
    everyone = own.new_empty(dist.get_world_size(), len(values))
    dist.all_gather_into_tensor(everyone, own[None])
    return everyone.cpu().numpy()
