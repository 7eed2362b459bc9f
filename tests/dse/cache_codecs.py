"""Codecs of small studies of a cache."""


def cache_codecs():
    kivi = {"name": "KIVI", "codec": "kivi", "parameters": {"bits": [2, 4], "group": 8}}
    return [
        {**kivi, "evaluation": ["streaming", "window"]},
        {"name": "transform", "codec": "transform", "parameters": {"bits": 3.25, "sinks": 1}},
    ]
