"""The dashboard draws what the code emits, and all of it; what is emitted arrives under the names that it asks for."""

import json
import re
import time
import urllib.request
import warnings

import pytest
import yaml

from data.manifest import Shard
from infra.ray_session import RaySession
from tests.programs.places import REPOSITORY
from training.log.metrics import FIELDS, METRICS

FOLDER = REPOSITORY / "infra" / "dashboards"
DASHBOARD = json.loads((FOLDER / "gemma2.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
DRAWN = {name for text in EXPRESSIONS for name in re.findall(r"\bray_(\w+)", text)}


def test_every_name_in_it_is_one_that_the_code_emits_and_the_other_way_round() -> None:
    assert set(METRICS) == DRAWN
    assert all(metric.name == name and metric.name.startswith("gemma2_") for name, metric in METRICS.items())
    counters = {name for name, metric in METRICS.items() if metric.kind == "counter"}
    assert counters == {name for name in METRICS if name.endswith("_total")}, "what Ray calls a counter"


def test_labels_in_it_are_those_of_the_metric() -> None:
    for text in EXPRESSIONS:
        for name, selector in re.findall(r"\bray_(\w+)\{([^}]*)\}", text):
            assert set(re.findall(r"(\w+)=", selector)) <= set(METRICS[name].labels), text
        for labels in re.findall(r"sum by \(([^)]*)\)", text):
            (name,) = set(re.findall(r"\bray_(\w+)", text))
            assert {label.strip() for label in labels.split(",")} <= set(METRICS[name].labels)


def test_it_has_a_panel_for_what_people_ask() -> None:
    titles = [panel["title"] for panel in DASHBOARD["panels"]]
    wanted = {"Tokens a second", "Tokens seen", "MFU", "Goodput", "Lost time by cause", "Waiting for data"}
    wanted |= {"Time of a step", "Loss", "Gradient norm", "Learning rate", "Memory", "Progress"}
    wanted |= {"Rejects an hour", "Cache of logits"}
    assert wanted <= set(titles)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(titles)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(titles), "none lies on another"
    assert {variable["name"] for variable in DASHBOARD["templating"]["list"]} == {"datasource", "run"}


def test_what_provisions_it_finds_it() -> None:
    (provider,) = yaml.safe_load((FOLDER / "provisioning/dashboards/gemma2.yml").read_text())["providers"]
    assert (REPOSITORY / provider["options"]["path"] / "gemma2.json").exists()
    (source,) = yaml.safe_load((FOLDER / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://127.0.0.1:9090"
    (job,) = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    assert job["file_sd_configs"][0]["files"] == ["/tmp/ray/prom_metrics_service_discovery.json"]


@pytest.mark.slow
def test_what_is_emitted_arrives(ray_session: RaySession) -> None:
    """Through Ray's agent on this node, read as Prometheus does: each field of a run, with its labels."""
    ray_session.start()
    import ray

    from pipelines.engine.counters import count_shard
    from tests.programs.examples import example_job

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray Train's imports
        from training.worker.on_worker import _Gauges

    shard = Shard(name="logits/00000.parquet", rows=1, bytes=70, sha256="0" * 64)
    count_shard("emitting_stage", {"logits": (shard, shard)}, {"too_long": 3, "empty": 0})
    gauges = _Gauges(example_job(REPOSITORY / "train_model" / "0123456789abcdef" / "checkpoints"))
    emitted = {field: number + 0.5 for number, field in enumerate(sorted(FIELDS))}
    gauges.tell(emitted)

    run = "train_model/0123456789abcdef"
    port = ray.nodes()[0]["MetricsExportPort"]
    deadline = time.monotonic() + 40
    while True:
        page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
        # other tests of this session count too, under other labels
        lines = [line for line in page.splitlines() if 'stage="emitting_stage"' in line or f'run="{run}"' in line]
        arrived = {name: line for name in METRICS for line in lines if line.startswith(f"ray_{name}{{")}
        if set(arrived) == set(METRICS) or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    assert set(arrived) == set(METRICS)
    assert arrived["gemma2_stage_dropped_rows_total"].endswith(" 3.0")
    assert 'reason="too_long"' in arrived["gemma2_stage_dropped_rows_total"]
    assert arrived["gemma2_stage_written_bytes_total"].endswith(" 140.0")
    for metric in METRICS.values():
        for field, labels in metric.fields.items():
            given = {"run": run, **labels}
            (line,) = (
                line
                for line in lines
                if line.startswith(f"ray_{metric.name}{{")
                and all(f'{label}="{value}"' in line for label, value in given.items())
            )
            assert line.endswith(f" {emitted[field]}"), field
