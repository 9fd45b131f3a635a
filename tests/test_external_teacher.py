"""A teacher that is another model: what must fit, what need not, what a checkpoint keeps."""

import dataclasses
import json
import logging
import shutil

import jax
import numpy as np
import pytest
from test_train import checksums, flags

from mopd_jax import flags as flags_of
from mopd_jax import train
from mopd_jax.config import Config, MeshConfig, TeacherConfig
from mopd_jax.errors import ConfigError
from mopd_jax.models import decoder, export, sharding, tokenizer, weights
from mopd_jax.run import logbook
from mopd_jax.update import external_teacher


@pytest.fixture(scope="module")
def student_tokenizer():
    return tokenizer.load("builtin:codebook")


@pytest.fixture(scope="module")
def student():
    return weights.load_config("builtin:codebook")


def save_model(folder, student_tokenizer, model, seed=3):
    """A model folder with random weights and the codebook's tokenizer."""
    params = decoder.init(jax.random.key(seed), model)
    export.export_hf(params, model, folder, tokenizer_source=student_tokenizer)
    return params


def config(path):
    return Config(teacher=TeacherConfig(kind="external", path=str(path)))


def trained(folder, path, **changes):
    cfg, workdir = flags_of.parse(
        flags(folder, teacher__kind="external", teacher__path=path, **changes)
    )
    return train.train(cfg, workdir, devices=jax.devices()[:1])


def test_a_run_with_a_wider_teacher_resumes_to_the_same_bits(
    tmp_path, student_tokenizer, student
):
    wide = dataclasses.replace(student, width=96, layers=2)
    save_model(tmp_path / "teacher", student_tokenizer, wide)
    options = {"eval__every": 100, "checkpoint__every": 2}
    whole = trained(tmp_path / "whole", tmp_path / "teacher", steps=4, **options)
    trained(tmp_path / "parts", tmp_path / "teacher", steps=2, **options)
    parts = trained(tmp_path / "parts", tmp_path / "teacher", steps=4, **options)
    assert checksums(tmp_path / "parts", 4) == checksums(tmp_path / "whole", 4)
    assert not any("teacher" in name for name in checksums(tmp_path / "parts", 4))
    jax.tree.map(np.testing.assert_array_equal, parts.teacher, whole.teacher)
    assert parts.teacher["embed"].shape == (student.vocab_size, 96)
    records = [r for r in logbook.read(tmp_path / "parts") if r["kind"] == "train"]
    assert [r["update_applied"] for r in records] == [1] * 4


def test_padding_of_its_vocabulary_is_cut_off(tmp_path, student_tokenizer, student):
    padded = dataclasses.replace(student, vocab_size=student.vocab_size + 6)
    params = save_model(tmp_path / "teacher", student_tokenizer, padded)
    model = external_teacher.check(config(tmp_path / "teacher"), student, student_tokenizer)
    assert model.vocab_size == student.vocab_size
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    got = external_teacher.load(config(tmp_path / "teacher"), model, mesh)
    np.testing.assert_array_equal(got["embed"], params["embed"][: student.vocab_size])
    abstract, _ = decoder.abstract(model)
    assert jax.tree.map(lambda x: x.shape, got) == jax.tree.map(lambda x: x.shape, abstract)


def test_a_smaller_head_is_refused(tmp_path, student_tokenizer, student):
    save_model(tmp_path / "teacher", student_tokenizer, student)
    wider = dataclasses.replace(student, vocab_size=student.vocab_size + 6)
    with pytest.raises(ConfigError, match=r"its head has 74 rows, the student's 80; pad"):
        external_teacher.check(config(tmp_path / "teacher"), wider, student_tokenizer)


def test_it_is_kept_in_the_compute_dtype(tmp_path, student_tokenizer, student):
    save_model(tmp_path / "teacher", student_tokenizer, student)
    cfg = config(tmp_path / "teacher")
    cfg = dataclasses.replace(
        cfg, model=dataclasses.replace(cfg.model, compute_dtype="bfloat16")
    )
    model = external_teacher.check(cfg, student, student_tokenizer)
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    kinds = {x.dtype.name for x in jax.tree.leaves(external_teacher.load(cfg, model, mesh))}
    assert kinds == {"bfloat16"}


def test_another_vocabulary_is_refused(tmp_path, student_tokenizer, student):
    save_model(tmp_path / "teacher", student_tokenizer, student)
    path = tmp_path / "teacher/tokenizer.json"
    tokens = json.loads(path.read_text())
    vocabulary = tokens["model"]["vocab"]
    vocabulary["r0"], vocabulary["r1"] = vocabulary["r1"], vocabulary["r0"]
    path.write_text(json.dumps(tokens))
    with pytest.raises(ConfigError, match="log-probs are of other tokens.*student's family"):
        external_teacher.check(config(tmp_path / "teacher"), student, student_tokenizer)


def test_another_template_is_said_aloud(tmp_path, student_tokenizer, student, caplog):
    save_model(tmp_path / "teacher", student_tokenizer, student)
    (tmp_path / "teacher/chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    with caplog.at_level(logging.WARNING, logger="mopd"):
        external_teacher.check(config(tmp_path / "teacher"), student, student_tokenizer)
    assert "another chat template" in caplog.text


def test_another_teacher_under_the_same_name_is_refused_at_a_resume(
    tmp_path, student_tokenizer, student
):
    wide = dataclasses.replace(student, width=96, layers=2)
    save_model(tmp_path / "teacher", student_tokenizer, wide)
    options = {"eval__every": 100, "checkpoint__every": 2}
    trained(tmp_path / "run", tmp_path / "teacher", steps=2, **options)
    shutil.rmtree(tmp_path / "teacher")
    save_model(tmp_path / "teacher", student_tokenizer, wide, seed=4)
    with pytest.raises(
        ConfigError, match="teacher.path names other content than in the first 2"
    ):
        trained(tmp_path / "run", tmp_path / "teacher", steps=4, **options)
