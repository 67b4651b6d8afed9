import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from services.cli.failure import USAGE, Failure
from services.cli.up.home import Home
from services.cli.up.plan import Options, choose_ports, make_plan, parse_replicas
from shared.config import Config, Pool

HOME = Home(Path("/state"), 0)
CONFIG = Config(
    pools={"a": Pool(model="m", engine="echo", shards=2), "b": Pool(model="n", engine="vllm")}, path="headrace.toml"
)
FREE = {"HEADRACE_INGRESS_PORT": "0", "HEADRACE_NOTIFIER_PORT": "0"}


def test_services_that_are_not_named_get_one_replica() -> None:
    assert parse_replicas("ingress=2, inference=4") == {"ingress": 2, "scheduler": 1, "inference": 4, "notifier": 1}


@pytest.mark.parametrize("text", ["ingres=2", "ingress", "ingress=0", "ingress=-1", "ingress=x", "ingress=1000", "=2"])
def test_wrong_replicas_are_refused(text: str) -> None:
    with pytest.raises(Failure, match="--replicas") as refused:
        parse_replicas(text)
    assert refused.value.code == USAGE


def test_every_shard_of_every_pool_gets_its_workers() -> None:
    plan = make_plan(Options(replicas="inference=2"), CONFIG, FREE)
    workers = [p.environ for p in plan.programs(HOME, "redis://x") if p.service == "inference"]
    places = [
        (w["HEADRACE_INFERENCE_POOL"], w["HEADRACE_INFERENCE_SHARD"], w["HEADRACE_INFERENCE_ENGINE"]) for w in workers
    ]
    assert places == [("a", "0", "echo")] * 2 + [("a", "1", "echo")] * 2 + [("b", "0", "vllm")] * 2
    assert plan.vllm_workers == 2


def test_the_engine_that_is_asked_for_counts_for_all_pools() -> None:
    plan = make_plan(Options(engine="echo"), CONFIG, FREE)
    assert plan.vllm_sources == set()
    assert plan.vllm_workers == 0


def test_programs_get_what_they_need_to_find_one_another() -> None:
    plan = make_plan(Options(), CONFIG, FREE)
    ingress = plan.programs(HOME, "redis://x")[0].environ
    assert ingress["REDIS_URL"] == "redis://x"
    assert ingress["HEADRACE_INGRESS_NOTIFIER_URL"] == f"http://127.0.0.1:{plan.ports['notifier'][0]}"
    assert ingress["HEADRACE_CONFIG"] == str(Path("headrace.toml").resolve())


def test_files_lie_in_the_data_folder_unless_another_place_is_given() -> None:
    for given, expected in (
        (FREE, (HOME.folder / "objects").absolute().as_uri()),
        ({"HEADRACE_OBJECTS": "s3://b"}, "s3://b"),
    ):
        plan = make_plan(Options(), CONFIG, FREE | given)
        assert {p.environ["HEADRACE_OBJECTS"] for p in plan.programs(HOME, "redis://x")} == {expected}


def test_a_given_notifier_url_stays() -> None:
    public = {"HEADRACE_INGRESS_NOTIFIER_URL": "https://push.example.org"}
    plan = make_plan(Options(), CONFIG, FREE | public)
    assert plan.programs(HOME, "redis://x")[0].environ["HEADRACE_INGRESS_NOTIFIER_URL"] == "https://push.example.org"


def test_the_first_replica_gets_the_port_and_the_others_free_ones() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with ExitStack() as held:
        first, second, third = choose_ports("ingress", None, 3, {"HEADRACE_INGRESS_PORT": str(port)}, held)
    assert first == port
    assert len({first, second, third}) == 3


def test_a_port_in_use_names_the_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, ExitStack() as held, pytest.raises(Failure) as refused:
        choose_ports("notifier", taken.getsockname()[1], 1, {}, held)
    assert "in use" in str(refused.value)
    assert "--ws-port" in str(refused.value)


def test_a_port_that_is_no_number_is_refused() -> None:
    with ExitStack() as held, pytest.raises(Failure, match="HEADRACE_INGRESS_PORT is 'http'"):
        choose_ports("ingress", None, 1, {"HEADRACE_INGRESS_PORT": "http"}, held)
