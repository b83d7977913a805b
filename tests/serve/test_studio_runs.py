"""The list of runs and their records over HTTP."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from serve.studio_run import lines_of, make_run, train_row

from firstlight.serve.studio_runs import add_runs, folder_of, last_train_row


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    rows = lines_of({"kind": "run", "step": 0, "what": "started"}, *(train_row(i) for i in range(5)))
    make_run(folder, "older", rows=rows, created_unix_s=100.0, final={"val_bpb": 1.25, "steps": 5})
    make_run(folder, "newer", rows=rows + b'{"kind": "train", "st', created_unix_s=200.0, status="running", process="")
    broken = make_run(folder, "broken")
    (broken / "run.json").write_text("{")
    (folder / "no-run").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "run.json").write_text("{}")
    return folder


@pytest.fixture
def client(runs_dir: Path) -> TestClient:
    app = FastAPI()
    add_runs(app, runs_dir=runs_dir, served_dir=runs_dir / "older")
    return TestClient(app)


def test_the_list_says_who_how_far_and_how_good(client: TestClient) -> None:
    found = client.get("/api/runs").json()
    assert [run["name"] for run in found["runs"]] == ["newer", "older", "broken"]
    newer, older, broken = found["runs"]
    assert (newer["status"], newer["step"], newer["num_steps"], newer["loss_nats"]) == ("running", 5, 40, 3.96)
    assert (older["status"], older["val_bpb"], older["depth"]) == ("done", 1.25, 2)
    assert broken["status"] == "damaged"
    assert "run.json" in broken["problem"]
    assert found["served"] == "older"
    assert found["num_left_out"] == 0


def test_the_served_run_is_listed_wherever_it_lies(tmp_path: Path, runs_dir: Path) -> None:
    app = FastAPI()
    add_runs(app, runs_dir=runs_dir, served_dir=make_run(tmp_path / "elsewhere", "mine", rows=lines_of(train_row(0))))
    client = TestClient(app)
    assert client.get("/api/runs").json()["runs"][0]["name"] == "mine"
    assert client.get("/api/runs/mine").json()["name"] == "mine"
    assert client.get("/api/runs/mine/metrics").json()["train"]["step"] == [0]


def test_a_record_and_a_damaged_one(client: TestClient) -> None:
    record = client.get("/api/runs/older").json()
    assert record["config"]["plan"]["matrix_lr"] == 0.02
    assert record["final"] == {"val_bpb": 1.25, "steps": 5}
    damaged = client.get("/api/runs/broken")
    assert damaged.status_code == 409
    assert "run.json" in damaged.json()["error"]["message"]
    assert client.get("/api/runs/broken/metrics").json()["status"] == "damaged"


def test_metrics_go_on_from_a_place(client: TestClient, runs_dir: Path) -> None:
    first = client.get("/api/runs/newer/metrics").json()
    assert first["train"]["step"] == [0, 1, 2, 3, 4]
    assert first["status"] == "running"
    with open(runs_dir / "newer" / "metrics.jsonl", "ab") as out:
        out.write(b'ep": 5, "loss_nats": 1}\n')
    then = client.get("/api/runs/newer/metrics", params={"from": first["next"], "tag": first["tag"]}).json()
    assert (then["from"], then["train"]["step"], then["train"]["loss_nats"]) == (first["next"], [5], [1])


@pytest.mark.parametrize(
    "name", ["../secret", "..", ".", "older/../../secret", "/etc", "no-run", "OLDER/", "", "x" * 300, "a\x00b", "-a"]
)
def test_a_name_leads_nowhere_but_to_a_run(client: TestClient, runs_dir: Path, name: str) -> None:
    assert folder_of(name, runs_dir=runs_dir, served_dir=runs_dir / "older") is None
    for path in (f"/api/runs/{quote(name, safe='')}", f"/api/runs/{quote(name, safe='')}/metrics"):
        answer = client.get(path)
        # "." and ".." are resolved by the client itself, "" is the list.
        assert answer.status_code in (404, 307) or path.removesuffix("/") == "/api/runs" or name in (".", "..")
        assert "secret" not in answer.text or name in answer.text


@pytest.mark.parametrize(
    "query", ["from=-1", "from=x", "max_points=1", "max_points=99999", f"from={2**70}", "tag=" + "x" * 99]
)
def test_odd_questions_are_refused(client: TestClient, query: str) -> None:
    assert client.get(f"/api/runs/older/metrics?{query}").status_code == 422


def test_a_place_behind_the_end_begins_again(client: TestClient) -> None:
    found = client.get("/api/runs/older/metrics?from=99999999&tag=abc").json()
    assert (found["is_reset"], found["train"]["step"]) == (True, [0, 1, 2, 3, 4])


def test_the_last_training_row_is_found_from_the_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert last_train_row(path) == {}
    path.write_bytes(
        lines_of(*(train_row(i) for i in range(400)), {"kind": "eval", "step": 400}) + b'{"kind": "train", "step": 4'
    )
    assert path.stat().st_size > 3 * 16 * 1024
    assert last_train_row(path)["step"] == 399
    path.write_bytes(json.dumps({"kind": "train", "step": 1}).encode())
    assert last_train_row(path) == {}
