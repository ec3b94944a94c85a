"""Records are a TFDS data set, made and read without TensorFlow."""

import itertools
import os
import resource
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.data.synthetic import CLASSES, LENGTH, ROOT, number, parameters, single
from vf.data import records
from vf.data.clips import Windows
from vf.data.encoding import decode
from vf.data.preparation import prepare
from vf.data.prepared import Prepared


def test_it_is_a_data_set_of_tfds(prepared):
    out, manifest = prepared
    builder = tfds.builder_from_directory(out / manifest["builder"])
    assert builder.info.features["label"].names == list(CLASSES)
    assert dict(builder.info.metadata)["encoding"] == "raw"
    rows = builder.as_data_source("test")
    assert len(rows) == 3 * -(-LENGTH // records.SEGMENT)
    assert [(row["clip"], row["segment"], len(row["bytes"])) for row in rows][:6] == [
        (0, 0, 16), (0, 1, 16), (0, 2, 16), (0, 3, 16), (0, 4, 6), (1, 0, 16)
    ]  # fmt: skip
    assert list(rows[1]["bytes"]) == [16 * 16 * 3] * 16
    frame = rows[1]["frames"][2 * 16 * 16 * 3 :][: 16 * 16 * 3]
    assert number(decode([frame], "raw", 16)[0]) == 18
    assert rows[0]["name"] == b"Archery/v_Archery_g01_c01.avi"


def test_neither_writing_nor_reading_needs_tensorflow(ucf, tmp_path):
    program = (
        "import sys\n"
        "from vf.data.prepare import *\n"
        "from vf.data.prepared import Prepared\n"
        "from vf.data.clips import Windows\n"
        "if __name__ == '__main__':\n"
        "    parameters, args = arguments()\n"
        "    prepare(parameters, args.out, 1)\n"
        "    Prepared(args.out, windows=Windows(4)).clip(0, None)\n"
        "    print([m for m in sys.modules if m.split('.')[0] in ('tensorflow', 'torch')])\n"
    )
    (tmp_path / "program.py").write_text(program)
    words = [sys.executable, str(tmp_path / "program.py"), "folder", f"--source={ucf / 'Bowling'}", "--size=8"]
    done = subprocess.run(
        [*words, f"--out={tmp_path / 'out'}"],
        capture_output=True, text=True, timeout=120, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


def test_a_large_split_is_several_files(ucf, tmp_path, prepared):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "SHARD", 20_000)  # two records and a bit
        manifest = prepare(parameters(ucf, "ucf101"), tmp_path, workers=1)
    assert manifest["fingerprint"] == prepared[1]["fingerprint"]
    assert len(list(tmp_path.rglob("ucf101_clips-train.array_record-*"))) == 17  # of 6 clips of 54 kB
    one, other = single(tmp_path), single(prepared[0])
    for record in range(len(other)):
        np.testing.assert_array_equal(one.clip(record, None)["video"], other.clip(record, None)["video"])


def test_a_disk_that_fills_while_records_are_written_is_reported(tmp_path):
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, most))
    try:
        with pytest.raises(OSError, match="File too large"):
            records._write_file(tmp_path / "file", itertools.repeat(bytes(10**6), 100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))


def test_captions_labels_and_embeddings_travel_in_records(ucf, tmp_path):
    names = [f"{name}/v_{name}_g0{g}_c01" for name in CLASSES for g in (1, 2)]
    rows = [f'{name}.avi,kind {k % 2},"clip {k}, with a comma"\n' for k, name in enumerate(names)]
    (tmp_path / "table.csv").write_text("path,label,caption\n" + "".join(rows))
    vectors = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    np.savez(tmp_path / "vectors.npz", name=[f"{name}.avi" for name in names], embedding=vectors)
    given = parameters(ucf, table=str(tmp_path / "table.csv"), embeddings=str(tmp_path / "vectors.npz"))
    manifest = prepare(given, tmp_path / "out", workers=1)
    source = Prepared(tmp_path / "out", windows=Windows(4, start="centre"), base_frame=1)
    assert source.class_names == ("kind 0", "kind 1")
    assert source.embedding_dim == 5
    for k in range(6):
        clip = source.clip(k, None)
        assert clip["label"] == k % 2
        np.testing.assert_array_equal(clip["embedding"], vectors[k])
    rows = tfds.builder_from_directory(tmp_path / "out" / manifest["builder"]).as_data_source("train")
    assert {row["caption"].decode() for row in rows} == {f"clip {k}, with a comma" for k in range(6)}
    assert len(manifest["unlisted"]) == 3
