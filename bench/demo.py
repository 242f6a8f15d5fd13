"""The main job, end to end, on the embedded stack: learn five tasks in a row, forget, rehearse, gate, roll back.

Everything goes through the public HTTP API; every number printed comes from it. Exits non-zero when the
service does not do what it promises.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench.client import Client, Json
from bench.corpus import Corpus, newsgroups
from service.embedded import Stack

TASKS = 5
CLASSES_PER_TASK = 4
TRAIN_PER_CLASS = 30
EVAL_PER_CLASS = 25
CAPACITY = 600
WITHIN_OF_JOINT = 0.05
VISIBLE_FORGETTING = 0.20
TRAINING: Json = {"max_length": 40, "seed": 0}

console = Console(highlight=False)
if console.width < 110:  # the two matrices stand side by side
    console = Console(highlight=False, width=110)


class DemoFailed(RuntimeError):
    """The service did not do what it promises."""


def main() -> int:
    """Runs the demo; returns the exit code."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--state", type=Path, help="keep the state folder here (default: a temporary one)")
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="palimpsest-demo-") as temporary:
        state = arguments.state or Path(temporary) / "state"
        console.print("[bold]Palimpsest[/bold]: starting Postgres, Valkey, the API and one worker …")
        try:
            with Stack(state, say=lambda line: console.print(f"  [dim]{line}[/dim]")) as stack:
                tell_the_story(Client(stack.url, stack.api_key))
        except DemoFailed as failure:
            console.print(f"[bold red]The demo failed:[/bold red] {failure}")
            return 1
    console.print(f"\n[bold green]Success[/bold green] in {time.monotonic() - began:.0f} s.")
    return 0


def tell_the_story(client: Client) -> None:
    """Three models see the same five tasks; then a regression is looked at and rolled back."""
    tasks = make_tasks()
    console.print(
        f"\n20 Newsgroups as {TASKS} tasks of {CLASSES_PER_TASK} new labels each; "
        f"{TRAIN_PER_CLASS} postings per label to learn from, {EVAL_PER_CLASS} to be judged on.\n"
    )
    learn_in_a_row(client, "sequential", tasks)
    last = learn_in_a_row(client, "replay", tasks)
    learn_at_once(client, "joint", tasks)
    reports = {
        name: client.get(f"/models/{name}/reports/forgetting") for name in ("sequential", "replay", "joint")
    }
    show_matrices(reports)
    show_verdict(last)
    show_regressions(client)
    roll_back(client)
    check_promises(reports)


def make_tasks() -> list[tuple[str, Corpus, Corpus]]:
    """Cuts the corpus into named tasks of train and test texts by label."""
    train, test = newsgroups("train"), newsgroups("test")
    # Every fifth category goes into the same task, so that each task mixes subjects.
    labels = sorted(train)
    groups = [labels[start::TASKS] for start in range(TASKS)]
    return [
        (
            f"news-{number}",
            {label: train[label][:TRAIN_PER_CLASS] for label in group},
            {label: test[label][:EVAL_PER_CLASS] for label in group},
        )
        for number, group in enumerate(groups, start=1)
    ]


def create_model(client: Client, name: str) -> None:
    """Creates a model on the built-in encoder."""
    client.post(
        "/models",
        {
            "name": name,
            "base_model": "minilm-l6",
            "task_type": "text-classification",
            "replay": {"capacity": CAPACITY},
        },
    )


def add_task(client: Client, model: str, task: tuple[str, Corpus, Corpus]) -> None:
    """Creates a task and streams its examples."""
    name, train, test = task
    client.put(f"/models/{model}/tasks/{name}")
    rows = (
        {"text": text, "label": label, "split": split}
        for split, corpus in (("train", train), ("eval", test))
        for label, texts in corpus.items()
        for text in texts
    )
    answer = client.stream_examples(model, name, rows)
    if answer["accepted"] < 0.95 * CLASSES_PER_TASK * (TRAIN_PER_CLASS + EVAL_PER_CLASS):
        raise DemoFailed(f"only {answer['accepted']} rows of {name} were accepted: {answer['errors'][:3]}")


def learn_in_a_row(client: Client, strategy: str, tasks: Sequence[tuple[str, Corpus, Corpus]]) -> Json:
    """One update per task, each promoted whatever the verdict, so that the lineage goes on; returns the last."""
    create_model(client, strategy)
    update: Json = {}
    for task in tasks:
        add_task(client, strategy, task)
        update = run_update(client, strategy, strategy, [task[0]])
    return update


def learn_at_once(client: Client, strategy: str, tasks: Sequence[tuple[str, Corpus, Corpus]]) -> None:
    """All tasks in one update: the upper bound."""
    create_model(client, strategy)
    for task in tasks:
        add_task(client, strategy, task)
    run_update(client, strategy, strategy, [task[0] for task in tasks])


def run_update(client: Client, model: str, strategy: str, tasks: list[str]) -> Json:
    """Posts an update and shows its progress to the end."""
    request = {"tasks": tasks, "strategy": {"name": strategy}, "training": TRAINING, "promotion": "always"}
    update = client.post(f"/models/{model}/updates", request)
    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=30), TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(), TextColumn("[dim]{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        title = (
            f"{strategy:<10} learns {', '.join(tasks) if len(tasks) == 1 else f'{len(tasks)} tasks at once'}"
        )
        bar = progress.add_task(f"{title:<34}", total=100, note="")

        def show(reading: Json) -> None:
            now = reading["progress"]
            if now and now["phase"] == "training" and now["total_steps"]:
                loss = f"loss {now['loss']:.3f}" if now["loss"] is not None else ""
                progress.update(bar, completed=90 * now["step"] / now["total_steps"], note=loss)
            elif now:
                progress.update(bar, note=now["phase"])
            if reading["verdict"]:
                note = f"version {reading['version']}: the gate says {reading['verdict']['decision']}"
                progress.update(bar, completed=100, note=note)

        update = client.wait(update["id"], show)
    if update["status"] != "promoted":
        raise DemoFailed(f"the update {update['id']} ended {update['status']}: {update['error']}")
    return update


def show_matrices(reports: dict[str, Json]) -> None:
    """Prints both accuracy matrices side by side, and what follows from all three."""
    grid = Table.grid(padding=(0, 4))
    grid.add_row(*(matrix_table(name, reports[name]) for name in ("sequential", "replay")))
    console.print()
    console.print(grid)
    table = Table(title="What follows from them", title_justify="left")
    for heading in ("strategy", "average accuracy", "forgetting", "backward transfer", "learning accuracy"):
        table.add_column(heading, justify="left" if heading == "strategy" else "right")
    for name, report in reports.items():
        summary = report["summary"]
        keys = ("average_accuracy", "forgetting", "backward_transfer", "learning_accuracy")
        table.add_row(name, *("–" if summary[key] is None else f"{summary[key]:+.3f}" for key in keys))
    console.print(table)


def matrix_table(name: str, report: Json) -> Table:
    """One accuracy matrix: a row per version, a column per task."""
    table = Table(title=f"{name}: versions × tasks", title_justify="left")
    table.add_column("v")
    for task in report["tasks"]:
        table.add_column(task, justify="right", no_wrap=True)
    for version, row in zip(report["versions"][1:], report["matrix"][1:], strict=True):
        table.add_row(str(version), *("–" if score is None else shade(score) for score in row))
    return table


def shade(score: float) -> str:
    """A score in red, yellow or green."""
    colour = "green" if score >= 0.6 else "yellow" if score >= 0.3 else "red"
    return f"[{colour}]{score:.2f}[/{colour}]"


def show_verdict(update: Json) -> None:
    """Prints what the gate would have done with the last replay update."""
    verdict = update["verdict"]
    reasons = "\n".join(f"• {reason['task']}: {reason['detail']}" for reason in verdict["reasons"][:3])
    console.print(
        Panel(
            f"[bold]{verdict['decision']}[/bold]\n{reasons}",
            title=f"The gate's verdict on version {update['version']} of 'replay' (promoted all the same: promotion=always)",
            title_align="left",
        )
    )


def show_regressions(client: Client) -> None:
    """Prints three examples that the last sequential update broke."""
    champion = client.get("/models/sequential")["champion"]
    flips = client.get(f"/models/sequential/versions/{champion}/flips", kind="negative", limit=3)["data"]
    if len(flips) < 3:
        raise DemoFailed("the sequential model regressed on fewer than three examples")
    console.print(f"Three examples that version {champion} of 'sequential' broke:")
    for flip in flips:
        console.print(f"  [dim]{flip['content']['text'][:90]}…[/dim]")
        console.print(
            f"    expected [green]{flip['expected']}[/green], before {flip['before']['label']},"
            f" now [red]{flip['after']['label']}[/red] ({flip['after']['confidence']:.0%} sure)"
        )


def roll_back(client: Client) -> None:
    """Rolls the sequential model back and checks that champion, report and history follow."""
    before = client.get("/models/sequential")
    answer = client.post("/models/sequential/rollback", {"reason": "the last update broke earlier tasks"})
    after = client.get("/models/sequential")
    report = client.get("/models/sequential/reports/forgetting")
    last_move = client.get("/models/sequential/history", limit=1)["data"][0]
    if (
        not answer["champion"]
        == after["champion"]
        == report["version"]
        == before["previous"]
        == last_move["to_version"]
    ):
        raise DemoFailed(
            f"the rollback is not seen everywhere: {answer}, {after['champion']}, {report['version']}"
        )
    if len(report["versions"]) != len(client.get("/models/sequential/versions")["data"]) - 1:
        raise DemoFailed("the forgetting report did not follow the rollback")
    console.print(
        f"\nRolled back 'sequential': champion {before['champion']} → {after['champion']}; its report now ends at "
        f"version {report['version']} with average accuracy {report['summary']['average_accuracy']:.3f}."
    )


def check_promises(reports: dict[str, Json]) -> None:
    """Raises `DemoFailed` unless sequential forgot and replay stayed close to joint."""
    summaries = {name: report["summary"] for name, report in reports.items()}
    forgotten = summaries["sequential"]["forgetting"]
    gap = summaries["joint"]["average_accuracy"] - summaries["replay"]["average_accuracy"]
    where = f"{100 * abs(gap):.1f} points {'below' if gap >= 0 else 'above'}"
    console.print(f"'sequential' forgot {forgotten:.0%} of what it once knew; 'replay' ends {where} 'joint'.")
    if forgotten < VISIBLE_FORGETTING:
        raise DemoFailed(f"'sequential' was expected to forget visibly, but forgot only {forgotten:.1%}")
    if gap > WITHIN_OF_JOINT:
        raise DemoFailed(f"'replay' was expected within {WITHIN_OF_JOINT:.0%} of 'joint'")


if __name__ == "__main__":
    sys.exit(main())
