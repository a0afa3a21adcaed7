"""The report of a folder alone is that of its latest sweep."""

from jaxdiff.sweeps import stored
from jaxdiff.sweeps.records import Records
from tests.reporting.runs import a_record


def test_the_report_is_of_the_run_and_the_metrics_of_the_last_line(tmp_path):
    records = Records(tmp_path)
    for scored in ("old", "new"):
        values = {"accuracy": 1.0, "recall": 0.9}
        records.add({"key": "real", "scored": scored, "n": 100, "counts": {}, "values": values})
    before = a_record("a", 1.0, 0.90, 0.90, 8) | {"scored": "old", "base": "another run"}
    latest = a_record("b", 2.0, 0.97, 0.80, 8) | {"scored": "new", "base": "this run"}
    records.add(before)
    records.add(latest)
    report = stored.read(tmp_path)
    assert report.real["scored"] == "new"
    assert list(report.records) == [latest]
