"""Classes in words: the sentences that describe them, what encodes these, and the vectors read from that.

A text tower of transformers, which is never trained, turns sentences into embeddings. They are saved with a detector,
which so detects without the tower; it is needed again only for sentences that are new.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from huggingface_hub.utils import httpx
from torch import nn
from transformers import AutoModel, AutoTokenizer
from transformers import initialization as init

from .configuration_classquery import ClassQueryConfig


logger = logging.getLogger(__name__)

# Sentences (n) -> embeddings (n, width).
Encode = Callable[[list[str]], torch.Tensor]
Words = str | Sequence[str] | None

_MAX_QUOTED = 200
# Trained on sentences that were padded to the longest, with the padding in sight: `get_text_features` of siglip and
# siglip2 in transformers, and text_transformer.py of google-research/big_vision, which knows no mask.
_PADDED_TOWERS = ("siglip", "siglip2")
# What transformers and the libraries below it raise for a tower that is not there, damaged, or none.
_NO_TOWER = (
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    httpx.HTTPError,
)
# What they raise for sentences if they are of another kind.
_NO_SENTENCES = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)
# Where positions are relative.
_MOST_TOKENS = 4096
# Of the same sentence by the same tower on different machines and in different precision.
_SAME_TOWER = 0.99
# Distance of embeddings of length one that differ by no more than rounding.
_ALIKE = 1e-4


class TextError(ValueError):
    """Raised when classes cannot be read from words."""


# Sentences


def read_descriptions(classes: Mapping[str, Words]) -> dict[str, list[str]]:
    """Bring descriptions into one form, and check them.

    Args:
        classes: One or several sentences for each class.

    Returns:
        A list of sentences for each class, without blanks around them.

    Raises:
        TextError: If there are no classes, one has no name or no words, or the same words are there twice.
    """
    if not classes:
        raise TextError("there must be at least one class, got none")
    descriptions, class_of = {}, {}
    for label, words in classes.items():
        if not isinstance(label, str) or not label.strip():
            raise TextError(f"a class must have a name, got {_quoted(label)}")
        sentences = [words] if isinstance(words, str) else words
        if not isinstance(sentences, Sequence) or not all(isinstance(sentence, str) for sentence in sentences):
            raise TextError(
                f"a class is described by a sentence or a list of them, {_quoted(label)} by {_quoted(words)}"
            )
        if not sentences or not all(sentence.strip() for sentence in sentences):
            raise TextError(
                f"class {_quoted(label)} has an empty description: describe it in a sentence, or leave it out"
            )
        descriptions[label] = [sentence.strip() for sentence in sentences]
        for sentence in descriptions[label]:
            if sentence in class_of:
                both = sorted({class_of[sentence], label})
                raise TextError(
                    f"{_quoted(sentence)} is there twice, for {' and '.join(map(_quoted, both))}: the same words are "
                    "the same class"
                )
            class_of[sentence] = label
    return descriptions


def _quoted(value) -> str:
    return repr(value)[:_MAX_QUOTED]


def _shortened(error: Exception) -> str:
    return str(error)[:_MAX_QUOTED]


# Tower


class TextEncoder:
    """A text tower: sentences to embeddings of length one.

    Args:
        model: Model of transformers with `get_text_features` (CLIP, SigLIP, X-CLIP, VideoPrism, ...), or one of text
            alone, whose pooled output is taken or, where it has none, the mean of its last states; of one that
            translates (T5), those of its encoder.
        tokenizer: Its tokenizer.
        name: Where both come from.
        revision: Commit or tag there.
    """

    def __init__(self, model: nn.Module, tokenizer, name: str | None = None, revision: str | None = None):
        self.model = _text_part(model).eval().requires_grad_(False)
        self.tokenizer, self.name, self.revision = tokenizer, name, revision
        self.text_config = getattr(model.config, "text_config", model.config)
        positions = getattr(self.text_config, "max_position_embeddings", None)
        self.max_length = min(filter(None, (tokenizer.model_max_length, positions, _MOST_TOKENS)))

    @classmethod
    def load(cls, name: str, revision: str | None = None) -> "TextEncoder":
        """Load the tower of a folder or of a name on the Hub.

        Raises:
            TextError: If there is none, or it lacks weights or a tokenizer.
        """
        try:
            model, report = AutoModel.from_pretrained(name, revision=revision, output_loading_info=True)
            tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        except _NO_TOWER as error:
            raise TextError(
                f"there is no text encoder {name!r}: give a folder or a name on the Hub with a model of transformers "
                f"and its tokenizer ({_shortened(error)})"
            ) from error
        if len(tokenizer) <= len(tokenizer.all_special_tokens):
            # Transformers makes an empty one where there is no file of it.
            raise TextError(f"the text encoder {name!r} has no tokenizer that knows words: save it in the same folder")
        unused = "decoder." if _text_part(model) is not model else ()
        missing = sorted(key for key in report["missing_keys"] if not key.startswith(unused))
        if missing and all(key.startswith("pooler.") for key in missing):
            # Not used where words were masked in training.
            model.pooler = None
        elif missing:
            raise TextError(f"the text encoder {name!r} lacks {len(missing)} of its weights, as {missing[0]}")
        return cls(model, tokenizer, name, getattr(model.config, "_commit_hash", None) or revision)

    @property
    def width(self) -> int:
        """Width of the embeddings."""
        return self(["a"]).shape[1]

    @torch.no_grad()
    def __call__(self, sentences: list[str]) -> torch.Tensor:
        """Encode.

        Args:
            sentences: n sentences; what is longer than the tower takes is cut, with a warning.

        Returns:
            Shape (n, width), float32.

        Raises:
            TextError: If the model does not turn sentences into vectors.
        """
        try:
            inputs = self._tokenize(sentences)
            encode = getattr(self.model, "get_text_features", self.model)
            embeddings = _pooled(encode(**inputs), inputs.get("attention_mask"))
        except _NO_SENTENCES as error:
            raise TextError(f"the text encoder {self.name!r} takes no sentences ({_shortened(error)})") from error
        if embeddings.ndim != 2 or len(embeddings) != len(sentences):
            raise TextError(
                f"the text encoder {self.name!r} gives {tuple(embeddings.shape)} for {len(sentences)} sentences, and "
                "not one vector for each"
            )
        return F.normalize(embeddings.float(), dim=-1).cpu()

    def _tokenize(self, sentences: list[str]) -> dict[str, torch.Tensor]:
        lengths = [len(tokens) for tokens in self.tokenizer(sentences)["input_ids"]]
        for sentence, length in zip(sentences, lengths, strict=True):
            if length > self.max_length:
                logger.warning("%s is cut: it has %d of at most %d tokens", _quoted(sentence), length, self.max_length)
        sees_padding = self.model.config.model_type.startswith(_PADDED_TOWERS)
        inputs = self.tokenizer(
            sentences,
            padding="max_length" if sees_padding else True,
            max_length=self.max_length,
            truncation=True,
            return_tensors="pt",
        )
        names = ("input_ids",) if sees_padding else ("input_ids", "attention_mask")
        return {name: inputs[name].to(self.model.device) for name in names if name in inputs}


def _text_part(model: nn.Module) -> nn.Module:
    """The encoder of one that translates (T5, BART), and else the whole."""
    translates = hasattr(model, "encoder") and hasattr(model, "decoder") and not hasattr(model, "get_text_features")
    return model.encoder if translates else model


def _pooled(outputs, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """One vector per sentence: (n, width)."""
    if isinstance(outputs, torch.Tensor):
        return outputs
    if getattr(outputs, "pooler_output", None) is not None:
        return outputs.pooler_output
    states = outputs.last_hidden_state
    mask = torch.ones_like(states[..., :1]) if attention_mask is None else attention_mask[..., None].to(states.dtype)
    return (states * mask).sum(1) / mask.sum(1)


# Parts of the network


class ClassQueryWords(nn.Module):
    """Embeddings of the descriptions of each class, as buffers that are saved.

    Embeddings of a tower have much in common, which tells no classes apart: they are counted from the mean of the
    classes that the model was made with, in units of their mean distance from it.
    """

    def __init__(self, config: ClassQueryConfig):
        super().__init__()
        width = config.text_embedding_size
        # Zero where a class has fewer descriptions than another.
        self.register_buffer("embeddings", torch.zeros(config.num_labels, config.num_descriptions, width))
        self.register_buffer("center", torch.zeros(width))
        self.register_buffer("scale", torch.ones(1))
        attends = config.description_pooling == "attention"
        self.description_logits = nn.Linear(width, 1, bias=False) if attends else None
        self._has_words = False

    def reset_parameters(self) -> None:
        """Know no words yet, and weigh all descriptions equally."""
        for buffer, fill in ((self.embeddings, init.zeros_), (self.center, init.zeros_), (self.scale, init.ones_)):
            fill(buffer)
        if self.description_logits is not None:
            init.zeros_(self.description_logits.weight)

    def require_words(self) -> None:
        """Refuse to go on without words; looks at the tensor once.

        Raises:
            TextError: If there are none.
        """
        if not (self._has_words or torch.compiler.is_compiling() or self.embeddings.is_meta):
            if not self.embeddings.any():
                raise TextError(
                    "this model reads its classes from words and has none yet: call model.set_classes(...)"
                )
            self._has_words = True

    def forward(self) -> torch.Tensor:
        """One embedding per class: (num_labels, width)."""
        embeddings = (self.embeddings - self.center) / self.scale
        if embeddings.shape[1] == 1:
            return embeddings[:, 0]
        is_absent = (self.embeddings == 0).all(-1, keepdim=True)
        logits = torch.zeros_like(embeddings[..., :1])
        if self.description_logits is not None:
            logits = self.description_logits(embeddings)
        weights = logits.masked_fill(is_absent, torch.finfo(logits.dtype).min).softmax(1)
        return (weights * embeddings).sum(1)

    @torch.no_grad()
    def set_embeddings(self, embeddings: torch.Tensor) -> None:
        """Take other embeddings, (num_labels, num_descriptions, width); the first ones say how others are counted."""
        if not self.embeddings.any():
            of_classes = embeddings.sum(1) / embeddings.any(-1).sum(1, keepdim=True)
            if len(of_classes) > 1:
                self.center.copy_(of_classes.mean(0))
                distance = (of_classes - self.center.cpu()).norm(dim=-1).mean()
                # Where all are alike, it is of the size of rounding errors.
                self.scale.copy_(distance if distance > _ALIKE else torch.ones(()))
        self.embeddings = embeddings.to(self.embeddings)


class ClassQueryTextVectors(nn.Module):
    """A vector for each class: a projection of its embedding and, if the configuration says so, a learned residual."""

    def __init__(self, config: ClassQueryConfig):
        super().__init__()
        self.projection = nn.Linear(config.text_embedding_size, config.d_model)
        has_residual = config.class_residual
        self.residual = nn.Parameter(torch.empty(config.num_labels, config.d_model)) if has_residual else None

    def reset_parameters(self) -> None:
        """Start with vectors of length one, of the words alone."""
        init.normal_(self.projection.weight, std=self.projection.out_features**-0.5)
        init.zeros_(self.projection.bias)
        if self.residual is not None:
            init.zeros_(self.residual)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(num_labels, width) -> (num_labels, d_model)."""
        vectors = self.projection(embeddings)
        return vectors if self.residual is None else vectors + self.residual

    @torch.no_grad()
    def keep_residuals(self, rows: list[int | None]) -> None:
        """Have one residual for each of `rows`: that of the class which had this index, or none yet."""
        if self.residual is not None:
            kept = [self.residual.new_zeros(self.residual.shape[1]) if r is None else self.residual[r] for r in rows]
            self.residual = nn.Parameter(torch.stack(kept), requires_grad=self.residual.requires_grad)


# Other classes


def set_words(
    config: ClassQueryConfig,
    words: ClassQueryWords,
    vectors: Sequence[ClassQueryTextVectors],
    classes: Mapping[str, Words],
    text_encoder: str | Encode | None,
) -> None:
    """Give a network other classes; see `ClassQueryForVideoActionDetection.set_classes`.

    Args:
        config: Its configuration, is changed.
        words: The embeddings of its classes.
        vectors: What is read from them.
        classes: The classes, in order; those without words or with the words that they have are kept.
        text_encoder: What encodes the others, or its name; by default the one of the configuration.
    """
    _refuse_offloaded(words, vectors)
    before = config.class_descriptions if config.class_descriptions and words.embeddings.any() else {}
    classes = {label: before.get(label) if words_of is None else words_of for label, words_of in classes.items()}
    if unknown := [label for label, words_of in classes.items() if words_of is None]:
        raise TextError(
            f"{len(unknown)} classes have no words, as {', '.join(map(_quoted, unknown[:5]))[:_MAX_QUOTED]}: describe "
            "each in a sentence"
        )
    descriptions = read_descriptions(classes)
    index = {label: row for label, row in config.label2id.items() if before.get(label) == descriptions.get(label)}
    rows = [index.get(label) if label in before else None for label in descriptions]
    new = [label for label, row in zip(descriptions, rows, strict=True) if row is None]
    encoded = {}
    if new:
        encode = _find_encoder(config, text_encoder)
        sentences = [sentence for label in new for sentence in descriptions[label]]
        embeddings = _checked(encode(sentences), len(sentences), config.text_embedding_size)
        if before:
            _require_same_tower(encode, before, words.embeddings, config)
        encoded = dict(zip(new, embeddings.split([len(descriptions[label]) for label in new]), strict=True))
        config.text_encoder = getattr(encode, "name", None) or config.text_encoder
        config.text_encoder_revision = getattr(encode, "revision", None) or config.text_encoder_revision
    most = max(map(len, descriptions.values()))
    table = torch.zeros(len(descriptions), most, config.text_embedding_size)
    for row, (label, kept) in enumerate(zip(descriptions, rows, strict=True)):
        own = encoded[label] if kept is None else words.embeddings[kept, : len(descriptions[label])].float().cpu()
        table[row, : len(own)] = own
    if new:
        _warn_of_twins(table, list(descriptions))
    words.set_embeddings(table)
    for of_classes in vectors:
        of_classes.keep_residuals(rows)
    _set_labels(config, descriptions, rows, new)


def _refuse_offloaded(words: ClassQueryWords, vectors: Sequence[ClassQueryTextVectors]) -> None:
    """Refuse to change what Accelerate keeps elsewhere, and would put back as it was."""
    of_classes = (words.embeddings, *(part.residual for part in vectors))
    if any(tensor is not None and tensor.is_meta for tensor in of_classes):
        raise TextError(
            "what belongs to the classes is offloaded: load the model without `device_map`, set its classes, save it, "
            "and load that"
        )


def _set_labels(
    config: ClassQueryConfig, descriptions: dict[str, list[str]], rows: list[int | None], new: list[str]
) -> None:
    num_before = config.num_labels
    untrained = set(config.untrained_classes or ()) & set(descriptions) | set(new)
    labels = list(descriptions)
    groups = None
    if rows[:num_before] == list(range(num_before)):
        # Classes that are added behind all others are not seen by these, whose scores so stay as they are.
        groups = list(config.class_groups or [num_before])
        groups = [*groups, len(rows) - num_before] if len(rows) > num_before else config.class_groups
    config.class_groups = groups
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: row for row, label in enumerate(labels)}
    config.class_descriptions = descriptions
    config.untrained_classes = [label for label in labels if label in untrained] or None


def _find_encoder(config: ClassQueryConfig, text_encoder: str | Encode | None) -> Encode:
    if text_encoder is None and config.text_encoder is None:
        raise TextError("it is not known what encoded the classes of this model: give a text encoder")
    if text_encoder is None:
        return TextEncoder.load(config.text_encoder, config.text_encoder_revision)
    if isinstance(text_encoder, str | os.PathLike):
        return TextEncoder.load(os.fspath(text_encoder))
    if not callable(text_encoder):
        raise TextError(f"a text encoder is a folder, a name on the Hub or a function, got {_quoted(text_encoder)}")
    return text_encoder


def _checked(embeddings: torch.Tensor, num_sentences: int, width: int) -> torch.Tensor:
    """Embeddings of length one, if they are some."""
    try:
        embeddings = torch.as_tensor(embeddings).detach().to("cpu", torch.float32)
    except (RuntimeError, TypeError, ValueError) as error:
        kind = type(embeddings).__name__
        raise TextError(f"a text encoder gives a tensor of embeddings, got {kind} ({_shortened(error)})") from error
    if tuple(embeddings.shape) != (num_sentences, width):
        raise TextError(
            f"the text encoder gave embeddings of shape {tuple(embeddings.shape)} for {num_sentences} sentences, and "
            f"the model wants ({num_sentences}, {width}) (`text_embedding_size`): take the encoder it was made with"
        )
    # What is too large to have a length is zero then.
    embeddings = F.normalize(embeddings, dim=-1)
    if not embeddings.isfinite().all() or not embeddings.any(-1).all():
        raise TextError("the text encoder gave embeddings that are not finite, or zero")
    return embeddings


def _warn_of_twins(table: torch.Tensor, labels: list[str]) -> None:
    """Say which classes nothing tells apart, as those of words that the tower does not know."""
    of_classes = F.normalize(table.double().sum(1), dim=-1)
    twins = ((of_classes @ of_classes.T).triu(1) > 1 - _ALIKE**2 / 2).nonzero()
    if len(twins):
        first, second = twins[0].tolist()
        logger.warning(
            "%d pairs of classes have the same embedding, as %s and %s: the text encoder does not know the words that "
            "they differ in, and they will get the same scores",
            len(twins),
            _quoted(labels[first]),
            _quoted(labels[second]),
        )


def _require_same_tower(
    encode: Encode, before: dict[str, list[str]], embeddings: torch.Tensor, config: ClassQueryConfig
) -> None:
    """Refuse a tower that encodes a sentence of the model in another way than it was: nothing would fit together."""
    label, sentences = next(iter(before.items()))
    again = _checked(encode(sentences[:1]), 1, config.text_embedding_size)[0]
    similarity = F.cosine_similarity(again, embeddings[config.label2id[label], 0].float().cpu(), dim=0).item()
    if similarity < _SAME_TOWER:
        raise TextError(
            f"this text encoder is another than that of the model ({config.text_encoder or 'of unknown name'}): its "
            f"embedding of {_quoted(sentences[0])} has a cosine of {similarity:.2f} with the one that is saved"
        )


__all__ = [
    "ClassQueryTextVectors",
    "ClassQueryWords",
    "TextEncoder",
    "TextError",
    "read_descriptions",
    "set_words",
]
