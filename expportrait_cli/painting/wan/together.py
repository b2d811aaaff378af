"""One film on several devices: each holds the transformer and works on its share of every window's tokens.

A launcher (torchrun, `accelerate launch`) starts the same command several times. The first process makes the film as
if it were alone; the others only run the transformer whenever it does, on the inputs that it sends them, so that all
files, drawing and coding are the first one's. Between two layers the processes exchange what attention needs of the
others' tokens (context parallelism, DeepSpeed-Ulysses: Jacobs et al. 2023), each for its share of the heads.
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
"""Painters whose transformer can be shared out."""
PATIENCE = timedelta(days=7)
"""Longest time that the others wait: the first process fits heads and writes films between two windows."""
SENT = ("hidden_states", "timestep", "encoder_hidden_states", "encoder_hidden_states_image")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HEADER = 2 + 5
"""Numbers that announce an input: whether there is one, its dtype, and up to five sides."""
END, LOAD, RUN = range(3)

Run = Callable[..., tuple[Tensor]]


def count() -> int:
    """Processes that make this film."""
    return dist.get_world_size() if dist.is_initialized() else 1


def check(name: str, folder: Path | None, config: WanConfig) -> None:
    """Refuse what several processes cannot do together.

    Raises:
        UsageError: a painter, an option or a number of processes that does not fit.
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
    """Meet the processes that were launched together; the number of this one."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        # Waiting for the first process is done on the CPU: a GPU that waits is busy, and gives up after minutes.
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=PATIENCE)
    else:
        dist.init_process_group("gloo", timeout=PATIENCE)
    return dist.get_rank()


def share_out(transformer: Any, device: torch.device) -> None:
    """Have a Wan transformer work on this process's share of the tokens; call it in all processes.

    As `enable_parallelism` of diffusers, which has no place for processes on the CPU, and gathers shares of different
    size on NCCL alone.
    """
    config = ContextParallelConfig(ulysses_degree=count(), ulysses_anything=True)
    mesh = init_device_mesh(device.type, config.mesh_shape, mesh_dim_names=config.mesh_dim_names)
    parallel = ParallelConfig(context_parallel_config=config)
    parallel.setup(dist.get_rank(), count(), device, mesh=mesh)
    for module in transformer.modules():
        if isinstance(module, WanAttention):
            processor: Any = module.processor
            processor._parallel_config = parallel
    # Not the time steps, of which there is one for all tokens, and not what comes out.
    plan = {place: transformer._cp_plan[place] for place in ("rope", "blocks.0")}
    apply_context_parallel(transformer, config, plan)
    transformer.proj_out.register_forward_hook(lambda module, given, share: _whole(share))


def begin(transformer: Any, device: torch.device) -> None:
    """Share out a transformer that is in its place, if there is anybody to share it with; the first process leads."""
    if count() == 1:
        return
    if dist.get_rank() == 0:
        _announce(LOAD)
    share_out(transformer, device)
    if dist.get_rank() == 0:
        first().lead(transformer)


def _whole(share: Float[Tensor, "B n C"]) -> Float[Tensor, "B N C"]:
    """All processes' shares, which are those of `tensor_split`, one after the other."""
    total = torch.tensor(share.shape[1], device=share.device)
    dist.all_reduce(total)
    sizes = [len(part) for part in torch.arange(int(total)).tensor_split(count())]
    filled = nn.functional.pad(share, (0, 0, 0, max(sizes) - share.shape[1])).contiguous()
    parts = [torch.empty_like(filled) for _ in sizes]
    dist.all_gather(parts, filled)
    return torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], 1)


class First:
    """The process that makes the film."""

    def __init__(self) -> None:
        self._is_lost = False
        """Whether the others are in the middle of something that will not be finished."""

    def lead(self, transformer: Any) -> None:
        """Have the others run the transformer whenever this process does."""
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
        """Tell the others that the film is made, or that it will not be."""
        if dist.is_initialized() and not self._is_lost:
            _announce(END)
            dist.destroy_process_group()

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Do not end the program in the middle: the others would wait for this process for ever."""
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
    """This process as the first one; it dismisses the others when the program ends."""
    own = First()
    atexit.register(own.dismiss)
    return own


@torch.inference_mode()
def help_first(load: Callable[[], tuple[Run, Callable[[], None]]], device: torch.device) -> None:
    """Run the transformer that `load` gives, after what wakes it, as often as the first process does.

    Signals are left to the first process, which dismisses the others when it is done with what it was at.
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
    """Tell the others what comes next."""
    header = torch.zeros(1 + len(SENT), HEADER, dtype=torch.int64)
    header[0] = what
    for row, tensor in zip(header[1:], inputs, strict=False):
        if tensor is not None:
            numbers = [1, DTYPES.index(tensor.dtype), *tensor.shape]
            row[: len(numbers)] = torch.tensor(numbers)
    dist.broadcast(header, 0)


def _listen() -> tuple[int, list[list[int]]]:
    """Receive the number of the next task, and the shapes of its inputs."""
    header = torch.empty(1 + len(SENT), HEADER, dtype=torch.int64)
    dist.broadcast(header, 0)
    return int(header[0, 0]), header[1:].tolist()


def _received(announced: list[list[int]], device: torch.device) -> Iterator[Tensor | None]:
    for is_given, dtype, *sides in announced:
        tensor = torch.empty([side for side in sides if side], dtype=DTYPES[dtype], device=device) if is_given else None
        if tensor is not None:
            dist.broadcast(tensor, 0)
        yield tensor
