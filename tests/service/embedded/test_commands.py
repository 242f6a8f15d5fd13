"""The service's own processes find the code and the packages that the launcher found."""

import os
import signal

import pytest

from service.embedded.commands import api_command, run_to_end, with_source, worker_command
from service.embedded.errors import PartFailed


def test_the_operators_own_python_path_is_kept(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/opt/packages")
    assert with_source({})["PYTHONPATH"].split(os.pathsep)[-1] == "/opt/packages"


def test_a_worker_gets_half_a_minute_to_put_its_update_back(tmp_path):
    command = worker_command(2, logs=tmp_path, environment={})
    assert (command.stop_signal, command.stop_seconds) == (signal.SIGTERM, 30.0)
    assert command.log.name == "worker-2.log"


def test_the_api_takes_its_announcement_with_it(tmp_path):
    command = api_command(
        listener=7, announced_in=tmp_path / "connection.json", logs=tmp_path, environment={}
    )
    assert command.remove_on_death == [tmp_path / "connection.json"]
    assert command.hand_on == [7]


def test_a_command_that_fails_is_told_with_its_own_words(tmp_path):
    with pytest.raises(PartFailed, match=r"(?s)the test failed \(exit code 2\).*No such command.*nonesuch"):
        run_to_end("the test", ["nonesuch"], logs=tmp_path, environment={}, timeout_seconds=60)


def test_what_a_command_prints_is_returned_and_not_logged(tmp_path):
    assert run_to_end(
        "the test", ["--version"], logs=tmp_path, environment={}, timeout_seconds=60
    ).startswith("palim")
    assert (tmp_path / "--version.log").read_text() == ""
