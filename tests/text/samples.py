"""Small tokenizers of every family that the text side tells apart, made in memory."""

from __future__ import annotations

from functools import cache

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

SPECIALS = ("<unk>", "<s>", "</s>", "<|im_end|>")
TOOL_TAG = "<tool_call>"  # an added token that is text
CORPUS = (
    "The capital of France is Paris. Once upon a time there was a naïve café owner.",
    "日本語のテキスト、中文文本, текст по-русски, 🎉🎊🧑‍🚀 and mañana.\n\n\tTabs too.",
    "a a a aa aaa aaaa  spaces   more    and so on so on so on",
)


def _add_tokens(backend: Tokenizer) -> Tokenizer:
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIALS])
    backend.add_tokens([AddedToken(TOOL_TAG, normalized=False), AddedToken("<｜end▁of｜>")])
    return backend


@cache
def byte_level() -> Tokenizer:
    """As GPT-2, Llama 3 and Qwen; merged tokens end in the middle of characters."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return _add_tokens(backend)


def _piece_model() -> models.BPE:
    """256 byte tokens, a few letters and merges; all other characters fall back to bytes."""
    texts = [*SPECIALS[:3], *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdehinoprst.éö日"]
    merges = [("▁", "a"), ("▁", "▁"), ("▁▁", "▁▁"), ("o", "n"), ("▁", "日")]
    texts += ["".join(pair) for pair in merges]
    vocab = {text: index for index, text in enumerate(texts)}
    return models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)


@cache
def byte_fallback() -> Tokenizer:
    """As Llama 2 and Mistral: spaces are `▁`, one is put before the text and stripped again."""
    backend = Tokenizer(_piece_model())
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return _add_tokens(backend)


@cache
def byte_fallback_unstripped() -> Tokenizer:
    """As Gemma: no space is put before the text, so none is stripped."""
    backend = Tokenizer(_piece_model())
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return _add_tokens(backend)


@cache
def metaspace() -> Tokenizer:
    """As tokenizers converted from SentencePiece: no byte tokens in the decoder."""
    backend = Tokenizer(_piece_model())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    return _add_tokens(backend)


@cache
def wordpiece() -> Tokenizer:
    words = ["[PAD]", *SPECIALS[:3], "the", "cat", "##s", "##ing", "sit", ".", "don", "'", "t", "�"]
    vocab = {word: index for index, word in enumerate(words)}
    backend = Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return _add_tokens(backend)


@cache
def word_suffix() -> Tokenizer:
    """As the first GPT: a word ends with `</w>`."""
    vocab = {text: index for index, text in enumerate(["a", "b", "a</w>", "b</w>", "ab</w>"])}
    backend = Tokenizer(models.BPE(vocab, [("a", "b</w>")], end_of_word_suffix="</w>"))
    backend.decoder = decoders.BPEDecoder()
    return _add_tokens(backend)


@cache
def ctc() -> Tokenizer:
    vocab = {text: index for index, text in enumerate(["<pad>", "|", *"abcdefgh"])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    backend.decoder = decoders.CTC(pad_token="<pad>", word_delimiter_token="|")
    return _add_tokens(backend)


@cache
def words_without_decoder() -> Tokenizer:
    vocab = {text: index for index, text in enumerate(["<unk>", "one", "two", "three"])}
    return _add_tokens(Tokenizer(models.WordLevel(vocab, unk_token="<unk>")))


def copy_of(backend: Tokenizer) -> Tokenizer:
    return Tokenizer.from_str(backend.to_str())


def with_bos(backend: Tokenizer) -> Tokenizer:
    """A copy that begins every text with `<s>`."""
    backend = copy_of(backend)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return backend
