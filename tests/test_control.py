"""The control process as the supervisor starts it: it serves, and it ends when it must."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest

from keystile import control, mint, node
from keystile.config import Config
from keystile.feed import CONTROL_SERVES, GENERATION, Word
from keystile.initialise import initialise
from keystile.node import Boot, Folders

NODE_KEY = b"n" * 32


class Node:
    """A data folder, and control processes over it."""

    def __init__(self, folder: Path) -> None:
        self.admin = mint.new_api_key()
        self.config = Config(
            data_dir=str(folder),
            workers=1,
            upstreams_allow=("127.0.0.0/8",),
            log_format="json",
            bootstrap_key=self.admin,
        )
        self.folders = Folders(self.config.data_dir)
        self.folders.make()
        self.word = Word.create(self.folders.word, 1)
        self.started: list[subprocess.Popen[str]] = []
        self.pipes: list[int] = []

    def start(self) -> subprocess.Popen[str]:
        """Start one as the supervisor does; it need not serve yet."""
        self.word.cells[CONTROL_SERVES] = 0
        reading, writing = os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-m", "keystile.control", str(reading)],
            pass_fds=(reading,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        os.close(reading)
        node.send(Boot(config=self.config, node_key=NODE_KEY), writing)
        self.started.append(process)
        self.pipes.append(writing)
        return process

    def serving(self) -> subprocess.Popen[str]:
        """Start one and wait until the word says that it serves."""
        process = self.start()
        while not self.word.cells[CONTROL_SERVES]:
            assert process.poll() is None, process.communicate()
            os.sched_yield()
        return process

    def api(self) -> httpx2.Client:
        """A client of its API."""
        return httpx2.Client(
            transport=httpx2.HTTPTransport(uds=node.reachable(self.folders.control_socket)),
            base_url="http://gateway/api/v1",
            headers={"authorization": f"Bearer {self.admin}"},
        )

    def close(self) -> None:
        """Let them go, and see them end."""
        for pipe in self.pipes:
            os.close(pipe)
        for process in self.started:
            process.communicate(timeout=20)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path / "data")
    asyncio.run(initialise(made.config))
    yield made
    made.close()


@pytest.fixture
async def there(anyio_backend: str, tmp_path: Path) -> AsyncIterator[Node]:
    """The same, for a test that has a loop already."""
    made = Node(tmp_path / "data")
    await initialise(made.config)
    yield made
    made.close()


def test_it_publishes_before_it_serves_and_ends_when_told(here: Node) -> None:
    process = here.serving()
    assert here.word.cells[GENERATION] >= 0
    assert here.folders.feed.exists()
    with here.api() as api:
        assert api.get("/keys").status_code == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert here.word.cells[CONTROL_SERVES] == 0


def test_it_ends_when_the_supervisors_pipe_closes(here: Node) -> None:
    process = here.serving()
    os.close(here.pipes.pop())
    assert process.wait(20) == 0


def test_it_ends_at_once_when_the_supervisor_died_first() -> None:
    reading, writing = os.pipe()
    os.close(writing)
    process = subprocess.run([sys.executable, "-m", "keystile.control", str(reading)], pass_fds=(reading,), check=False)
    os.close(reading)
    assert process.returncode == 0


def test_after_a_kill_the_next_one_serves_what_was_committed(here: Node) -> None:
    first = here.serving()
    with here.api() as api:
        api.post("/connections", json={"slug": "kept", "upstreamUrl": "http://127.0.0.1:9", "credential": "made-up"})
    generation = here.word.cells[GENERATION]
    first.kill()
    first.wait(20)
    here.serving()
    assert here.word.cells[GENERATION] == generation
    with here.api() as api:
        assert api.get("/connections/kept").json()["data"]["credentialVersion"] == 1


def test_the_wrong_root_key_is_refused_in_one_line(here: Node) -> None:
    here.folders.root_key.write_text("bWFkZSB1cCBtYWRlIHVwIG1hZGUgdXAgbWFkZSB1cDE=\n")
    process = here.start()
    assert process.wait(20) == node.REFUSED
    _, said = process.communicate()
    assert len(said.splitlines()) == 1
    assert "This is not the root key of this database" in said
    assert here.word.cells[CONTROL_SERVES] == 0


@pytest.mark.anyio
async def test_a_change_that_cannot_be_published_ends_it_and_the_next_one_publishes_it(
    anyio_backend: str, there: Node
) -> None:
    running = control.Control(Boot(config=there.config, node_key=NODE_KEY))
    task = asyncio.create_task(running.run())
    while not there.word.cells[CONTROL_SERVES]:
        assert not task.done(), task.result()
        await asyncio.sleep(0)
    generation = there.word.cells[GENERATION]
    fill_the_disk_under(there.folders.feed)
    body = {"slug": "kept", "upstreamUrl": "http://127.0.0.1:9", "credential": "made-up"}
    transport = httpx2.AsyncHTTPTransport(uds=node.reachable(there.folders.control_socket))
    headers = {"authorization": f"Bearer {there.admin}"}
    async with httpx2.AsyncClient(transport=transport, base_url="http://gateway/api/v1", headers=headers) as api:
        answer = await api.post("/connections", json=body)
    assert answer.json()["error"]["code"] == "internal_error"
    assert await task == 1
    assert there.word.cells[CONTROL_SERVES] == 0
    assert there.word.cells[GENERATION] == generation
    await asyncio.to_thread(there.serving)
    assert there.word.cells[GENERATION] > generation


def fill_the_disk_under(path: Path) -> None:
    """Every descriptor of this process for that file answers writes with ENOSPC."""
    for entry in os.scandir("/proc/self/fd"):
        if os.path.realpath(entry.path) == str(path):
            full = os.open("/dev/full", os.O_WRONLY)
            os.dup2(full, int(entry.name))
            os.close(full)


def test_a_socket_of_any_path_can_be_listened_on(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    for _ in range(2):  # an earlier process left its socket
        with control.listening(deep / "control.sock") as listener, socket.socket(socket.AF_UNIX) as client:
            client.connect(node.reachable(deep / "control.sock"))
            assert listener.accept()[0]
    assert (deep / "control.sock").stat().st_mode & 0o777 == 0o600
