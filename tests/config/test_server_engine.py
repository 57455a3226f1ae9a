"""The section of rollout servers: what is taken, and what is refused before anything is started."""

import pytest

from rlhf.config.division import Division
from rlhf.config.dry_run import memory_text
from rlhf.config.rollouts import ServerEngineConfig

SERVER = ["--engine.type", "server"]


def test_one_address_or_several(parse):
    assert parse(*SERVER, "--engine.urls", "http://127.0.0.1:8001/").engine.urls == ["http://127.0.0.1:8001"]
    engine = parse(*SERVER, "--engine.urls", "[http://a:1, http://b:2]", "--engine.retry_for_s", "5").engine
    assert isinstance(engine, ServerEngineConfig)
    assert (engine.urls, engine.retry_for_s, engine.transfer) == (["http://a:1", "http://b:2"], 5, "auto")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "engine.urls"),
        (["--engine.urls", "[]"], "engine.urls"),
        (["--engine.urls", "127.0.0.1:8001"], "write http://HOST:PORT"),
        (["--engine.urls", "https://a:1"], "write http://HOST:PORT"),
        (["--engine.urls", "http://a"], "write http://HOST:PORT"),
        (["--engine.urls", "http://a:99999"], "write http://HOST:PORT"),
        (["--engine.urls", "http://a:1/v1"], "write http://HOST:PORT"),
        (["--engine.urls", "[http://a:1, http://a:1/]"], "name each server once"),
        (["--engine.urls", "http://a:1", "--engine.heartbeat_timeout_s", "1"], "raise heartbeat_timeout_s"),
        (["--engine.urls", "http://a:1", "--engine.max_num_seqs", "8"], "unknown key"),
    ],
)
def test_bad_addresses_and_times_are_refused_with_the_remedy(problems, flags, said):
    assert any(said in problem for problem in problems(*SERVER, *flags))


def test_the_memory_plan_counts_what_the_trainer_keeps(parse):
    config = parse(*SERVER, "--engine.urls", "http://a:1", "--model.path", "embedded:smollm2-135m-instruct")
    assert "weights for the rollout servers" in memory_text(config, Division())
