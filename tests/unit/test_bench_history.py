"""Runs of the benchmark beside each other."""

import json

from tests.bench import history


def _run(date: str, ratios: dict[str, float], figures: dict[str, float]) -> dict:
    return {
        "facts": {**history.facts(), "date": date},
        "ratios": [{"row": row, "ratio": ratio} for row, ratio in ratios.items()],
        "figures": [{"row": row, "value": value, "unit": "MiB"} for row, value in figures.items()],
    }


def test_a_trend_has_a_column_for_each_run_in_the_order_of_their_dates():
    newer = _run("2026-11-30T10:00Z", {"h1": 1.25}, {"memory": 4.0})
    older = _run("2026-11-29T10:00Z", {"h1": 1.5, "gone": 2.0}, {})
    lines = history.trend([newer, older])
    table = {line[: len("memory [MiB]")].strip(): line[len("memory [MiB]") :].split() for line in lines}
    assert table["date"] == ["2026-11-29", "2026-11-30"]
    assert table["h1"] == ["1.500", "1.250"]
    assert table["gone"] == ["2.000"]
    assert lines[-1].split("]")[1].startswith(" " * 12), "a figure that the older run lacks stands in the second column"


def test_only_the_last_runs_are_shown():
    runs = [_run(f"2026-11-{day:02}T10:00Z", {"h1": float(day)}, {}) for day in range(1, history.SHOWN + 3)]
    last = next(line for line in history.trend(runs) if line.startswith("h1")).split()[1:]
    assert last == [f"{day:.3f}" for day in range(3, history.SHOWN + 3)]


def test_a_file_of_a_run_says_what_it_depends_on(tmp_path):
    path = history.add(tmp_path / "runs", _run("2026-11-30T10:00Z", {"h1": 1.0}, {}))
    assert path.name.startswith("2026-11-30T1000Z-")
    facts = json.loads(path.read_text())["facts"]
    assert facts["kernel"]
    assert facts["openssl"][0].isdigit()
    assert set(facts) >= {"commit", "processor", "load", "python", "haproxy", "nginx"}
