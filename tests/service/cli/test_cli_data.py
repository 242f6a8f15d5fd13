"""Models, tasks, examples, keys, storage and strategies from the command line."""

import json
from pathlib import Path

from tests.service.cli.conftest import Palimpsest

ROWS = "".join(
    json.dumps({"id": f"row-{n}", "text": f"text {n}", "label": "ab"[n % 2], "subject": f"s{n % 3}"}) + "\n"
    for n in range(30)
)


def make_task(palimpsest: Palimpsest) -> None:
    assert palimpsest("model", "create", "triage", "--base-model", "minilm-l6").code == 0
    assert palimpsest("task", "create", "triage", "billing").code == 0


def test_a_model_is_made_changed_listed_archived_and_purged(palimpsest: Palimpsest) -> None:
    made = palimpsest(
        "model", "create", "triage", "--base-model", "minilm-l6", "--set", "replay.capacity=7", "--set",
        "gate.confidence=0.9", "--set", "metadata.team=billing", "--json",
    )  # fmt: skip
    assert made.json["replay"]["capacity"] == 7
    assert made.json["metadata"] == {"team": "billing"}
    changed = palimpsest("model", "change", "triage", "--set", "gate.max_regression=0.01", "--json")
    assert changed.json["gate"] == {**made.json["gate"], "max_regression": 0.01}, "the rest of the gate stays"
    shown = palimpsest("model", "show", "triage")
    assert "minilm-l6, text-classification" in shown.out
    assert "triage" in palimpsest("model", "list").out
    assert palimpsest("model", "list", "--json").json["data"] == [changed.json]

    assert palimpsest("model", "archive", "triage", given="n\n").code == 1
    assert palimpsest("model", "archive", "triage", "--yes").out == "'triage' is archived.\n"
    assert palimpsest("model", "list", "--json").json["data"] == []
    assert len(palimpsest("model", "list", "--archived", "--json").json["data"]) == 1
    assert "'triage' is gone" in palimpsest("model", "purge", "triage", given="y\n").out
    assert palimpsest("model", "show", "triage").code == 1


def test_a_change_that_names_nothing_or_makes_no_sense_is_wrong_usage(palimpsest: Palimpsest) -> None:
    assert palimpsest("model", "change", "triage").code == 2
    assert palimpsest("model", "change", "triage", "--set", "gate").code == 2
    assert palimpsest("model", "create", "m", "--base-model", "b", "--set", "name.inner=1").code == 2


def test_a_task_is_made_filled_shown_and_deleted(palimpsest: Palimpsest, tmp_path: Path) -> None:
    make_task(palimpsest)
    rows = tmp_path / "rows.ndjson"
    rows.write_text(ROWS)
    added = palimpsest("examples", "add", "triage", "billing", rows, "--json")
    assert (added.json["accepted"], added.json["rejected"]) == (30, 0)
    again = palimpsest("examples", "add", "triage", "billing", "-", given=ROWS)
    assert "duplicates  30" in again.out
    assert sum(palimpsest("task", "show", "triage", "billing", "--json").json["counts"].values()) == 30
    assert "label a" in palimpsest("task", "show", "triage", "billing").out
    assert "billing" in palimpsest("task", "list", "triage").out
    assert palimpsest("task", "create", "triage", "billing", "--guarded", "--json").json["guarded"] is True
    assert "deleted" in palimpsest("task", "delete", "triage", "billing", "--yes").out
    assert palimpsest("task", "list", "triage", "--json").json["data"] == []


def test_bad_rows_are_named_by_line_and_can_be_skipped(palimpsest: Palimpsest) -> None:
    make_task(palimpsest)
    rows = ROWS + '{"text": "no label"}\nnonsense\n'
    refused = palimpsest("examples", "add", "triage", "billing", "-", given=rows)
    assert refused.code == 1
    assert "[invalid_examples, at body]" in refused.err
    assert "line 31: " in refused.err
    assert "[missing_label]" in refused.err
    assert palimpsest("examples", "list", "triage", "billing", "--json").json["data"] == []
    kept = palimpsest("examples", "add", "triage", "billing", "-", "--on-error", "skip", given=rows)
    assert kept.code == 0
    assert "rejected    2" in kept.out
    assert "missing_label" in kept.out


def test_a_file_that_is_not_there_is_an_error_and_no_traceback(palimpsest: Palimpsest) -> None:
    missing = palimpsest("examples", "add", "triage", "billing", "/nowhere.ndjson")
    assert missing.code == 1
    assert missing.err == "palimpsest: error: /nowhere.ndjson cannot be read: No such file or directory\n"


def test_examples_are_listed_over_pages_filtered_deleted_and_erased(
    palimpsest: Palimpsest, monkeypatch
) -> None:
    monkeypatch.setattr("service.cli.client.PAGE", 7)  # so that thirty rows are several pages
    make_task(palimpsest)
    palimpsest("examples", "add", "triage", "billing", "-", given=ROWS)
    everything = palimpsest("examples", "list", "triage", "billing", "--json").json
    assert [row["id"] for row in everything["data"]] == [f"row-{n}" for n in range(30)]
    assert (everything["has_more"], everything["next_cursor"]) == (False, None)
    some = palimpsest("examples", "list", "triage", "billing", "--limit", "10")
    assert "row-9" in some.out
    assert "row-10" not in some.out
    assert "the first 10" in some.err
    labelled = palimpsest(
        "examples", "list", "triage", "billing", "--label", "a", "--split", "train", "--json"
    )
    assert {(row["label"], row["split"]) for row in labelled.json["data"]} == {("a", "train")}

    assert palimpsest("examples", "delete", "triage", "billing", "row-1").code == 0
    erased = palimpsest("examples", "erase", "triage", "--subject", "s0", "--yes", "--json")
    assert (erased.json["deleted"], erased.json["versions"], erased.json["inherited_by"]) == (10, [], [])
    assert "deleted" in palimpsest("examples", "erase", "triage", "--subject", "s1", "--yes").out


def test_no_text_of_an_example_acts_on_the_terminal(palimpsest: Palimpsest) -> None:
    make_task(palimpsest)
    row = json.dumps(
        {"text": "[red]\x1b[2J\x1b]0;owned\x07 plain \u202e text", "label": "a", "split": "train"}
    )
    palimpsest("examples", "add", "triage", "billing", "-", given=row)
    listed = palimpsest("examples", "list", "triage", "billing").out
    assert "[red]" in listed
    assert not {"\x1b", "\x07", "\u202e"} & set(listed)


def test_storage_and_strategies_are_shown(palimpsest: Palimpsest) -> None:
    make_task(palimpsest)
    assert palimpsest("storage", "--json").json["models"][0]["model"] == "triage"
    assert "triage" in palimpsest("storage").out
    assert "replay" in {one["name"] for one in palimpsest("strategies", "list", "--json").json["data"]}
    assert "derpp" in palimpsest("strategies", "list").out
    assert palimpsest("strategies", "show", "ewc", "--json").json["name"] == "ewc"
    assert "parameter" in palimpsest("strategies", "show", "ewc").out


def test_a_model_that_has_learnt_nothing_is_shown_by_every_command_that_reads(palimpsest: Palimpsest) -> None:
    make_task(palimpsest)
    for command, words in (
        ("version list", "champion"), ("version show", "version"), ("history", "created"), ("aliases", "previous"),
        ("update list", "status"), ("report matrix", "learnt by this version"), ("gate simulate", "policy"),
    ):  # fmt: skip
        shown = palimpsest(*command.split(), "triage")
        assert (shown.code, words in shown.out, shown.err) == (0, True, ""), (command, shown)
    for command, code in (
        ("report show", "no_report"),
        ("rollback", "no_previous"),
        ("version download", "no_adapter"),
    ):
        reason = ["--reason", "try"] if command == "rollback" else []
        refused = palimpsest(*command.split(), "triage", *reason)
        assert (refused.code, f"[{code}" in refused.err) == (1, True), (command, refused)


def test_keys_over_the_api_are_made_listed_rotated_and_revoked(palimpsest: Palimpsest) -> None:
    made = palimpsest(
        "keys", "create", "--scopes", "read,ingest", "--name", "ci", "--expires-in", "90d", "--json"
    ).json
    assert (made["scopes"], made["name"]) == (["ingest", "read"], "ci")
    assert palimpsest("model", "list", PALIMPSEST_API_KEY=made["api_key"]).code == 0
    rotated = palimpsest("keys", "rotate", made["prefix"], "--overlap", "1h")
    assert rotated.out.startswith(f"plm_{made['prefix']}_")
    listed = palimpsest("keys", "list")
    assert made["prefix"] in listed.out
    assert made["api_key"] not in listed.out
    assert palimpsest("keys", "revoke", made["id"]).out == f"The key '{made['id']}' is revoked.\n"
    assert palimpsest("model", "list", PALIMPSEST_API_KEY=rotated.out.strip()).code == 1
    assert palimpsest("keys", "list", "--json").json["data"][0]["revoked_at"]
    assert palimpsest("keys", "list", "--tenant", "acme", "--profile", "prod").code == 2, "database or API?"


def test_a_refusal_is_told_with_its_code_and_as_the_problem_document_for_scripts(
    palimpsest: Palimpsest,
) -> None:
    refused = palimpsest("model", "show", "nosuch")
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.startswith("palimpsest: error: ")
    assert "[model_not_found" in refused.err
    document = json.loads(palimpsest("model", "show", "nosuch", "--json").err)
    assert (document["code"], document["status"]) == ("model_not_found", 404)
    several = palimpsest("model", "create", "m", "--base-model", "minilm-l6", "--set", "a=1", "--set", "b=2")
    assert "body.a: " in several.err
    assert "body.b: " in several.err
