"""Padded decoding steps, as a CUDA device would record them, on the CPU: the same answers, the right buckets."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from engine.device.forward_batch import ForwardBatch
from engine.device.host_batch import HostBatch
from engine.execution.graphs import DecodeGraphs
from engine.execution.mixed_graphs import MixedGraphs
from engine.execution.model_runner import ModelRunner
from engine.sampling_params import SamplingParams
from engine.scheduling.block_manager import NULL_BLOCK, BlockManager
from engine.scheduling.scheduled import Scheduled
from engine.scheduling.scheduler import Scheduler
from engine.scheduling.sequence import Sequence
from engine.sizing import steps
from engine.sizing.steps import bucket_sizes, step_sizes
from tests.engine.test_oracle import generate, make_engine, random_mix, run
from tests.tiny_models import VOCAB_SIZE


def test_buckets_reach_the_limit_in_small_steps() -> None:
    assert bucket_sizes(1) == [1]
    assert bucket_sizes(6) == [1, 2, 4, 6]
    assert bucket_sizes(64)[-3:] == [48, 56, 64]
    sizes = bucket_sizes(256)
    assert sizes[-1] == 256 and all(b - a <= 16 for a, b in pairwise(sizes))


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("llama", {"overlap": True}),
        ("llama", {"attention": "reference", "num_blocks": 30, "max_batched_tokens": 12}),
        ("gemma2", {}),
        ("deepseek_v3", {"overlap": True}),
    ],
)
def test_padded_steps_say_what_generate_says(
    family: str, options: dict[str, object], tiny_model_dir: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tiny_model_dir(family)
    rows: set[int] = set()
    sizes: set[tuple[int, int]] = set()
    decode, mixed = DecodeGraphs.run, MixedGraphs.run

    def seen(self: DecodeGraphs, batch: HostBatch) -> torch.Tensor:
        rows.add(len(batch.query_lens))
        return decode(self, batch)

    def seen_mixed(self: MixedGraphs, batch: HostBatch, size: tuple[int, int]) -> torch.Tensor:
        sizes.add(size)
        return mixed(self, batch, size)

    monkeypatch.setattr(steps, "TOKEN_SIZES", (8, 12, 40))
    monkeypatch.setattr(steps, "ROW_SIZES", (3,))
    monkeypatch.setattr(DecodeGraphs, "run", seen)
    monkeypatch.setattr(MixedGraphs, "run", seen_mixed)
    engine = make_engine(directory, graphs=True, max_num_seqs=6, **options)
    requests, arrivals = random_mix(4, longest=40)
    outputs = run(engine, requests, arrivals)
    for request_id, request in requests.items():
        wanted = generate(directory, request.prompt_token_ids, request.params.max_tokens or 0)
        assert outputs[request_id] == wanted[: len(outputs[request_id])] and outputs[request_id]
    assert {3, 5} & rows, "no decoding step was padded"
    assert len(sizes) > 1, "no step with prompts was padded to one of several sizes"


def test_warming_up_leaves_nothing_behind(tiny_model_dir: Callable[[str], Path]) -> None:
    """Every bucket runs, with a sequence in the cache already, and no block but the null block is written."""
    directory = tiny_model_dir("llama")
    engine = make_engine(directory, graphs=True, max_num_seqs=6)
    runner = engine._runner
    assert isinstance(runner, ModelRunner) and runner.padded is not None
    requests, _ = random_mix(4, longest=40)
    request = next(iter(requests.values()))
    engine.add(request)
    outputs = engine.step()
    before = [cache.k[:, 4:].clone() for cache in runner.caches.values()]
    sizes: list[int] = []
    step = runner.padded.decoding._step
    runner.padded.decoding._step = lambda size, known: (sizes.append(size), step(size, known))[1]  # type: ignore[method-assign]
    mixed: list[tuple[int, int]] = []
    mixed_step = runner.padded.mixed._step  # type: ignore[union-attr]
    runner.padded.mixed._step = lambda size, *lens: (mixed.append(size), mixed_step(size, *lens))[1]  # type: ignore
    runner.warm_up()
    assert sizes == bucket_sizes(6)[::-1]
    assert mixed == step_sizes(6, runner.context)[::-1]
    assert all(torch.equal(kept, cache.k[:, 4:]) for kept, cache in zip(before, runner.caches.values(), strict=True))
    while engine.has_work:
        outputs += engine.step()
    found = [token for output in outputs for token in output.token_ids]
    wanted = generate(directory, request.prompt_token_ids, request.params.max_tokens or 0)
    assert found and found == wanted[: len(found)]


@torch.inference_mode()
def test_a_padded_step_says_what_its_token_says_each_time(tiny_model_dir: Callable[[str], Path]) -> None:
    engine = make_engine(tiny_model_dir("llama"), graphs=True)
    runner = engine._runner
    assert isinstance(runner, ModelRunner) and runner.padded is not None
    step = runner.padded.decoding.padded(1)
    first = step()
    assert not torch.equal(runner.padded.decoding.padded(1, token=5)(), first), "another token"
    assert not torch.equal(step(), first), "a step reads what was put last"
    runner.padded.decoding.padded(1)
    assert torch.equal(step(), first)


@pytest.mark.parametrize("graphs", [True, "lazy"])
def test_where_recording_breaks_off_steps_go_on_eagerly_on_their_own_stream(
    graphs: bool | str, tiny_model_dir: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`torch.cuda.graph` leaves its stream the current one if the recording cannot be ended."""
    streams, tries = ["of the steps"], []

    class Broken:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def __enter__(self) -> None:
            tries.append(streams[0])
            streams[0] = "of the recording"

        def __exit__(self, *_: object) -> None:
            raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", Broken)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams[0])
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: streams.__setitem__(0, stream))
    engine = make_engine(tiny_model_dir("llama"), graphs=graphs, max_num_seqs=2)
    runner = engine._runner
    assert isinstance(runner, ModelRunner) and runner.padded is not None
    recorder = runner.padded.decoding._recorder
    recorder.records, recorder._logits = True, torch.zeros(2, VOCAB_SIZE)
    runner.warm_up()
    assert len(tries) == (graphs is True)
    requests, arrivals = random_mix(2, longest=12)
    outputs = run(engine, requests, arrivals)
    assert tries == ["of the steps"] and streams == ["of the steps"]
    assert runner.padded.decoding.num_recorded == runner.padded.mixed.num_recorded == 0 and not recorder.records
    for request_id, request in requests.items():
        wanted = generate(tiny_model_dir("llama"), request.prompt_token_ids, request.params.max_tokens or 0)
        assert outputs[request_id] == wanted[: len(outputs[request_id])] and outputs[request_id]


def test_a_runner_pads_only_where_it_is_asked_to(tiny_model_dir: Callable[[str], Path]) -> None:
    for graphs in (None, False, True, "lazy"):
        runner = make_engine(tiny_model_dir("llama"), graphs=graphs)._runner
        assert isinstance(runner, ModelRunner) and (runner.padded is not None) is bool(graphs)


class FakeGraph:
    """Counts how often a device would have repeated it."""

    def __init__(self) -> None:
        self.num_replays = 0

    def replay(self) -> None:
        self.num_replays += 1


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[FakeGraph]:
    """Recordings as they are begun; the second finds no memory."""
    begun: list[FakeGraph] = []

    class Recording:
        def __init__(self, graph: FakeGraph, **_: object) -> None:
            begun.append(graph)

        def __enter__(self) -> None:
            if len(begun) == 2:
                raise torch.OutOfMemoryError("CUDA out of memory")

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
    return begun


def recording_runner(directory: Path, **options: object) -> ModelRunner:
    """One that believes that its device records steps."""
    runner = make_engine(directory, max_num_seqs=6, **options)._runner
    assert isinstance(runner, ModelRunner)
    runner.padded.recorder.records = True
    return runner


def test_one_size_that_finds_no_memory_is_dropped_alone(
    tiny_model_dir: Callable[[str], Path], recorded: list[FakeGraph], caplog: pytest.LogCaptureFixture
) -> None:
    runner = recording_runner(tiny_model_dir("llama"), graphs=True)
    assert runner.padded is not None
    told: list[tuple[str, float | None]] = []
    with caplog.at_level("INFO"):
        runner.warm_up(lambda stage, share: told.append((stage, share)))
    mixed, decoding = step_sizes(6, runner.context), bucket_sizes(6)
    total = len(mixed) + len(decoding)
    assert len(recorded) == total
    assert runner.padded.mixed.num_recorded == len(mixed) - 1 and runner.padded.decoding.num_recorded == len(decoding)
    assert [size for size, graph in runner.padded.mixed._graphs.items() if graph is None] == [mixed[-2]]
    assert [share for stage, share in told if stage == "recording steps"] == [n / total for n in range(total + 1)]
    assert f"recorded {total - 1} of {total} sizes of steps in " in caplog.text


def step_of(runner: ModelRunner, *lengths: int) -> HostBatch:
    """Of sequences that have one token in the cache, as it were, and so many to compute."""
    rows = []
    for slot, length in enumerate(lengths):
        sequence = Sequence(
            request_id=slot,
            prompt_token_ids=[5] * (length + 1),
            params=SamplingParams(max_tokens=1),
            seed=slot,
            max_len=100,
        )
        sequence.slot, sequence.block_table, sequence.num_computed_tokens = slot, [NULL_BLOCK] * 20, 1
        rows.append(Scheduled(sequence, length))
    return runner.pack(rows)


def test_once_all_is_recorded_nothing_is_while_it_serves(
    tiny_model_dir: Callable[[str], Path], recorded: list[FakeGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever meets is repeated; the size that found no memory is that of steps which are larger."""
    runner = recording_runner(tiny_model_dir("llama"), graphs=True)
    assert runner.padded is not None
    runner.warm_up()
    number = len(recorded)
    assert [size for size, graph in runner.padded.mixed._graphs.items() if graph is None] == [(384, 7)]
    eagerly: list[int] = []
    forward = runner._forward

    def noted(batch: ForwardBatch, host: HostBatch | None = None) -> torch.Tensor:
        eagerly.append(len(batch.input_ids))
        return forward(batch, host)

    for graphs in (runner, runner.padded.decoding, runner.padded.mixed):
        monkeypatch.setattr(graphs, "_forward", noted)
    for lengths in [(1,) * rows for rows in range(1, 7)] + [(1, 1, length) for length in range(2, 78)]:
        runner.run(step_of(runner, *lengths))
    assert len(recorded) == number
    assert not eagerly and sum(graph.num_replays for graph in recorded) == 6 + 76


def test_a_lazy_size_is_recorded_once_when_a_step_needs_it(
    tiny_model_dir: Callable[[str], Path], recorded: list[FakeGraph]
) -> None:
    runner = recording_runner(tiny_model_dir("llama"), graphs="lazy")
    assert runner.padded is not None
    told: list[str] = []
    runner.warm_up(lambda stage, share: told.append(stage))
    assert not recorded and "recording steps" not in told

    for lengths in ((1, 1, 1), (1, 1, 1, 1)):
        runner.run(step_of(runner, *lengths))
    assert runner.padded.decoding._graphs == {4: recorded[0]} and recorded[0].num_replays == 1
    for _ in range(3):
        runner.run(step_of(runner, 1, 1))
    assert len(recorded) == 2, "a size without memory is tried at each step"
    for length in (20, 60, 70):
        runner.run(step_of(runner, 1, length))
    assert runner.padded.mixed._graphs == {(64, 7): recorded[2], (128, 7): recorded[3]}
    assert [graph.num_replays for graph in recorded[2:]] == [1, 0]
    assert runner.padded.decoding.num_recorded == 1 and runner.padded.mixed.num_recorded == 2

    runner.padded.decoding.forget()
    runner.run(step_of(runner, 1, 1))
    assert len(recorded) == 5 and runner.padded.decoding.num_recorded == 1, "what slept is recorded anew"


def test_what_another_rank_has_not_recorded_is_not_tried_again(
    tiny_model_dir: Callable[[str], Path], recorded: list[FakeGraph]
) -> None:
    runner = recording_runner(tiny_model_dir("llama"), graphs="lazy")
    assert runner.padded is not None
    answers = iter([True, False])
    asked: list[bool] = []
    runner.padded.recorder._agree = lambda holds: (asked.append(holds), next(answers))[1]
    for _ in range(3):
        runner.run(step_of(runner, 1, 1, 1, 1))
    assert asked == [True, True] and len(recorded) == 1, "ranks ask each other for each step"
    assert runner.padded.decoding._graphs == {4: None} and runner.padded.decoding.num_recorded == 0


def test_steps_are_cut_to_the_sizes_that_cost_no_padding() -> None:
    blocks = BlockManager(1000, 4)
    scheduler = Scheduler(blocks, max_num_seqs=8, max_batched_tokens=600, step_sizes=(64, 128, 256, 512))
    for chunk, rows, found in ((130, 4, 124), (100, 4, 60), (253, 3, 253), (70, 60, 68), (400, 8, 248), (505, 8, 505)):
        scheduler.max_prefill_tokens = chunk
        assert scheduler._chunk(rows) == found, (chunk, rows)
    assert Scheduler(blocks, max_num_seqs=8, max_batched_tokens=600)._chunk(3) == 600
