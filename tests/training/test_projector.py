"""The files of TensorBoard's embedding projector."""

import numpy as np
from google.protobuf import text_format
from tensorboard.plugins.projector import ProjectorConfig

from finetune.training import projector


def test_long_vectors_keep_their_angles_on_fewer_axes(tmp_path):
    random = np.random.default_rng(0)
    vectors = (random.normal(size=(40, 8)) @ random.normal(size=(8, 300))).astype(np.float32)  # of 8 dimensions
    texts = [str(at) for at in range(40)]
    images = np.zeros((40, projector.SIDE, projector.SIDE, 3), np.uint8)
    projector.add_to_projector(tmp_path, "head", vectors, {"class": texts, "file": ["a\tb"] * 40}, images)
    written = np.loadtxt(tmp_path / "head.tsv", delimiter="\t")
    assert written.shape[1] <= projector.AXES
    np.testing.assert_allclose(
        written @ written.T, vectors @ vectors.T, rtol=0.01, atol=0.01 * np.abs(vectors @ vectors.T).max()
    )
    lines = (tmp_path / "head_metadata.tsv").read_text().splitlines()
    assert lines[:2] == ["class\tfile", "0\ta\\x09b"]
    assert len(lines) == 41


def test_an_embedding_joins_those_before_it_and_replaces_its_own(tmp_path):
    def add(name):
        images = np.zeros((3, projector.SIDE, projector.SIDE, 3), np.uint8)
        projector.add_to_projector(
            tmp_path, name, np.eye(3), {"class": ["a", "b", "c"], "file": ["d", "e", "f"]}, images
        )
        config = text_format.Parse((tmp_path / "projector_config.pbtxt").read_text(), ProjectorConfig())
        return [embedding.tensor_name for embedding in config.embeddings]

    assert add("head") == ["head"]
    assert add("fine_tune") == ["head", "fine_tune"]
    assert add("fine_tune") == ["head", "fine_tune"]  # a resumed run repeats the end of a phase
    (tmp_path / "projector_config.pbtxt").write_text("not ours {")
    assert add("fine_tune") == ["fine_tune"]
