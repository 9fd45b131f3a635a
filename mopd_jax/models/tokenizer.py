"""Tokenizers behind `records.Tokenizer`, from Hugging Face folders and GGUF files.

Both end in a Transformers fast tokenizer with a chat template. A GGUF file's byte-level BPE is
built from its tables with the package `tokenizers`, without torch or llama.cpp. Not supported:
SentencePiece vocabularies and folders without `tokenizer.json`.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from mopd_jax.errors import ConfigError
from mopd_jax.models.decoder import DecoderConfig
from mopd_jax.models.weights import gguf_fields, open_gguf, read_json, resolve
from mopd_jax.records import Message

# The published pre-tokenizer patterns of Qwen2 and Llama 3; they differ in how many digits one
# piece may have. None: GPT-2's own pattern, which `tokenizers` has built in.
_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS: dict[str, str | None] = {
    "gpt-2": None,
    "default": None,
    "smollm": None,
    "qwen2": _PIECES % "",
    "llama-bpe": _PIECES % "{1,3}",
}
# Put before a template that prints today's date: a run resumed tomorrow must read the same.
_CONSTANT_DATE = "{%- macro strftime_now(form) -%}26 Jul 2024{%- endmacro -%}"
_CONTROL, _USER_DEFINED = 3, 4  # Of `tokenizer.ggml.token_type`.


class ChatTokenizer:
    """A Transformers fast tokenizer that can chat; implements `records.Tokenizer`.

    pad_id: the pad token, or the end token where there is none.
    stop_ids: the end token first, then the others that end a turn.
    vocab_size: one more than the largest id.
    specials: texts of the special tokens, longest first.
    fingerprint: twelve hex digits, of vocabulary and chat template.
    vocabulary: the same of the vocabulary alone: which token each id is.
    """

    def __init__(self, inner: Any, *, where: str, more_stop_ids: Sequence[int] = ()):
        """Wraps `inner`; `where` is for messages.

        Raises:
            ConfigError: without a chat template, or without any end token.
        """
        if inner.chat_template is None:
            raise ConfigError(
                f"{where} has no chat template (a base model?); use the instruct model, or add "
                "chat_template.jinja to the folder"
            )
        own = [] if inner.eos_token_id is None else [inner.eos_token_id]
        ends = tuple(dict.fromkeys([*own, *more_stop_ids]))
        if not ends:
            raise ConfigError(
                f"{where} names no end token; set eos_token in tokenizer_config.json or "
                "eos_token_id in generation_config.json"
            )
        vocabulary = inner.get_vocab()
        self._inner = inner
        self.where = where
        self.stop_ids: tuple[int, ...] = ends
        self.pad_id: int = ends[0] if inner.pad_token_id is None else inner.pad_token_id
        self.vocab_size: int = max(vocabulary.values()) + 1
        added = {t.content for t in inner.added_tokens_decoder.values() if t.special}
        specials = added | set(inner.all_special_tokens)
        self.specials: tuple[str, ...] = tuple(sorted(specials, key=lambda s: (-len(s), s)))
        template = inner.get_chat_template()
        if "strftime_now" in template:
            inner.chat_template = _CONSTANT_DATE + template
        # A reasoning model would spend the response on thoughts; some templates can skip them.
        self._options = {"enable_thinking": False} if "enable_thinking" in template else {}
        tokens = sorted(vocabulary.items())
        self.fingerprint: str = _digest([tokens, template])
        self.vocabulary: str = _digest(tokens)

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the conversation with the assistant header at the end.

        Raises:
            ConfigError: if the template refuses the messages.
        """
        return self._chat(messages, header=True)

    def header(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the assistant header: what `chat` adds to the conversation alone.

        Empty where the template has none of its own (the user's turn ends with it), or writes
        the conversation itself in another way for it.
        """
        whole, bare = self.chat(messages), self._chat(messages, header=False)
        return whole[len(bare) :] if whole[: len(bare)] == bare else []

    def _chat(self, messages: Sequence[Message], *, header: bool) -> list[int]:
        try:
            return self._inner.apply_chat_template(
                [dict(message) for message in messages],
                add_generation_prompt=header,
                tokenize=True,
                return_dict=False,
                **self._options,
            )
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise ConfigError(
                f"{self.where}: the chat template refuses messages of roles {roles} ({error})"
            ) from error

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, without special tokens added."""
        return self._inner.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens dropped."""
        return self._inner.decode(
            [int(i) for i in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the tokenizer, its template and its stop ids into a model folder."""
        self._inner.save_pretrained(folder)
        self.save_generation(folder)

    def save_generation(self, folder: str | os.PathLike) -> None:
        """Writes generation_config.json: the stop ids and the pad token."""
        generation = {"eos_token_id": list(self.stop_ids), "pad_token_id": self.pad_id}
        path = pathlib.Path(folder) / "generation_config.json"
        path.write_text(json.dumps(generation, indent=2) + "\n")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def load(path: str | os.PathLike) -> ChatTokenizer:
    """The tokenizer of a model path (see `weights.resolve`).

    Raises:
        ConfigError: if a file, the chat template or the end token is missing, or the GGUF
            file's kind of tokenizer is not supported.
    """
    source = resolve(path)
    return _from_gguf(source) if source.suffix == ".gguf" else _from_folder(source)


def check_vocabulary(tokenizer: Any, cfg: DecoderConfig) -> None:
    """Checks that every id of the tokenizer has an embedding; a padded model is allowed.

    Raises:
        ConfigError: with both sizes.
    """
    largest = max(tokenizer.vocab_size - 1, tokenizer.pad_id, *tokenizer.stop_ids)
    if largest >= cfg.vocab_size:
        raise ConfigError(
            f"the tokenizer has ids up to {largest}, {largest + 1} in all, but the model has "
            f"vocab_size {cfg.vocab_size}; take tokenizer and weights from the same checkpoint"
        )


def _from_folder(folder: pathlib.Path) -> ChatTokenizer:
    from transformers import PreTrainedTokenizerFast

    if not (folder / "tokenizer.json").is_file():
        raise ConfigError(
            f"{folder}/tokenizer.json is missing; write it once with transformers' "
            "AutoTokenizer.from_pretrained(...).save_pretrained(folder)"
        )
    # Not AutoTokenizer: a class named in tokenizer_config.json may rebuild the pre-tokenizer
    # by its own rules instead of those in tokenizer.json.
    try:
        inner = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # Errors of transformers do not name the file.
        raise ConfigError(
            f"{folder}: tokenizer.json or tokenizer_config.json cannot be read ({error})"
        ) from error
    ends: Any = None
    for name in ("generation_config.json", "config.json"):
        if ends is None and (folder / name).is_file():
            ends = read_json(folder / name).get("eos_token_id")
    ends = [] if ends is None else [ends] if isinstance(ends, int) else ends
    return ChatTokenizer(inner, where=str(folder), more_stop_ids=ends)


def _from_gguf(path: pathlib.Path) -> ChatTokenizer:
    from transformers import PreTrainedTokenizerFast

    fields = gguf_fields(open_gguf(path))
    backend, tokens = _byte_level_bpe(path, fields)
    names = {}
    for name, key in {
        "bos_token": "bos_token_id",
        "eos_token": "eos_token_id",
        "unk_token": "unknown_token_id",
        "pad_token": "padding_token_id",
    }.items():
        if (index := fields.get(f"tokenizer.ggml.{key}")) is not None:
            names[name] = tokens[index]
    inner = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=fields.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        **names,
    )
    turn_end = fields.get("tokenizer.ggml.eot_token_id")
    more = () if turn_end is None else (int(turn_end),)
    return ChatTokenizer(inner, where=str(path), more_stop_ids=more)


def _byte_level_bpe(path: pathlib.Path, fields: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """A `tokenizers.Tokenizer` from the tables of a GGUF file, and its tokens by id."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    kind, pre = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    if kind != "gpt2" or pre not in _SPLITS:
        raise ConfigError(
            f"{path}: tokenizer.ggml.model={kind!r} with tokenizer.ggml.pre={pre!r} is not "
            f"supported; supported is 'gpt2' with one of {', '.join(_SPLITS)}. Use the model's "
            "Hugging Face folder instead"
        )
    needed = [f"tokenizer.ggml.{name}" for name in ("tokens", "merges", "token_type")]
    missing = [name for name in needed if name not in fields]
    if missing:
        raise ConfigError(f"{path} has no {', '.join(missing)}; use the model's folder instead")
    tokens = fields["tokenizer.ggml.tokens"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise ConfigError(
            f"{path}: tokenizer.ggml.tokens has {len(tokens) - len(vocabulary)} tokens twice; "
            "use the model's Hugging Face folder instead"
        )
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    # Llama 3 takes a whole word that is in the vocabulary without going through the merges.
    backend = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre == "llama-bpe"))
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    pattern = _SPLITS[pre]
    if pattern is not None:
        first = Split(Regex(pattern), "isolated")
        steps = [first, ByteLevel(add_prefix_space=False, use_regex=False)]
    else:
        digits = [Digits(individual_digits=True)] if pre == "smollm" else []
        steps = [*digits, ByteLevel(add_prefix_space=False, use_regex=True)]
    backend.pre_tokenizer = Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    types = fields["tokenizer.ggml.token_type"]
    for wanted, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        # Matched in the text as written, before it is split or normalized.
        backend.add_tokens(
            [
                AddedToken(token, special=special, normalized=False)
                for token, type_ in zip(tokens, types, strict=True)
                if type_ == wanted
            ]
        )
    return backend, tokens
