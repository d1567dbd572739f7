"""Rank 0's runner: what `ModelRunner` does, with the other ranks."""

from collections.abc import Iterator
from contextlib import contextmanager

from engine.cache import Progress
from engine.config import EngineConfig
from engine.device.device import select_device
from engine.device.ranks import check_room, join
from engine.errors import ConfigError, HeadraceError, ModelLoadError
from engine.execution.flight import Flight
from engine.execution.launched import StepInFlight
from engine.execution.model_runner import ModelRunner
from engine.ranks.messages import BringBack, PutAway, Wipe
from engine.ranks.steps import message_of
from engine.ranks.team import Team
from engine.sampling.sampler import Sampled
from engine.scheduling.scheduled import Scheduled


def lead(config: EngineConfig, progress: Progress, team: Team) -> ModelRunner:
    """Load rank 0's part of a model while the others load theirs. Raises ConfigError, ModelLoadError."""
    try:
        device = select_device(config.device)
        check_room(device, config.tensor_parallel)
        told = team.told(progress)
        told("waiting for the other ranks", None)
        ranks = join(team.directory, 0, config.tensor_parallel, device, team.meet)
        runner = ModelRunner(config, told, ranks)
        team.loaded(is_cpu=device.type == "cpu")
        return runner
    except (ConfigError, ModelLoadError):
        team.close()
        raise
    except Exception as error:
        failure = team.explain(error)
        team.close()
        raise ModelLoadError(failure.message, hint=failure.hint) from error


class LedFlight:
    """A step that all ranks compute; only rank 0 samples it."""

    def __init__(self, flight: StepInFlight, team: Team, began: float) -> None:
        self._flight, self._team, self._began = flight, team, began

    def sample(self, sampling: list[Scheduled], scoring: list[Scheduled]) -> None:
        """See `Flight.sample`."""
        try:
            self._flight.sample(sampling, scoring)
        except Exception:
            self._team.watch.end_step(self._began)
            raise

    def result(self) -> Sampled:
        """See `Flight.result`. Raises EngineDeadError where a rank has ended meanwhile."""
        try:
            return self._flight.result()
        finally:
            self._team.watch.end_step(self._began)
            self._team.watch.check()


class LeadingRunner:
    """Does what is asked of a runner on all ranks. What fails after they were told ends all of them.

    A rank that has failed alone would leave the others waiting in a collective for ever, and what they wait for could
    not be told from the next step's.
    """

    def __init__(self, runner: ModelRunner, team: Team) -> None:
        self._runner, self._team = runner, team

    def forward(self, rows: list[Scheduled]) -> Flight:
        """See `Runner.forward`. Raises EngineDeadError where a rank has ended or failed."""
        host = self._runner.pack(rows)  # here rank 0 may still fail alone
        began = self._team.watch.begin_step()
        with self._together():
            self._team.tell(message_of(host))
            return LedFlight(self._runner.launch(rows, host), self._team, began)

    def encode_images(self, row: Scheduled, seconds: float | None) -> bool:
        """See `Runner.encode_images`."""
        return self._runner.encode_images(row, seconds)

    def rest(self) -> None:
        """See `Runner.rest`."""
        self._runner.rest()

    def sleep(self) -> tuple[int, int]:
        """See `Runner.sleep`; the bytes are those of rank 0's device, and of the host for all ranks."""
        with self._together():
            self._team.tell(PutAway())
            device_bytes, host_bytes = self._runner.sleep()
            return device_bytes, host_bytes * self._team.size

    def wake(self) -> None:
        """See `Runner.wake`."""
        with self._together():
            self._team.tell(BringBack())
            self._runner.wake()

    def wipe_blocks(self, blocks: list[int], block_size: int) -> None:
        """See `Runner.wipe_blocks`."""
        with self._together():
            self._team.tell(Wipe(blocks, block_size))
            self._runner.wipe_blocks(blocks, block_size)

    def close(self) -> None:
        """See `Runner.close`."""
        self._team.close()

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except HeadraceError:
            raise
        except Exception as error:
            raise self._team.explain(error) from error
