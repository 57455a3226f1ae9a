"""Completions by vLLM servers in other processes, with weights sent to them, and their deaths survived."""

import itertools
import logging
import secrets
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from transformers import PreTrainedTokenizerBase

from rlhf.config.rollouts import SamplingConfig, ServerEngineConfig
from rlhf.data.types import Sample
from rlhf.rollouts.engine import EngineError, Request
from rlhf.rollouts.rank_agreement import from_main_rank, rank_and_world
from rlhf.rollouts.server_client import RolloutServer, ServerFault
from rlhf.rollouts.server_requests import (
    STARTUP_VERSION,
    UselessAnswer,
    Wanted,
    deal,
    read_answer,
    request_body,
    request_id,
)
from rlhf.rollouts.server_start import check_agreement, wait_until_started
from rlhf.rollouts.server_watch import ServerWatch, wait_ready
from rlhf.rollouts.server_weights import KeptWeights
from rlhf.rollouts.stop_tokens import resolve_stop_token_ids
from rlhf.rollouts.vllm_sampling import check_requests

logger = logging.getLogger("rlhf.rollouts.server")


class ServerEngine:
    """Implements `Engine` with servers that launch/rollout_server.py started.

    Every rank asks for its own completions; the main rank alone sends weights. `generate` does nothing collective and
    may run in a thread; `load_weights` and `checksums` are collective. `longest_sequence`: prompt plus completion
    tokens that the servers must hold. Raises EngineError where the servers are not there `start_timeout_s` long, and
    ValueError where one of them computes in another precision or holds shorter sequences.
    """

    def __init__(
        self,
        config: ServerEngineConfig,
        *,
        dtype: torch.dtype,
        tokenizer: PreTrainedTokenizerBase,
        longest_sequence: int,
    ) -> None:
        self.config, self.dtype, self.tokenizer = config, dtype, tokenizer
        self.max_model_len = longest_sequence
        self.version = 0
        self.rank, self.world_size = rank_and_world()
        self._label = STARTUP_VERSION
        self._checksums: dict[str, str] | None = None
        self._run, self._pushes, self._calls = secrets.token_hex(4), itertools.count(1), itertools.count(1)
        self._is_closed = False
        self._broken = ""
        """Why the last weight update failed; until another one succeeds."""
        self._kept: KeptWeights | None = None
        self._changed = threading.Condition()
        servers = [
            RolloutServer(
                url, push_timeout_s=config.push_timeout_s, probe_timeout_s=max(5.0, config.heartbeat_timeout_s)
            )
            for url in config.urls
        ]
        for server in servers:
            about = wait_until_started(server, config.start_timeout_s, min(1.0, config.heartbeat_s))
            check_agreement(server.url, about, dtype, longest_sequence)
        self._watches = [
            ServerWatch(
                server, self._changed, heartbeat_s=config.heartbeat_s, heartbeat_timeout_s=config.heartbeat_timeout_s
            )
            for server in servers
        ]
        for watch in self._watches:
            watch.expect(self._label, None)

    def generate(
        self, requests: Sequence[Request], sampling: SamplingConfig, *, continues: bool = False
    ) -> list[Sample]:
        """See `Engine.generate`. Completions of a server that dies are made again, with their seeds, by the others or
        by itself when it is back; the same seeds give the same samples up to float rounding.

        Raises ValueError for a prompt that leaves no room for `max_tokens`, EngineError when no server is left.
        """
        self._check_open()
        if self._broken:
            raise EngineError(f"the servers cannot be used, a weight update broke off: {self._broken}")
        check_requests(requests, sampling, self.max_model_len)
        label, version, call = self._label, self.version, f"{self._run}.{self.rank}.{next(self._calls)}"
        stop_token_ids = sorted(resolve_stop_token_ids(sampling.stop_token_ids, self.tokenizer))
        samples: dict[int, Sample] = {}
        wanted = [Wanted(place, request) for place, request in enumerate(requests)]

        def ask(watch: ServerWatch, each: Wanted) -> Sample:
            identity = request_id(call, each)
            body = request_body(identity, each.request, sampling, stop_token_ids)
            answer = watch.server.generate(body, self.config.request_timeout_s)
            return read_answer(answer, identity, each.request, label, version, self.tokenizer, watch.server.url)

        while wanted:
            why = f"generating with weights of version {version} (rank {self.rank})"
            ready = wait_ready(self._watches, self._changed, self.config.retry_for_s, why)
            if label != self._label:
                raise EngineError(f"{why}: the weights were replaced by those of version {self.version} meanwhile")
            if not continues and self.world_size == 1 and not samples:
                _drop_cached_prefixes(ready)
            wanted = self._ask_all(deal(wanted, ready, self.rank), ask, samples)
        return [samples[place] for place in range(len(requests))]

    def _ask_all(self, dealt, ask, samples: dict[int, Sample]) -> list[Wanted]:
        """Ask the servers for their parts at once; puts samples in their places and returns what is to be repeated."""
        again: list[Wanted] = []
        pools = {watch: ThreadPoolExecutor(min(len(part), self.config.max_in_flight)) for watch, part in dealt.items()}
        try:
            asked: list[tuple[ServerWatch, Wanted, Future[Sample]]] = [
                (watch, each, pools[watch].submit(ask, watch, each)) for watch, part in dealt.items() for each in part
            ]
            for watch, each, future in asked:
                try:
                    samples[each.place] = future.result()
                except (ServerFault, UselessAnswer) as fault:
                    was_well = watch.state == "ready"
                    watch.suspect(str(fault))
                    if each.attempt >= self.config.retries + len(self._watches):
                        raise EngineError(
                            f"sample {each.request.prompt.id}/{each.request.index} was asked for "
                            f"{each.attempt + 1} times (weights of version {self.version}), the last time: {fault}"
                        ) from fault
                    if was_well:
                        logger.warning("%s. Its completions are asked for again", fault)
                    again.append(Wanted(each.place, each.request, each.attempt + 1))
        except BaseException:  # an interruption by the user too: nobody waits for the rest
            for watch in dealt:
                watch.server.abort_waiting()
            raise
        finally:
            for pool in pools.values():
                pool.shutdown(wait=True, cancel_futures=True)
        return again

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """See `Engine.load_weights`. Collective: every rank walks the weights (gathering shards is collective), the
        main rank sends them. Raises EngineError on all ranks where no server could be given them."""
        self._check_open()
        label, problem = "", ""
        if self.rank == 0:
            label = f"{self._run}.{next(self._pushes)}.v{version}"
            problem = self._send(weights, label, version)
        else:
            for _ in weights:
                pass
        label, problem = from_main_rank((label, problem))
        self._broken = problem
        if problem:
            raise EngineError(problem)
        self._label, self.version, self._checksums = label, version, None
        if self.rank != 0:
            for watch in self._watches:
                watch.expect(label, None)

    def _send(self, weights: Iterable[tuple[str, torch.Tensor]], label: str, version: int) -> str:
        """Write the files and push them to all servers; the watches push them to those that are down, when they are
        back. Returns what went wrong, for all ranks to raise."""
        walk = iter(weights)
        for watch in self._watches:
            watch.pushing.acquire()
            # until it is whole, nobody may give a server what lies in the folder
            watch.expect(label, None)
        try:
            if self._kept is None:
                self._kept = KeptWeights(self.config.weights_folder, self.dtype, self.config.bucket_mib * 2**20)
            self._kept.replace(walk)
            self._checksums = None
            with ThreadPoolExecutor(len(self._watches)) as pool:
                pushed = [pool.submit(self._push, watch.server, label) for watch in self._watches]
            failures = [each.exception() for each in pushed]
            for error in failures:
                if error is not None and not isinstance(error, ServerFault):
                    return f"the weights of version {version} were refused: {error}"
        except OSError as error:
            for _ in walk:  # the other ranks gather the rest
                pass
            return f"the weights of version {version} could not be kept in {self.config.weights_folder}: {error}"
        finally:
            for watch in self._watches:
                watch.pushing.release()
        for watch, fault in zip(self._watches, failures, strict=True):
            if fault is not None:
                logger.warning("weights of version %d: %s. It gets them when it is back", version, fault)
            watch.expect(label, lambda server: self._restore(server, label), is_held=fault is None)
        try:
            why = f"sending the weights of version {version}, after version {self.version}"
            wait_ready(self._watches, self._changed, self.config.retry_for_s, why)
        except EngineError as error:
            return str(error)
        return ""

    def _push(self, server: RolloutServer, label: str) -> None:
        over_http = self.config.transfer == "http" or (self.config.transfer == "auto" and not server.is_local)
        server.push(self._kept.folder, self._kept.names, label, over_http=over_http)

    def _restore(self, server: RolloutServer, label: str) -> None:
        """Give a server that came back the weights, and compare its checksums with those that the others had."""
        self._push(server, label)
        expected = self._checksums
        if expected is not None and server.checksums() != expected:
            raise EngineError(f"{server.url}: weight update: its checksums differ from those before it was lost")

    def checksums(self) -> dict[str, str]:
        """See `Engine.checksums`. Collective. Read from every server that is ready; EngineError where they differ."""
        self._check_open()
        found, problem = {}, ""
        if self.rank == 0:
            try:
                found = self._read_checksums()
            except (EngineError, ServerFault) as error:
                problem = str(error)
        found, problem = from_main_rank((found, problem))
        if problem:
            raise EngineError(problem)
        self._checksums = found
        return found

    def _read_checksums(self) -> dict[str, str]:
        for attempt in range(self.config.retries + 1):
            why = f"reading the checksums of version {self.version}"
            ready = wait_ready(self._watches, self._changed, self.config.retry_for_s, why)
            with ThreadPoolExecutor(len(ready)) as pool:
                read = [pool.submit(watch.server.checksums) for watch in ready]
            failed = [(watch, each.exception()) for watch, each in zip(ready, read, strict=True) if each.exception()]
            if not failed:
                first, *others = [each.result() for each in read]
                for watch, other in zip(ready[1:], others, strict=True):
                    if other != first:
                        raise EngineError(f"{watch.server.url} computes with other weights than {ready[0].server.url}")
                return first
            for watch, error in failed:
                if not isinstance(error, ServerFault) or attempt == self.config.retries:
                    raise error
                watch.suspect(str(error))
        raise AssertionError("the last attempt returns or raises")

    def states(self) -> dict[str, str]:
        """What each server is up to, by its address (see `ServerWatch`)."""
        return {watch.server.url: watch.state for watch in self._watches}

    def close(self) -> None:
        """Leave the servers as they are, for the next trainer; remove the weights kept for them. Idempotent."""
        self._is_closed = True
        for watch in self._watches:
            watch.close()
        if self._kept is not None:
            self._kept.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineError("the server engine cannot be used: it is closed")


def _drop_cached_prefixes(watches: Sequence[ServerWatch]) -> None:
    """A prefix cached by an earlier call would change this call's rounding, and with it now and then a token."""
    for watch in watches:
        try:
            watch.server.reset_prefix_cache()
        except ServerFault as fault:
            watch.suspect(str(fault))
