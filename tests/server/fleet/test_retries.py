"""When the server itself tries models of the start again that have failed."""

from math import inf

from engine.errors import ModelLoadError
from server.fleet.handle import EngineHandle
from server.fleet.policy import FleetPolicy, Residence, Terms
from server.fleet.retries import Retries
from tests.server.fakes import engine_config

POLICY = FleetPolicy(first_retry_delay=10, max_retry_delay=60, crash_window=600)
REASON = ModelLoadError("there is no such directory")


def fails(handle: EngineHandle) -> None:
    handle.expect()
    handle.refuse(REASON)


def test_pauses_grow_until_the_model_has_been_well_for_a_while() -> None:
    handle = EngineHandle(engine_config(), POLICY)
    retries, now = Retries([handle], POLICY), 0.0
    for pause in (10, 20, 40, 60, 60):
        fails(handle)
        assert retries.due(now) == retries.due(now + pause - 1) == ([], now + pause)
        now += pause
        assert retries.due(now) == ([handle], inf)
    handle.ready_since = now + 1
    fails(handle)
    assert retries.due(now + 100) == ([], now + 160), "it was well for a moment only"
    handle.ready_since = now + 161
    fails(handle)
    retries.due(now + 160)
    assert retries.due(now + 1000) == ([], now + 1010)


def test_nobody_is_tried_again_before_every_load_of_the_start_has_ended() -> None:
    """If all fail the server ends instead."""
    one, two = (EngineHandle(engine_config(name), POLICY) for name in ("one", "two"))
    retries = Retries([one, two], POLICY)
    two.expect()
    fails(one)
    assert retries.due(0.0) == retries.due(100.0) == ([], inf)
    two.give_up()
    assert retries.due(100.0) == ([], 110.0)
    two.expect()
    assert retries.due(110.0) == ([one], inf)


def test_models_on_demand_wait_for_who_asks_and_no_pause_of_theirs_is_cut_short() -> None:
    here = EngineHandle(engine_config("here"), POLICY)
    asked = EngineHandle(engine_config("asked"), POLICY, terms=Terms(residence=Residence(load="on_demand")))
    retries = Retries([here, asked], POLICY)
    fails(asked)
    assert retries.due(0.0) == ([], inf)
    here.expect()
    here.fail(REASON)
    assert retries.due(0.0) == ([], here.failures.retry_at)
