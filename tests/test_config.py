"""Configuration: precedence, unknown keys, every problem at once, nothing secret shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from keystile.audit.spool import Spool
from keystile.config import Config, ConfigError, host_name, load, named, settings, variable


def problems(environment: dict[str, str], file: Path | None = None) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        load(environment, file)
    return refused.value.problems


def test_defaults_stand_without_anything() -> None:
    assert load({}) == Config()
    assert load({}).host == "127.0.0.1"


def test_flags_override_environment_overrides_file_overrides_defaults(tmp_path: Path) -> None:
    file = tmp_path / "keystile.toml"
    file.write_text('host = "10.0.0.1"\nport = 1\nworkers = 1\n[limits]\nhead_bytes = 1\nfields = 1\n')
    found = load({"KEYSTILE_PORT": "2", "KEYSTILE_WORKERS": "2", "KEYSTILE_LIMITS_FIELDS": "2"}, file, {"workers": 3})
    assert (found.host, found.port, found.workers) == ("10.0.0.1", 2, 3)
    assert (found.limits.head_bytes, found.limits.fields) == (1, 2)
    assert found.limits.body_bytes == Config().limits.body_bytes


def test_a_flag_that_is_not_given_overrides_nothing() -> None:
    assert load({"KEYSTILE_PORT": "2"}, flags={"port": None}).port == 2


def test_lists_are_separated_by_commas() -> None:
    found = load({"KEYSTILE_UPSTREAMS_ALLOW": " 127.0.0.0/8, ::1/128,", "KEYSTILE_HOSTS": ""})
    assert found.upstreams_allow == ("127.0.0.0/8", "::1/128")
    assert found.hosts == ()


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "keystile.toml"
    file.write_text('colour = "blue"\nport = 99999\n[limits]\nspeed = 1\n')
    found = problems({"KEYSTILE_WORKERS": "many", "KEYSTILE_HEIGHT": "1", "KEYSTILE_LIMITS_IDLE_SECONDS": "0"}, file)
    for word in ("colour", "port", "limits.speed", "workers", "KEYSTILE_HEIGHT", "limits.idle_seconds"):
        assert sum(word in problem for problem in found) == 1, word
    assert len(found) == 6


@pytest.mark.parametrize(
    ("environment", "word"),
    [
        ({"KEYSTILE_UPSTREAMS_ALLOW": "10.0.0.1/8"}, "upstreams_allow"),
        ({"KEYSTILE_TRUSTED_PROXIES": "nonsense"}, "trusted_proxies"),
        ({"KEYSTILE_PUBLIC_URL": "https://a.example/path"}, "public_url"),
        ({"KEYSTILE_PUBLIC_URL": "ftp://a.example"}, "public_url"),
        ({"KEYSTILE_ROOT_KEY": "made-up", "KEYSTILE_ROOT_KEY_FILE": "x"}, "root_key"),
        ({"KEYSTILE_LOG_FORMAT": "xml"}, "log_format"),
        ({"KEYSTILE_LOG_FORMAT": "json\n"}, "log_format"),
        ({"KEYSTILE_LIMITS_SPOOL_SEGMENT_BYTES": "1000"}, "limits.spool_segment_bytes"),
        ({"KEYSTILE_LIMITS_SPOOL_BYTES": "8388608"}, "limits.spool_bytes"),
        ({"KEYSTILE_WORKERS": "256"}, "limits.spool_bytes"),
        ({"KEYSTILE_LIMITS_BUFFER_BYTES": "1"}, "limits.buffer_bytes"),
        ({"KEYSTILE_LIMITS_IDLE_SECONDS": "inf"}, "limits.idle_seconds"),
        ({"KEYSTILE_LIMITS_IDLE_SECONDS": "nan"}, "limits.idle_seconds"),
        ({"KEYSTILE_LIMITS_SOCKETS": "1" + "0" * 30}, "limits.sockets"),
        ({"KEYSTILE_ORIGINS": "https://exämple.com"}, "origins"),
        ({"KEYSTILE_ORIGINS": "https://a.example/path"}, "origins"),
        ({"KEYSTILE_ORIGINS": "a.example"}, "origins"),
        ({"KEYSTILE_HOSTS": "ä" * 70 + ".example"}, "hosts"),
        ({"KEYSTILE_HOSTS": "a..example"}, "hosts"),
        ({"KEYSTILE_HOSTS": "a.example:8080"}, "hosts"),
        ({"KEYSTILE_HOSTS": "https://a.example"}, "hosts"),
        ({"KEYSTILE_HOST": ""}, "host"),
        ({"KEYSTILE_HOST": "a host"}, "host"),
        ({"KEYSTILE_PUBLIC_URL": "https://ä..example"}, "public_url"),
        ({"KEYSTILE_PUBLIC_URL": "https://[::1"}, "public_url"),
        ({"KEYSTILE_PORT": "-1"}, "port"),
        ({"KEYSTILE_PORT": "80.5"}, "port"),
    ],
)
def test_what_cannot_be_is_refused_by_name(environment: dict[str, str], word: str) -> None:
    assert any(word in problem for problem in problems(environment))


def test_limits_that_are_no_table_are_a_problem(tmp_path: Path) -> None:
    file = tmp_path / "keystile.toml"
    file.write_text("limits = 5\ncolour = 1\n")
    assert [problem.partition(":")[0] for problem in problems({}, file)] == ["limits", "colour"]


def test_hosts_are_named_as_requests_name_them() -> None:
    config = load(
        {
            "KEYSTILE_HOST": "::1",
            "KEYSTILE_HOSTS": "A.Example,exämple.com,10.0.0.1,fd00:0::1,[fd00::2]",
            "KEYSTILE_PUBLIC_URL": "https://Public.example:8443/",
        }
    )
    assert {host_name(host) for _, host in named(config)} == {
        *(b"a.example", b"xn--exmple-cua.com", b"10.0.0.1", b"[fd00::1]", b"[fd00::2]"),
        *(b"[::1]", b"public.example"),
    }
    assert named(load({"KEYSTILE_HOST": "::"})) == []


@pytest.mark.parametrize("origin", ["https://app.example", "http://[::1]:6274/", "vscode-webview://0abc-1"])
def test_origins_are_taken_as_browsers_write_them(origin: str) -> None:
    assert load({"KEYSTILE_ORIGINS": origin}).origins == (origin,)


def test_the_least_spool_that_is_accepted_can_be_written_to(tmp_path: Path) -> None:
    config = load(
        {
            "KEYSTILE_WORKERS": "2",
            "KEYSTILE_LIMITS_SPOOL_SEGMENT_BYTES": "131072",
            "KEYSTILE_LIMITS_SPOOL_BYTES": "524288",
        }
    )
    limits = config.limits
    spools = [
        Spool(tmp_path, worker, 1, limits.spool_segment_bytes, limits.spool_bytes) for worker in range(config.workers)
    ]
    assert all(spool.ready() for spool in spools)
    for spool in spools:
        spool.close()


def test_a_file_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    assert "absent" in problems({}, tmp_path / "absent")[0]
    broken = tmp_path / "broken.toml"
    broken.write_bytes(b"= \xff")
    assert "TOML" in problems({}, broken)[0]


def test_variables_of_others_are_no_settings() -> None:
    load({"KEYSTILE_API_KEY": "x", "KEYSTILE_BASE_URL": "x", "PATH": "/bin"})
    injected = {
        "KEYSTILE_PORT": "tcp://10.0.0.1:8080",
        "KEYSTILE_SERVICE_HOST": "10.0.0.1",
        "KEYSTILE_SERVICE_PORT": "8080",
        "KEYSTILE_SERVICE_PORT_HTTP": "8080",
        "KEYSTILE_PORT_8080_TCP": "tcp://10.0.0.1:8080",
        "KEYSTILE_PORT_8080_TCP_ADDR": "10.0.0.1",
    }
    assert load(injected).port == 8080


def test_every_setting_has_a_variable_of_its_own() -> None:
    names = [variable(name) for name in settings()]
    assert len(set(names)) == len(names)


def test_no_repr_shows_a_secret() -> None:
    found = load({"KEYSTILE_ROOT_KEY": "made-up-root", "KEYSTILE_DATA_DIR": "x"})
    assert "made-up" not in repr(found) + str(found)
    found = load({"KEYSTILE_BOOTSTRAP_KEY": "made-up-key"})
    assert "made-up" not in repr(found) + str(found)
