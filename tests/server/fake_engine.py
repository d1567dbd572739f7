"""A scripted engine process: speaks `engine.messages` over the real socket, imports no torch.

Started like the real one (`python -m tests.server.fake_engine ENDPOINT`, configuration on standard input), or like
`engine.fetch` (`python -m tests.server.fake_engine fetch ENDPOINT`). The script is JSON in the environment variable
FAKE_ENGINE; see `Script`. What happened is appended to `log`, a line of JSON for each event.
"""

import json
import os
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import msgspec
import zmq

from engine.config import EngineConfig
from engine.constraint import Relaxed
from engine.lifetime import die_with_parent
from engine.messages import (
    AbortRequest,
    AddRequest,
    AskCached,
    Asleep,
    Cached,
    EngineInfo,
    EngineStats,
    LoadFailed,
    Loading,
    Ready,
    SequenceOutput,
    Shutdown,
    Sleep,
    StepOutputs,
    TokenLogprobs,
    Wake,
    decode_inbound,
    encode,
)

SCRIPT_VARIABLE = "FAKE_ENGINE"
PAUSE = 0.01
"""Seconds between looks at what is held."""


class Script(msgspec.Struct, frozen=True):
    """What the fake engine does."""

    model_dir: str = ""
    token_ids: list[int] = []
    """Every sequence gets these, over and over, up to its max_tokens; a seed and the choice rotate them."""
    answers: dict[int, list[list[int]]] = {}
    """By seed, instead of `token_ids`: the tokens of each choice, which ends with `stop` after them."""
    eos_after: int = 0
    """Tokens after which a sequence ends with `stop`; 0 never."""
    step_seconds: float = 0.0
    gate: str = ""
    """A file whose existence lets go on what those that begin with `holds` hold; without a name they hold for ever."""
    holds: dict[int, int] = {}
    """By seed, -1 for none: tokens after which a sequence stands still, 0 for its prefill."""
    holds_load: bool = False
    holds_wake: bool = False
    dies_falling_asleep: bool = False
    load_fails: str = ""
    ends_itself: bool = False
    """Whether a process whose load has failed ends at once, or waits to be ended."""
    load_exit: int = -1
    """Exit with this code while loading."""
    error_after: int = -1
    """Tokens after which a sequence fails with `error`."""
    error_param: str = ""
    error_code: str = ""
    accepts: bool = True
    """Whether a request is said to be queued."""
    queue_seconds: float | None = None
    """What sequences are said to have waited."""
    relaxed: list[str] = []
    """What is said to be left out of every request's constraint."""
    device: str = "cpu"
    weights_bytes: int = 0
    kv_bytes: int = 0
    by_model: dict[str, dict[str, Any]] = {}
    """By the model's name, fields of this script that are others for it."""
    log: str = ""
    context: int = 8192
    exit_at_start_if: str = ""
    """A file whose existence makes the process exit at once with code 3."""


@dataclass
class Running:
    """One sequence."""

    add: AddRequest
    index: int
    done: int = 0

    @property
    def seed(self) -> int:
        """As the script speaks of it: -1 for none."""
        return -1 if self.add.params.seed is None else self.add.params.seed


@dataclass
class FakeEngine:
    """The loop, the sequences and the socket."""

    script: Script
    config: EngineConfig
    socket: "zmq.Socket[bytes]"
    running: dict[tuple[int, int], Running] = field(default_factory=dict)
    generated: int = 0
    prompt: int = 0
    aborted: int = 0
    steps: int = 0

    def note(self, event: str, **more: object) -> None:
        """Append an event to the log."""
        if self.script.log:
            with open(self.script.log, "a") as file:
                file.write(json.dumps({"event": event, "pid": os.getpid(), "model": self.config.name, **more}) + "\n")

    def gate_is_open(self) -> bool:
        """Whether what was held may go on."""
        return bool(self.script.gate) and os.path.exists(self.script.gate)

    def load(self, stage: str = "reading weights") -> bool:
        """Pretend to load, or to download; whether that went well."""
        if self.script.load_exit >= 0:
            os._exit(self.script.load_exit)
        for step in range(5):
            self.socket.send(encode(Loading(stage, step / 5)))
        while self.script.holds_load and not self.gate_is_open():
            time.sleep(PAUSE)
        if self.script.load_fails:
            self.socket.send(encode(LoadFailed(self.script.load_fails, "try something else")))
            if not self.script.ends_itself:
                time.sleep(3600)
            return False
        return True

    def info(self) -> EngineInfo:
        """A plausible description."""
        return EngineInfo(
            name=self.config.name, architecture="FakeForCausalLM",
            model_dir=self.script.model_dir or self.config.source,
            context=self.script.context, vocab_size=49152, eos_token_ids=[2],
            device=self.script.device, dtype="float32", attention="reference", block_size=16,
            num_blocks=self.script.context // 16 + 1, max_num_seqs=64, weights_bytes=self.script.weights_bytes,
            kv_bytes=self.script.kv_bytes, num_parameters=0, load_seconds=0.0, generation_defaults={}, numerics="fake",
            notes=[],
        )  # fmt: skip

    def stats(self) -> EngineStats:
        """Counters so far."""
        owned = len(self.running)
        return EngineStats(
            num_running=owned, blocks_total=4096, blocks_free=4096 - owned, blocks_owned=owned, steps=self.steps,
            prompt_tokens=self.prompt, generation_tokens=self.generated, aborted=self.aborted,
        )  # fmt: skip

    def receive(self, frame: bytes) -> bool:
        """Handle one message; False ends the engine."""
        match decode_inbound(frame):
            case AddRequest() as add:
                self.note("add", id=add.request_id, n=add.n, seed=add.params.seed, salt=add.salt.hex(),
                          max_tokens=add.params.max_tokens, prompt=len(add.prompt_token_ids),
                          priority=add.priority, weight=add.weight,
                          constraint=msgspec.to_builtins(add.params.constraint),
                          budget=msgspec.to_builtins(add.params.reasoning_budget))  # fmt: skip
                if self.script.accepts:
                    relaxed = Relaxed.of(self.script.relaxed) if self.script.relaxed else None
                    accepted = SequenceOutput(add.request_id, relaxed=relaxed)
                    self.socket.send(encode(StepOutputs([accepted], self.stats())))
                self.prompt += len(add.prompt_token_ids)
                for choice in range(add.n):
                    self.running[add.request_id, choice] = Running(add, choice)
            case AbortRequest(request_ids=ids, index=index):
                self.note("abort", ids=ids, index=index)
                for key in [key for key in self.running if key[0] in ids and index in (None, key[1])]:
                    del self.running[key]
                    self.aborted += 1
            case AskCached() as asked:
                self.note("ask_cached", prompt=len(asked.prompt_token_ids), salt=asked.salt.hex())
                self.socket.send(encode(Cached(asked.question_id, len(asked.prompt_token_ids) // 16 * 16)))
            case Sleep():
                self.note("sleep")
                if self.script.dies_falling_asleep:
                    os._exit(1)
                weights = self.script.weights_bytes
                self.socket.send(encode(Asleep(weights + self.script.kv_bytes, weights)))
            case Wake():
                self.note("wake")
                self.socket.send(encode(Loading("waking up")))
                while self.script.holds_wake and not self.gate_is_open():
                    time.sleep(PAUSE)
                self.socket.send(encode(Ready(self.info())))
            case Shutdown():
                self.note("shutdown")
                return False
        return True

    def step(self) -> list[SequenceOutput]:
        """One token for each sequence."""
        is_open = self.gate_is_open()
        outputs = [
            output
            for sequence in self.running.values()
            if is_open or sequence.done != self.script.holds.get(sequence.seed)
            for output in (*self.scores(sequence), self.token(sequence))
        ]
        for output in outputs:
            if output.finish_reason is not None:
                del self.running[output.request_id, output.index]
        self.steps += 1
        return outputs

    def scores(self, sequence: Running) -> list[SequenceOutput]:
        """The prompt's log-probabilities, -1 for its second token, -2 for the third and so on, in two pieces."""
        wanted, ids = sequence.add.params.prompt_logprobs, sequence.add.prompt_token_ids
        if wanted is None or sequence.done or sequence.index:
            return []
        scores = [
            TokenLogprobs(-float(place), [ids[place], *range(wanted - 1)][:wanted], [-float(place)] * wanted)
            for place in range(1, len(ids))
        ]
        pieces = [piece for piece in (scores[:2], scores[2:]) if piece]
        return [SequenceOutput(sequence.add.request_id, prompt_logprobs=piece) for piece in pieces]

    def token(self, sequence: Running) -> SequenceOutput:
        """The next output of one sequence."""
        script, params = self.script, sequence.add.params
        request_id, index = sequence.add.request_id, sequence.index
        if sequence.done == script.error_after:
            return SequenceOutput(
                request_id,
                index,
                finish_reason="error",
                error="the scripted failure",
                error_param=script.error_param or None,
                error_code=script.error_code or None,
            )
        if params.max_tokens == 0:
            return SequenceOutput(request_id, index, finish_reason="length")
        answers = script.answers.get(sequence.seed)
        ends_after = len(answers[index]) if answers else script.eos_after
        if ends_after and sequence.done == ends_after:
            return SequenceOutput(
                request_id, index, token_ids=[2], logprobs=_scored(params.logprobs, 2), finish_reason="stop"
            )
        shift = 0 if params.seed is None else params.seed + index
        ids = script.token_ids
        token_id = answers[index][sequence.done] if answers else ids[(sequence.done + shift) % len(ids)]
        sequence.done += 1
        self.generated += 1
        return SequenceOutput(
            request_id,
            index,
            token_ids=[token_id],
            queue_seconds=script.queue_seconds if sequence.done == 1 else None,
            logprobs=_scored(params.logprobs, token_id),
            finish_reason="length" if sequence.done >= params.max_tokens else None,
        )

    def run(self) -> None:
        """Serve until told to end."""
        self.socket.send(encode(Ready(self.info())))
        heartbeat = 0.0
        while True:
            timeout = 0 if self.running else 200
            while self.socket.poll(timeout):
                if not self.receive(self.socket.recv()):
                    return
                timeout = 0
            outputs = self.step() if self.running else []
            if outputs or time.monotonic() - heartbeat > 0.5:
                heartbeat = time.monotonic()
                self.socket.send(encode(StepOutputs(outputs, self.stats())))
            if self.running:
                time.sleep(self.script.step_seconds if outputs else PAUSE)


def _scored(asked: int | None, token_id: int) -> list[TokenLogprobs] | None:
    if asked is None:
        return None
    top = [token_id, *(token_id + 1 + k for k in range(asked))][:asked]
    return [TokenLogprobs(-0.5, top, [-0.5 - k for k in range(len(top))])]


def main() -> None:
    """Read the configuration and the script, connect, load, serve."""
    die_with_parent()
    config = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=EngineConfig)
    script = msgspec.json.decode(os.environ[SCRIPT_VARIABLE], type=Script)
    script = msgspec.structs.replace(script, **script.by_model.get(config.name, {}))
    if script.exit_at_start_if and os.path.exists(script.exit_at_start_if):
        sys.exit(3)
    context = zmq.Context()
    socket: zmq.Socket[bytes] = context.socket(zmq.PAIR)
    socket.setsockopt(zmq.SNDHWM, 0)
    is_fetch = sys.argv[1] == "fetch"
    socket.connect(sys.argv[2 if is_fetch else 1])
    fake = FakeEngine(script, config, socket)
    fake.note("fetch" if is_fetch else "start")
    print("fake engine speaking", file=sys.stderr)
    if is_fetch:
        fake.load("downloading")
    elif fake.load():
        fake.run()
    context.destroy(linger=5000)


if __name__ == "__main__":
    main()
