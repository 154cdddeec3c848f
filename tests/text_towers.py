"""Text towers with random weights and tokenizers of whole words, for tests without downloads."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2Model,
    T5Config,
    T5EncoderModel,
    T5Model,
    VideoPrismClipModel,
    VideoPrismConfig,
    XCLIPConfig,
    XCLIPModel,
)


WORDS = ["a", "person", "pours", "water", "from", "jug", "waves", "walks", "runs", "jumps", "fast"]
WORDS += ["hand", "the", "to", "sits", "down", "stands", "up"]
SPECIAL = ["<pad>", "<unk>", "<start>", "<end>"]
WIDTH = 16
MAX_LENGTH = 12

_SIZES = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_VISION = _SIZES | {"image_size": 32, "patch_size": 16}


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, between a start and an end."""
    vocabulary = {word: index for index, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", 3)]
    )
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<start>", "eos_token": "<end>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=MAX_LENGTH, **names)


def _text_values() -> dict:
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    return _SIZES | ids | {"vocab_size": len(SPECIAL + WORDS), "max_position_embeddings": MAX_LENGTH}


def make_tower(kind: str):
    """A model of transformers that encodes text."""
    text = _text_values()
    if kind == "clip":
        return CLIPModel(CLIPConfig(text_config=text, vision_config=_VISION, projection_dim=WIDTH))
    if kind == "xclip":
        vision = _VISION | {"mit_hidden_size": 24, "mit_intermediate_size": 32, "mit_num_attention_heads": 2}
        return XCLIPModel(XCLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))
    if kind == "videoprism":
        vision = _SIZES | {"image_size": 32, "num_frames": 2}
        return VideoPrismClipModel(VideoPrismConfig(text_config=text, vision_config=vision))
    if kind == "siglip2":
        return Siglip2Model(
            Siglip2Config(
                text_config=text | {"projection_size": WIDTH},
                vision_config=_SIZES | {"num_patches": 4, "patch_size": 16},
            )
        )
    if kind == "clip_text":
        return CLIPTextModel(CLIPTextConfig(**text))
    if kind.startswith("t5"):
        sizes = {"d_model": 24, "d_kv": 12, "d_ff": 32, "num_layers": 2, "num_heads": 2}
        config = T5Config(vocab_size=len(SPECIAL + WORDS), eos_token_id=3, **sizes)
        return T5Model(config) if kind == "t5" else T5EncoderModel(config)
    return BertModel(BertConfig(**text), add_pooling_layer=False)


def save_tower(folder: Path, kind: str = "clip", seed: int = 0) -> str:
    """Save a tower and its tokenizer, and return the folder."""
    torch.manual_seed(seed)
    make_tower(kind).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return str(folder)
