from dse.metrics import METRICS
from reports.text import with_interval


def test_values_with_intervals():
    accuracy = {"accuracy": 0.9123, "accuracy_low": 0.9, "accuracy_high": 0.92}
    assert with_interval(accuracy, METRICS["accuracy"]) == "91.23 [90.0, 92.0]"
    assert with_interval({"luts": 80}, METRICS["luts"]) == "80"
