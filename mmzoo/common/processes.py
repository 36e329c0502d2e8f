"""Share work among the processes that `accelerate launch` started: each does a part, and all have every result, or one error.

Accelerate connects them where the launcher's environment says that there are several, and `torch.distributed` exchanges the
results. In a plain run neither is imported. All processes must call these functions in the same order.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

from mmzoo.common.sanitize import describe_error
from mmzoo.errors import MmzooError

Piece = TypeVar("Piece")
Result = TypeVar("Result")

# A process never waits for one that failed, so that a long wait means long work. NCCL would end it after 10 minutes.
WAIT = timedelta(days=7)
_exchanges = 0  # as many in every process


def count() -> int:
    """Return the number of processes, which are connected if there are several."""
    group = _group()
    return 1 if group is None else int(group.get_world_size())


def is_main() -> bool:
    """Return whether this is the only process, or the first of several."""
    if (group := _connected()) is not None:
        return int(group.get_rank()) == 0
    return not _launched() or os.environ["RANK"] == "0"


def gather(value: Any) -> list[Any]:
    """Return the value of each process, in every process.

    Raises:
        MmzooError: one has failed in `share` or `together`, or has ended.
    """
    return _exchange(value, None)


def agree(value: Any) -> bool:
    """Return whether the value, by its ``repr``, is the same in every process."""
    return _group() is None or len(set(gather(hashlib.sha256(repr(value).encode()).digest()))) == 1


def share(pieces: Sequence[Piece], work: Callable[[Piece], Result]) -> list[Result]:
    """Return the result of each piece, in order, in every process. Process i of n works on the pieces i, i + n, i + 2n, ...

    Raises:
        MmzooError: the first error by the order of the pieces, in every process; others stop before their next piece. An error of
            another class is raised as it is in the process that has it, and named in the others.
    """
    group = _group()
    if group is None:
        return [work(piece) for piece in pieces]
    done: dict[int, Result] = {}
    failure, store, key = None, _store(), f"mmzoo/failed/{_exchanges}"
    for number in range(group.get_rank(), len(pieces), group.get_world_size()):
        if store is not None and store.check([key]) and int(store.get(key)) < number:
            break
        try:
            done[number] = work(pieces[number])
        except Exception as error:
            failure = (number, error)
            if store is not None:
                store.set(key, str(number))
            break
    results = {number: result for own in _exchange(done, failure) for number, result in own.items()}
    return [results[number] for number in range(len(pieces))]


def once(work: Callable[[], Result]) -> Result:
    """Return the result of the main process, or raise its error, in every process."""
    return share([None], lambda _: work())[0]


@contextmanager
def together() -> Iterator[None]:
    """Raise an error that one process has in the block in every process, so that none waits for it. Blocks may be nested."""
    if _group() is None:
        yield
        return
    try:
        yield
    except Exception as error:
        if not is_everywhere(error):
            _exchange(None, (-1, error))
        raise
    _exchange(None, None)


@contextmanager
def main_first() -> Iterator[None]:
    """Run the block in the first process of each machine, then in the others, which find its downloads; within `together`."""
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    if not first:
        gather(None)
    yield
    if first:
        gather(None)


@contextmanager
def connected() -> Iterator[None]:
    """Raise an `MmzooError` where the block waits for a process that has ended; its own message says why."""
    try:
        yield
    except RuntimeError as error:
        group = _connected()
        if group is None or not (isinstance(error, group.DistError) or "gloo" in str(error)):
            raise
        raise _mark(MmzooError(f"another process has ended; its own message says why ({describe_error(error)})")) from None


def is_everywhere(error: BaseException) -> bool:
    """Return whether every process has raised this error."""
    return getattr(error, "_everywhere", False)


def _launched() -> bool:
    """Return whether the environment is that of one of several processes, as torchrun, and accelerate through it, set it."""
    return all(name in os.environ for name in ("RANK", "LOCAL_RANK")) and int(os.environ.get("WORLD_SIZE", "1")) > 1


def _connected() -> Any:
    """Return `torch.distributed` if this is one of several processes that are connected already, else None."""
    group: Any = sys.modules.get("torch.distributed")
    started = group is not None and group.is_available() and group.is_initialized()
    return group if started and group.get_world_size() > 1 else None


def _group() -> Any:
    """Return `torch.distributed` if this is one of several processes, else None; connect them first if need be."""
    if _connected() is None and _launched():
        import torch
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env

        cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
        PartialState(cpu=cpu, timeout=WAIT)
    return _connected()


@cache
def _store() -> Any:
    """Return the launcher's store, in which a process notes that it failed; None in programs without one."""
    from torch.distributed import TCPStore

    if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
        return None
    return TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)


def _exchange(value: Any, failure: tuple[int, Exception] | None) -> list[Any]:
    """Return the values of all processes, or raise the first failure, a piece and its error."""
    global _exchanges
    group = _group()
    if group is None:
        return [value]
    rank, told = group.get_rank(), None
    try:
        mine = pickle.dumps(value if failure is None else None)
    except Exception as error:  # a prediction of a plugin
        failure = (-1, MmzooError(f"a result cannot be sent to the other processes: {describe_error(error)}"))
        mine = b""
    if failure is not None:
        told = (failure[0], rank, *_describe(failure[1], rank))
    every: list[Any] = [None] * group.get_world_size()
    _exchanges += 1
    with connected():
        group.all_gather_object(every, (told, mine))
    if failures := sorted((told for told, _ in every if told is not None), key=lambda told: told[:2]):
        _, culprit, kind, message = failures[0]
        raise _mark(failure[1] if failure is not None and culprit == rank else kind(message))
    return [pickle.loads(values) for _, values in every]


def _describe(error: Exception, rank: int) -> tuple[type[MmzooError], str]:
    """Return the class and the message of an error for the other processes."""
    if not isinstance(error, MmzooError):
        return MmzooError, f"process {rank} failed: {describe_error(error)}"
    try:
        same = str(pickle.loads(pickle.dumps(type(error)))(str(error))) == str(error)
    except Exception:  # its class takes something else than a message
        same = False
    return type(error) if same else MmzooError, str(error)


def _mark(error: Exception) -> Exception:
    """Return an error that every process raises, marked as such."""
    error._everywhere = True  # type: ignore[attr-defined]
    return error
