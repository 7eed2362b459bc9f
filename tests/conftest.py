"""What many tests share: a private cache, and one small sweep that is run once a session."""

import os
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory):
    """No test sees, or leaves anything in, the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("BITFRONT_CACHE")
    os.environ["BITFRONT_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["BITFRONT_CACHE"]
    else:
        os.environ["BITFRONT_CACHE"] = before


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A real sweep of three points on 200 images of the small residual network."""
    return _small_run(tmp_path_factory.mktemp("runs") / "small", ["round"])


@pytest.fixture(scope="session")
def run_of_recipes(tmp_path_factory):
    """The same points with two recipes."""
    return _small_run(tmp_path_factory.mktemp("runs") / "recipes", ["round", "gptq + bias_correction"])


@pytest.fixture(scope="session")
def run_of_caches(tmp_path_factory):
    """Three codecs on a tiny language model of random weights."""
    from dse.cache_study import CacheStudy
    from dse.sweep import run
    from tests.dse.cache_codecs import cache_codecs
    from tests.dse.workloads_language.tiny_folder import tiny_model_folder

    folder = tmp_path_factory.mktemp("caches")
    model, text = tiny_model_folder(folder)
    language = {"model": f"hf:{model}", "text": text, "windows": 2, "length": 32, "calibration_windows": 2}
    fronts = [{"x": "bits_per_element_seen", "y": "perplexity"}, {"x": "luts", "y": "bits_per_element"}]
    study = CacheStudy.parse(
        {"name": "cache", "language": language, "codecs": cache_codecs(), "fronts": fronts}
    )
    return run(study, folder / "run")


def _small_run(folder, recipes):
    from dse.study import Study
    from dse.sweep import run

    study = Study.parse(
        {
            "name": "small",
            "workloads": [
                {"name": "fmnist-resnet", "calibration_images": 64, "evaluation_images": 200},
            ],
            "formats": {"families": ["integer", "minifloat"], "bits": [3]},
            "quantization": {"recipe": recipes},
            "hardware": {"dot_length": 1024},
            "fronts": [{"x": "luts", "y": "accuracy"}, {"x": "weight_memory_kib", "y": "accuracy"}],
        }
    )
    return run(study, folder)
