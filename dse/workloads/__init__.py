"""Trained networks with the data to calibrate and to measure their quantized versions.

workload = load_workload("fmnist-resnet", evaluation_images=1000)
top1_accuracy(workload.model, workload.evaluation).percent
"""

from dse.workloads.images import Accuracy, ImageSet, top1_accuracy
from dse.workloads.registry import (
    WorkloadInfo,
    check_workload,
    list_workloads,
    load_workload,
    workload_fingerprint,
)
from dse.workloads.workload import Workload

__all__ = [
    "Accuracy",
    "ImageSet",
    "Workload",
    "WorkloadInfo",
    "check_workload",
    "list_workloads",
    "load_workload",
    "top1_accuracy",
    "workload_fingerprint",
]
