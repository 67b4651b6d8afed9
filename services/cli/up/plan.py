"""What to start: one process per replica, with its ports and its environment."""

import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from msgspec import Struct

from services.cli.failure import USAGE, Failure
from services.cli.up.home import Home
from services.cli.up.process import Program
from shared.config import Config, EngineName

SERVICES = ("ingress", "scheduler", "inference", "notifier")
DEFAULT_PORTS = {"ingress": 8080, "notifier": 8081}
PORT_OPTIONS = {"ingress": "--port", "notifier": "--ws-port"}
MOST_REPLICAS = 64
"""Of one service on one machine: a larger number is a slip of the keyboard."""


class Options(Struct, frozen=True, kw_only=True):
    """`headrace up`, as asked."""

    engine: EngineName | None = None
    replicas: str = ""
    once: str | None = None
    json: bool = False
    config: str | None = None
    port: int | None = None
    ws_port: int | None = None
    data_dir: Path | None = None


def parse_replicas(text: str) -> dict[str, int]:
    """`ingress=2,inference=4`; services that are not named get one. Raises: Failure."""
    replicas = dict.fromkeys(SERVICES, 1)
    for part in filter(None, (part.strip() for part in text.split(","))):
        service, _, count = (word.strip() for word in part.partition("="))
        if service not in replicas:
            raise Failure(f"--replicas: there is no service {service!r}; known: {', '.join(SERVICES)}", code=USAGE)
        if not count.isdigit() or not 1 <= int(count) <= MOST_REPLICAS:
            raise Failure(f"--replicas: {part!r} is not like {service}=2 (1 to {MOST_REPLICAS})", code=USAGE)
        replicas[service] = int(count)
    return replicas


class Plan(Struct, frozen=True, kw_only=True):
    replicas: Mapping[str, int]
    ports: Mapping[str, list[int]]
    """Of each replica of the two doors. Known before anything starts, so that they stay over restarts."""
    config: Config
    engine: EngineName | None
    environ: Mapping[str, str]

    @property
    def vllm_sources(self) -> set[str]:
        return {pool.vllm.source for pool in self.config.pools.values() if (self.engine or pool.engine) == "vllm"}

    @property
    def vllm_workers(self) -> int:
        pools = self.config.pools.values()
        return self.replicas["inference"] * sum(p.shards for p in pools if (self.engine or p.engine) == "vllm")

    def programs(self, home: Home, redis_url: str) -> list[Program]:
        common = {"HEADRACE_OBJECTS": home.objects.absolute().as_uri(), **self.environ, "REDIS_URL": redis_url}
        return [program for service in SERVICES for program in self._of(service, home, common)]

    def _of(self, service: str, home: Home, common: Mapping[str, str]) -> Iterator[Program]:
        for number, own in enumerate(self._variables(service), 1):
            name = service if number == 1 else f"{service}-{number}"
            argv = [sys.executable, "-m", f"services.{service}"]
            yield Program(service=service, name=name, argv=argv, environ={**common, **own}, log=home.log(name))

    def _variables(self, service: str) -> Iterator[dict[str, str]]:
        """Of each replica of a service."""
        if service in self.ports:
            for port in self.ports[service]:
                yield {f"HEADRACE_{service.upper()}_PORT": str(port)}
        elif service == "inference":
            yield from self._workers()
        else:
            yield from ({f"HEADRACE_{service.upper()}_PORT": "0"} for _ in range(self.replicas[service]))

    def _workers(self) -> Iterator[dict[str, str]]:
        """Every shard of every pool gets as many workers as asked."""
        for name, pool in self.config.pools.items():
            for shard in range(pool.shards):
                for _ in range(self.replicas["inference"]):
                    yield {
                        "HEADRACE_INFERENCE_PORT": "0",
                        "HEADRACE_INFERENCE_POOL": name,
                        "HEADRACE_INFERENCE_SHARD": str(shard),
                        "HEADRACE_INFERENCE_ENGINE": self.engine or pool.engine,
                    }


def make_plan(options: Options, config: Config, environ: Mapping[str, str]) -> Plan:
    """Raises: Failure if a port is in use."""
    replicas = parse_replicas(options.replicas)
    wanted = {"ingress": options.port, "notifier": options.ws_port}
    with ExitStack() as held:
        ports = {
            service: choose_ports(service, wanted[service], replicas[service], environ, held)
            for service in DEFAULT_PORTS
        }
    ours = {"HEADRACE_INGRESS_NOTIFIER_URL": f"http://{host_of('notifier', environ)}:{ports['notifier'][0]}"}
    if config.path is not None:
        ours["HEADRACE_CONFIG"] = str(Path(config.path).resolve())
    given = {name: value for name, value in environ.items() if name != "HEADRACE_CONFIG"}
    return Plan(
        replicas=replicas,
        ports=ports,
        config=config,
        engine=options.engine,
        environ=ours | given,
    )


def host_of(service: str, environ: Mapping[str, str]) -> str:
    """Where a client on this machine finds the service."""
    host = environ.get(f"HEADRACE_{service.upper()}_HOST") or "127.0.0.1"
    return "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104  compared, not bound


def choose_ports(
    service: str, wanted: int | None, count: int, environ: Mapping[str, str], held: ExitStack
) -> list[int]:
    """The wanted port, then free ones. Raises: Failure."""
    variable = f"HEADRACE_{service.upper()}_PORT"
    host = environ.get(f"HEADRACE_{service.upper()}_HOST") or "127.0.0.1"
    if wanted is None:
        text = environ.get(variable) or str(DEFAULT_PORTS[service])
        if not text.isdigit() or int(text) > 65535:
            raise Failure(f"{variable} is {text!r}: a port is 0 (a free one) to 65535", code=USAGE)
        wanted = int(text)
    try:
        return [_hold(host, port, held) for port in [wanted] + [0] * (count - 1)]
    except OSError as error:
        raise Failure(
            f"{service} cannot listen on {host}:{wanted}: {os.strerror(error.errno or 0)}.\n"
            f"Stop the program that has the port, or choose another: {PORT_OPTIONS[service]} N or {variable}=N (0: a free one)."
        ) from None


def _hold(host: str, port: int, held: ExitStack) -> int:
    """Bound until `held` closes, so that no two replicas get the same port."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = held.enter_context(socket.socket(family, kind, protocol))
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(address)
    return int(bound.getsockname()[1])


def free_port() -> int:
    with ExitStack() as held:
        return _hold("127.0.0.1", 0, held)
