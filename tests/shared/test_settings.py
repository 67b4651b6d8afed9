from typing import Annotated

import pytest
from msgspec import Meta

from shared.errors import ConfigError
from shared.settings import CommonSettings, load, mask


class Settings(CommonSettings, frozen=True, kw_only=True):
    port: Annotated[int, Meta(ge=0, le=65535)] = 8080
    pool: str | None = None


def test_without_environment_there_are_defaults() -> None:
    assert load(Settings, "ingress", {"PATH": "/bin", "HOME": "/"}) == Settings()


def test_everything_is_read_and_converted() -> None:
    settings = load(
        Settings,
        "ingress",
        {
            "REDIS_URL": "rediss://redis:6380/1",
            "HEADRACE_CONFIG": "/etc/headrace.toml",
            "HEADRACE_LOG_LEVEL": "debug",
            "HEADRACE_READY_FD": "5",
            "HEADRACE_DIE_WITH_PARENT": "1",
            "HEADRACE_INGRESS_HOST": "0.0.0.0",
            "HEADRACE_INGRESS_PORT": "0",
            "HEADRACE_INGRESS_POOL": "smol",
        },
    )
    assert settings == Settings(
        redis_url="rediss://redis:6380/1",
        config="/etc/headrace.toml",
        log_level="debug",
        ready_fd=5,
        die_with_parent=True,
        host="0.0.0.0",
        port=0,
        pool="smol",
    )


def test_settings_of_other_services_are_not_ours() -> None:
    assert load(Settings, "ingress", {"HEADRACE_NOTIFIER_PORT": "1", "HEADRACE_NOTIFIER_NONSENSE": "1"}) == Settings()


def test_empty_variable_is_no_variable() -> None:
    assert load(Settings, "ingress", {"HEADRACE_INGRESS_PORT": "", "REDIS_URL": ""}) == Settings()


def test_every_fault_is_told_at_once_with_its_variable() -> None:
    environ = {
        "REDIS_URL": "http://redis",
        "HEADRACE_LOG_LEVEL": "loud",
        "HEADRACE_INGRESS_PORT": "70000",
        "HEADRACE_INGRESS_PROT": "1",
    }
    with pytest.raises(ConfigError) as caught:
        load(Settings, "ingress", environ)
    told = str(caught.value)
    assert told.startswith("4 wrong settings:")
    assert "REDIS_URL is 'http://redis'" in told
    assert "HEADRACE_LOG_LEVEL is 'loud': allowed: debug, info, warning, error" in told
    assert "HEADRACE_INGRESS_PORT is '70000'" in told
    assert "HEADRACE_INGRESS_PROT: unknown; did you mean HEADRACE_INGRESS_PORT?" in told


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://h:1/0", "redis://h:1/0"),
        ("redis://:secret@h:1/0", "redis://:***@h:1/0"),
        ("rediss://me:secret@h", "rediss://me:***@h"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
    ],
)
def test_password_is_masked(url: str, masked: str) -> None:
    assert mask(url) == masked


def test_description_shows_everything_but_the_secret() -> None:
    said = Settings(redis_url="redis://:secret@h:1").describe()
    assert "secret" not in said
    assert "port=8080" in said
