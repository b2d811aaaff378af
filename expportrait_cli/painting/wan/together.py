"""One film on several devices, by context parallelism: each computes a share of every window's tokens.

A launcher (torchrun, `accelerate launch`) starts the same command several times. The first process makes the film as
if it were the only one; the others run nothing but the transformer, whenever the first one does, on inputs that it
broadcasts. For attention the processes exchange tokens for heads (DeepSpeed-Ulysses: Jacobs et al. 2023).
"""

import atexit
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers.hooks.context_parallel import apply_context_parallel
from diffusers.models._modeling_parallel import ContextParallelConfig, ParallelConfig
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from diffusers.models.transformers.transformer_wan import WanAttention
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from expportrait_cli.config import WanConfig
from expportrait_cli.errors import UsageError, WeightsError
from expportrait_cli.painting.wan.encoders import network_config
from expportrait_cli.painting.wan.manifest import TRANSFORMER

CAN = ("wan-portrait", "wan-v2v")
"""Painters that support several processes."""
PATIENCE = timedelta(days=7)
"""Longest time that the other processes wait: the first one also fits heads and writes films between two windows."""
SENT = ("hidden_states", "timestep", "encoder_hidden_states", "encoder_hidden_states_image")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HEADER = 2 + 5
"""Numbers that describe an input: whether it is given, its dtype, and up to five dimensions."""
END, LOAD, RUN = range(3)

Run = Callable[..., tuple[Tensor]]


def count() -> int:
    """Number of processes that make this film."""
    return dist.get_world_size() if dist.is_initialized() else 1


def check(name: str, folder: Path | None, config: WanConfig) -> None:
    """Refuse a painter or options that do not work with several processes.

    Raises:
        UsageError: the painter, an option or the number of processes does not fit.
        WeightsError: the folder's number of attention heads cannot be read.
    """
    if name not in CAN or folder is None:
        raise UsageError(
            f"{count()} processes were launched, and {name} paints with one. Launch one, or take `backend` "
            f"{' or '.join(CAN)}."
        )
    heads = network_config(folder / TRANSFORMER).get("num_attention_heads")
    if not isinstance(heads, int) or heads < 1:
        raise WeightsError(f"{folder / TRANSFORMER} has {heads!r} heads, expected a number. Download it again.")
    if heads % count():
        fitting = ", ".join(str(number) for number in range(1, heads + 1) if heads % number == 0)
        raise UsageError(
            f"{count()} processes cannot share the transformer's {heads} heads evenly. Launch {fitting} of them."
        )
    if config.cache:
        raise UsageError("`cache` lets each process decide on its own what to skip. Leave it out, or launch one.")
    backends = _AttentionBackendRegistry._supports_context_parallel
    if config.attention and config.attention not in backends:
        raise UsageError(
            f"`attention={config.attention}` cannot be shared by processes; {', '.join(sorted(backends))} can."
        )


def gather_processes() -> int:
    """Join the process group of the launcher; returns the rank of this process."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        # Processes wait with gloo, on the CPU: waiting with NCCL keeps a GPU busy, and times out after minutes.
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=PATIENCE)
    else:
        # With the device's name: otherwise torch's CUDA build is taken to have a GPU.
        dist.init_process_group("cpu:gloo", timeout=PATIENCE)
    return dist.get_rank()


def share_out(transformer: Any, device: torch.device) -> None:
    """Let a Wan transformer compute only this process's share of the tokens; to be called in all processes.

    Like `enable_parallelism` of diffusers, which does not work on the CPU, and gathers shares of different sizes only
    with NCCL.
    """
    config = ContextParallelConfig(ulysses_degree=count(), ulysses_anything=True)
    mesh = init_device_mesh(device.type, config.mesh_shape, mesh_dim_names=config.mesh_dim_names)
    parallel = ParallelConfig(context_parallel_config=config)
    parallel.setup(dist.get_rank(), count(), device, mesh=mesh)
    for module in transformer.modules():
        if isinstance(module, WanAttention):
            processor: Any = module.processor
            processor._parallel_config = parallel
    # Time steps are not split, since one is for all tokens; the output is gathered by `_whole`.
    plan = {place: transformer._cp_plan[place] for place in ("rope", "blocks.0")}
    apply_context_parallel(transformer, config, plan)
    transformer.proj_out.register_forward_hook(lambda module, given, share: _whole(share))


def begin(transformer: Any, device: torch.device) -> None:
    """Set up a transformer for several processes; does nothing if there is only one."""
    if count() == 1:
        return
    if dist.get_rank() == 0:
        _announce(LOAD)
    share_out(transformer, device)
    if dist.get_rank() == 0:
        first().lead(transformer)


def _whole(share: Float[Tensor, "B n C"]) -> Float[Tensor, "B N C"]:
    """Gather the shares of all processes, which are split as by `tensor_split`, and concatenate them."""
    total = torch.tensor(share.shape[1], device=share.device)
    dist.all_reduce(total)
    sizes = [len(part) for part in torch.arange(int(total)).tensor_split(count())]
    filled = nn.functional.pad(share, (0, 0, 0, max(sizes) - share.shape[1])).contiguous()
    parts = [torch.empty_like(filled) for _ in sizes]
    dist.all_gather(parts, filled)
    return torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], 1)


class First:
    """The first process, which makes the film, and controls the others."""

    def __init__(self) -> None:
        self._is_lost = False
        """True if the other processes may be in a call of the transformer that will not be completed."""

    def lead(self, transformer: Any) -> None:
        """Replace `transformer.forward`, so that the other processes run it whenever this one does."""
        forward = transformer.forward

        def together(*given: Tensor | None, **options: Any) -> Any:
            inputs = [*given, *(options.pop(name, None) for name in SENT[len(given) :])]
            with self._undisturbed():
                _announce(RUN, inputs)
                for tensor in inputs:
                    if tensor is not None:
                        dist.broadcast(tensor.contiguous(), 0)
                return forward(*inputs, **options)

        transformer.forward = together

    def dismiss(self) -> None:
        """End the other processes."""
        if dist.is_initialized() and not self._is_lost:
            _announce(END)
            dist.destroy_process_group()

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Delay signals to the end of the block: if this process ended inside, the others would wait for ever."""
        noted: list[int] = []
        numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        before = {number: signal.signal(number, lambda number, _: noted.append(number)) for number in numbers}
        self._is_lost = True
        try:
            yield
            self._is_lost = False
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        for number in noted:
            handler = before[signal.Signals(number)]
            if callable(handler):
                handler(number, None)


@lru_cache(maxsize=1)
def first() -> First:
    """Return the (only) `First` of this process; the other processes end when the program ends."""
    own = First()
    atexit.register(own.dismiss)
    return own


@torch.inference_mode()
def help_first(load: Callable[[], tuple[Run, Callable[[], None]]], device: torch.device) -> None:
    """Run the transformer of `load` whenever the first process does, until it ends; `load` also returns its `wake`.

    Signals are ignored: the first process handles them, and ends the others.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    run, wake = None, None
    while (message := _listen())[0] != END:
        if message[0] == LOAD:
            run, wake = load()
            continue
        assert run is not None and wake is not None
        wake()
        run(*_received(message[1], device), return_dict=False)
    dist.destroy_process_group()


def _announce(what: int, inputs: Sequence[Tensor | None] = ()) -> None:
    """Broadcast the next task (END, LOAD or RUN), and shapes and dtypes of its inputs."""
    header = torch.zeros(1 + len(SENT), HEADER, dtype=torch.int64)
    header[0] = what
    for row, tensor in zip(header[1:], inputs, strict=False):
        if tensor is not None:
            numbers = [1, DTYPES.index(tensor.dtype), *tensor.shape]
            row[: len(numbers)] = torch.tensor(numbers)
    dist.broadcast(header, 0)


def _listen() -> tuple[int, list[list[int]]]:
    """Receive the next task, and for each input what `HEADER` describes."""
    header = torch.empty(1 + len(SENT), HEADER, dtype=torch.int64)
    dist.broadcast(header, 0)
    return int(header[0, 0]), header[1:].tolist()


def _received(announced: list[list[int]], device: torch.device) -> Iterator[Tensor | None]:
    for is_given, dtype, *sides in announced:
        tensor = torch.empty([side for side in sides if side], dtype=DTYPES[dtype], device=device) if is_given else None
        if tensor is not None:
            dist.broadcast(tensor, 0)
        yield tensor
